"""Reading loosely typed JSON: providers send numbers as strings, ``null`` for empty, and strings with newlines."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction


def text(value: object) -> str:
    """Return ``value`` as text without surrounding white space; ``""`` for ``None``."""
    return "" if value is None else str(value).strip()


def optional_number(value: object) -> float | None:
    """Return ``value`` as a number, also from ``"1.5"`` and a fraction such as ``"1/8"``; ``None`` for what is none."""
    kind = type(value)
    if kind is float or kind is int:
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(Fraction(str(value).replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return None


def number(value: object, default: float = 0.0) -> float:
    """Return ``value`` as a number, ``default`` for what is none."""
    found = optional_number(value)
    return default if found is None else found


def epoch(value: object) -> float | None:
    """Return a time such as ``2026-11-22T05:00:00Z`` as seconds since 1970; ``None`` for what is none."""
    try:
        return datetime.fromisoformat(text(value)).timestamp()
    except ValueError:
        return None


def dicts(value: object) -> list[dict[str, object]]:
    """Return the objects in a JSON list; ``[]`` for ``null`` and for anything that is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def strings(value: object) -> list[str]:
    """Return the non-empty strings in a JSON list (Vultr has ``""`` inside ``locations``)."""
    return [item for item in value if isinstance(item, str) and item] if isinstance(value, list) else []


def same_ssh_key(one: str, other: str) -> bool:
    """Say whether two public keys are the same key: type and body count, the comment does not."""
    first = one.split()[:2]
    return len(first) == 2 and first == other.split()[:2]
