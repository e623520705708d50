"""The limits of a run (``<run>/limits.json``): until when it is rented, what it may cost, and what its end spares.

Only controllers write it, so a box that writes the run's record at the same moment cannot undo a limit. What a reader
does not know it keeps and writes back, and a newer major version it refuses by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import mark, why_too_new

VERSION = 1
_OWN = ("lease_end", "budget_usd", "kept")


@dataclass(frozen=True)
class Limits:
    """What limits a run. ``lease_end`` is in seconds since 1970, ``budget_usd`` for all of its machines together.

    ``kept`` names what a teardown has left on purpose, each as ``<provider>/<kind>/<id>``. ``further`` holds the fields
    that this version does not know; they stay when the limits are written again.
    """

    lease_end: float | None = None
    budget_usd: float | None = None
    kept: tuple[str, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    def keeping(self, *, more: tuple[str, ...] = (), less: tuple[str, ...] = ()) -> Limits:
        """Return them with ``more`` things that are kept, and without those that are gone."""
        return replace(self, kept=tuple(sorted({*self.kept, *more} - {*less})))

    def to_bytes(self) -> bytes:
        """Render them as the JSON document of the bucket."""
        known = {name: value for name in _OWN if (value := getattr(self, name)) not in (None, ())}
        return json.dumps({**self.further, **mark(VERSION), **known}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Limits:
        """Read limits; ``where`` names them in the :class:`CheckpointError` for what are none, or are too new."""
        try:
            document = json.loads(data)
            problem = why_too_new(document, VERSION, where)
            further = {name: value for name, value in document.items() if name not in (*_OWN, *mark(VERSION))}
            kept = tuple(str(name) for name in document.get("kept") or ())
            numbers = {name: _number(document.get(name)) for name in ("lease_end", "budget_usd")}
        except MALFORMED as error:
            raise CheckpointError(f"{where} are no limits of a run: {error!r}.") from error
        if problem:
            raise CheckpointError(problem)
        return cls(**numbers, kept=kept, further=further)


def limits_key(run: str) -> str:
    """Return the key of a run's limits."""
    return f"{run}/limits.json"


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
