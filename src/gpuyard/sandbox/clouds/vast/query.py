"""Vast's filter objects: the offer search's conditions and the instance list's ``select_filters``.

The published client sends numbers as strings, so both sides are brought to numbers where the field is one
(docs/reference/vast.md, Offers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gpuyard.sandbox.model import Json

OFFER_CAP = 64
_NOT_CONDITIONS = {"order", "type", "limit", "allocated_storage", "disable_bundling", "client_id", "api_key"}
_ALIASES = {
    "cuda_vers": "cuda_max_good",
    "display_active": "gpu_display_active",
    "dph": "dph_total",
    "dphtotal": "dph_total",
    "dlperf_usd": "dlperf_per_dphtotal",
    "flops_usd": "flops_per_dphtotal",
    "gpu_totalram": "gpu_total_ram",
    "ubuntu_version": "os_version",
    "driver_version": "driver_vers",
}
_IN_GIGABYTES = {"cpu_ram_GB": "cpu_ram", "gpu_ram_GB": "gpu_ram"}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
}


class BadFilter(Exception):
    """The filter object names an unknown field or operator, or compares what cannot be compared."""


def search(offers: Iterable[Json], query: Json) -> list[Json]:
    """Return the offers that ``query`` selects, in its order, at most :data:`OFFER_CAP` of them."""
    rows = list(offers)
    for field, condition in query.items():
        if field in _NOT_CONDITIONS:
            continue
        if field == "id":
            return []  # the real server matches nothing with it; ask_contract_id is the field to filter by
        factor = 1000.0 if field in _IN_GIGABYTES else 1.0
        name = _IN_GIGABYTES.get(field) or _ALIASES.get(field, field)
        if rows and name not in rows[0]:
            raise BadFilter(f"unknown search field: {field}")
        rows = [row for row in rows if matches(row[name], condition, field=field, factor=factor)]
    for field, direction in reversed(_order(query)):
        name = _ALIASES.get(field, field)
        rows.sort(key=lambda row: sort_key(row.get(name)), reverse=direction == "desc")
    try:
        limit = int(query.get("limit") or OFFER_CAP)
    except (TypeError, ValueError):
        raise BadFilter("limit is not a number") from None
    return rows[: max(0, min(limit, OFFER_CAP))]


def _order(query: Json) -> list[tuple[str, str]]:
    given = query.get("order") or [["score", "desc"]]
    try:
        return [(str(field), str(direction)) for field, direction in given]
    except (TypeError, ValueError):
        raise BadFilter("order is not a list of [field, direction]") from None


def sort_key(value: object) -> tuple[int, float, str]:
    """Return a key that sorts what is missing first, then numbers, then texts."""
    if isinstance(value, bool | int | float):
        return (1, float(value), "")
    return (0, 0.0, "") if value is None else (2, 0.0, str(value))


def matches(have: object, condition: object, *, field: str, factor: float = 1.0) -> bool:
    """Return whether a row's value fulfils a condition such as ``{"gte": "16"}``, all operators together."""
    if not isinstance(condition, dict):
        condition = {"eq": condition}
    return all(_holds(have, operator, want, field, factor) for operator, want in condition.items())


def _holds(have: object, operator: str, want: object, field: str, factor: float) -> bool:
    if operator in ("in", "notin"):
        if not isinstance(want, Sequence) or isinstance(want, str):
            raise BadFilter(f"{field}: {operator} needs a list")
        found = any(_equal(have, item, field, factor) for item in want)
        return found if operator == "in" else not found
    if operator in ("eq", "neq"):
        return _equal(have, want, field, factor) == (operator == "eq")
    if operator not in _COMPARE:
        raise BadFilter(f"{field}: unknown operator {operator}")
    if have is None:
        return False
    if isinstance(have, bool | int | float):
        return _COMPARE[operator](float(have), _number(want, field) * factor)
    raise BadFilter(f"{field}: {operator} needs a number")


def _equal(have: object, want: object, field: str, factor: float) -> bool:
    if isinstance(have, bool):
        return have == (want if isinstance(want, bool) else str(want).lower() in ("true", "1"))
    if isinstance(have, int | float) and want is not None:
        return float(have) == _number(want, field) * factor
    if field == "geolocation" and isinstance(have, str) and len(str(want)) == 2:
        return have.endswith(f", {want}")
    return have == want


def _number(value: object, field: str) -> float:
    if isinstance(value, bool | int | float | str):
        try:
            return float(value)
        except ValueError:
            pass
    raise BadFilter(f"{field}: {value!r} is not a number")
