"""The values that a workload holds: every rule in one place, every message in the same form."""

from __future__ import annotations

import posixpath
import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import (
    BeforeValidator,
)

from gpuyard import repository
from gpuyard.box.stages.folders import why_not
from gpuyard.errors import UsageError
from gpuyard.formats.label import check_name

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSION = re.compile(r"\d+(\.\d+)*")
_EXTRA = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_CONSTRAINT = re.compile(r"\s*(?:(?:==|!=|<=|>=|~=|<|>)\s*\d+(?:\.\d+)*(?:\.\*)?\s*(?:,\s*(?!$)|$))+")
MOST_SHOWN = 60  # characters of a wrong value that go into a message
_MOST_ITERATIONS = 100_000


def show(value: object) -> str:
    """Return a wrong value for a message; text in quotes, as in YAML."""
    if isinstance(value, int) and value.bit_length() > MOST_SHOWN * 4:
        return "a number that long"
    shown = {None: "nothing", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    shown = shown or (repr(value) if isinstance(value, str | int | float) else f"a {kind_of(value)}")
    return shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + "…"


def kind_of(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, dict) else type(value).__name__


def _number(value: object, wanted: str, *, least: float = 0.0, above: bool = False, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be {wanted}, not {show(value)}")
    if not (value > least if above else value >= least) or value > most:
        raise ValueError(f"must be {wanted}, not {show(value)}")
    return float(value)


def _positive(value: object) -> float:
    return _number(value, "a positive number", above=True)


def _not_negative(value: object) -> float:
    return _number(value, "a number that is not negative")


def _share(value: object) -> float:
    return _number(value, "a number from 0 to 1", most=1.0)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number that is not negative, not {show(value)}")
    return value


def _positive_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of at least 1, not {show(value)}")
    return value


def _iterations(value: object) -> int:
    count = _positive_count(value)
    if count > _MOST_ITERATIONS:
        raise ValueError(f"must be at most {_MOST_ITERATIONS}, not {show(value)}; more belong into a stage's own loop")
    return count


def _words(value: object) -> str:
    if not isinstance(value, str):
        # The number itself is no help here: YAML has already made 3.1 of an unquoted 3.10.
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
        raise ValueError(f"must be text, not {show(value)}{hint}")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _some_words(value: object) -> str:
    text = _words(value)
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {show(value)}")
    return value


def _version(value: object) -> str:
    text = _some_words(value)
    if not _VERSION.fullmatch(text):
        raise ValueError(f"must be a version such as '1.85', not {show(value)}")
    return text


def _constraint(value: object) -> str:
    text = _some_words(value)
    if not _CONSTRAINT.fullmatch(text):
        raise ValueError(f"must be a version condition such as '>=3.10,<3.14', not {show(value)}")
    return text


def _variable(value: object) -> str:
    text = _some_words(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"must be the name of an environment variable, not {show(value)}")
    return text


def _name(value: object) -> str:
    text = _some_words(value)
    try:
        return check_name(text, option="name")
    except UsageError:
        raise ValueError(
            f"must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter, not {show(value)}"
        ) from None


def _absolute(value: object) -> str:
    text = _some_words(value)
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/") == "":
        raise ValueError(f"must be an absolute path below /, without '..', not {show(value)}")
    return text.rstrip("/")


def _folder(value: object) -> str:
    path = PurePosixPath(_relative(value))
    if not path.parts:
        raise ValueError(f"must be a folder inside the repository, such as 'models', not {show(value)}")
    if path.parts[0] == ".gpuyard":
        raise ValueError("must not be .gpuyard, where gpuyard keeps its journal and logs")
    return str(path)


def _url(value: object) -> str:
    text = _some_words(value)
    if reason := repository.why_not(text):
        raise ValueError(reason)
    return text


def _persistent(value: object) -> str:
    text = _absolute(value)
    if reason := why_not(text, here=False):
        raise ValueError(reason)
    return posixpath.normpath("/" + text.lstrip("/"))


def _relative(value: object) -> str:
    text = _some_words(value)
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(f"must be a relative path without '..', not {show(value)}")
    return text.rstrip("/")


def _extra(value: object) -> str:
    text = _some_words(value)
    if not _EXTRA.fullmatch(text):
        raise ValueError(f"must be the name of an extra, such as 'train', not {show(value)}")
    return text


def _pattern(value: object) -> str:
    text = _some_words(value)
    if text.startswith(("!", "#", "~")) or ".." in text.split("/"):
        raise ValueError(f"must be a pattern inside the repository, such as 'data/*.bin', not {show(value)}")
    return text


Url = Annotated[str, BeforeValidator(_url)]
Extra = Annotated[str, BeforeValidator(_extra)]
Pattern = Annotated[str, BeforeValidator(_pattern)]
Folder = Annotated[str, BeforeValidator(_folder)]
Positive = Annotated[float, BeforeValidator(_positive)]
NotNegative = Annotated[float, BeforeValidator(_not_negative)]
Share = Annotated[float, BeforeValidator(_share)]
Count = Annotated[int, BeforeValidator(_count)]
PositiveCount = Annotated[int, BeforeValidator(_positive_count)]
Iterations = Annotated[int, BeforeValidator(_iterations)]
Words = Annotated[str, BeforeValidator(_words)]
SomeWords = Annotated[str, BeforeValidator(_some_words)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Version = Annotated[str, BeforeValidator(_version)]
Constraint = Annotated[str, BeforeValidator(_constraint)]
Variable = Annotated[str, BeforeValidator(_variable)]
Name = Annotated[str, BeforeValidator(_name)]
PersistentRoot = Annotated[str, BeforeValidator(_persistent)]
RelativePath = Annotated[str, BeforeValidator(_relative)]
