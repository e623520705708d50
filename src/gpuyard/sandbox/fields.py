"""Reads the fields of a request: of the right type, within bounds, and none passed over in silence.

What is wrong is a :class:`BadField`; its text is a sentence that names the field. Each API puts it into its own words'
envelope. Everything is looked at before anything is done, so that nothing odd gets into what the sandbox remembers.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from gpuyard.sandbox.model import Json

MOST_BYTES = 1024 * 1024  # of a request's body
_MOST_DEEP = 100
_WHOLE_NUMBERS = 2**63
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PUBLIC_KEY = re.compile(
    r"(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp\d{3}|sk-[a-z0-9@.-]{1,60}) [A-Za-z0-9+/]+={0,3}( [^\x00-\x1f\x7f]*)?"
)
_PUBLIC_KEY_MAX = 16_384


class BadField(Exception):
    """A field of a request is not what it has to be."""


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text; :class:`ValueError` for what is not JSON, or is more than it.

    Python's reader also takes ``NaN``, numbers beyond every float, nesting until the stack ends, and halves of
    characters. None of these can be written down again.
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError("too deep") from None
    level = [value]
    for _ in range(_MOST_DEEP):
        if not level:
            return value
        level = [part for item in level for part in _parts(item)]
    raise ValueError("too deep")


def _parts(item: object) -> list[object]:
    if isinstance(item, str):
        item.encode()  # a UnicodeEncodeError is a ValueError
    if isinstance(item, dict):
        return [*item, *item.values()]
    return item if isinstance(item, list) else []


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _whole(digits: str) -> int:
    value = int(digits)  # itself a ValueError from some thousand digits on
    if abs(value) >= _WHOLE_NUMBERS:
        raise ValueError("a number is too large")
    return value


def only(body: Json, known: Collection[str], harmless: Mapping[str, object] | None = None) -> None:
    """Refuse every field that is not ``known`` to be carried out, unless its value asks for nothing.

    Clients send many options with values such as ``null`` or ``false``. ``harmless`` holds, by field, a value beyond
    those that asks for nothing either.
    """
    for name, value in body.items():
        nothing = value is None or value is False or value in ("", 0, [], {})
        if name not in known and not nothing and not (harmless and name in harmless and value == harmless[name]):
            raise BadField(f"The sandbox does not carry out {shown(name)}: leave it out.")


def text(body: Json, name: str, longest: int, *, lines: bool = False) -> str:
    """Return a text, ``""`` where there is none. Without ``lines`` it holds no control characters."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadField(f"{name} is not a text.")
    if len(value) > longest:
        raise BadField(f"{name} is longer than {longest} characters.")
    if "\0" in value or (not lines and _CONTROL.search(value)):
        raise BadField(f"{name} holds a control character.")
    return value


def texts(body: Json, name: str, longest: int) -> list[str]:
    """Return a list of texts, empty where there is none."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadField(f"{name} is not a list.")
    return [text({f"each of {name}": item}, f"each of {name}", longest) for item in value if item is not None]


def number(body: Json, name: str, low: float, high: float) -> float | None:
    """Return a number, also one that is written as a text; ``None`` where there is none."""
    value = body.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError):
        raise BadField(f"{name} is not a number.") from None
    if not low <= found <= high:  # NaN is not either
        raise BadField(f"{name} is not between {low:g} and {high:g}.")
    return found


def public_key(value: object) -> str:
    """Return an SSH public key without the space around it."""
    if isinstance(value, str) and len(value) <= _PUBLIC_KEY_MAX and _PUBLIC_KEY.fullmatch(value.strip()):
        return value.strip()
    raise BadField("ssh_key is not an SSH public key.")


def basic_user(encoded: str) -> str:
    """Return the user name of HTTP's Basic scheme, ``""`` for what is none."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[0]
    except ValueError:
        return ""


def shown(text: str, longest: int = 80) -> str:
    """Return a text that holds something out of a request, short and on one line."""
    return _CONTROL.sub("?", text[:longest].encode(errors="replace").decode())
