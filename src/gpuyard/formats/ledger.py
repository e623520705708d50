"""An entry of the ledger: what one rented machine has cost, from when to when (``<run>/ledger/<provider>-<id>.json``).

The entry holds the machine's price and every change of what it costs an hour. An entry may have been written by another
version of gpuyard: what a reader does not know it keeps and writes back, and a newer major version it refuses by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.label import FIRST_NODE

FOLDER = "ledger"
VERSION = 1
_WORDS = ("run", "workload", "provider", "id", "gpu_name", "region", "market")
_NUMBERS = ("price_per_hour_usd", "idle_price_per_hour_usd", "last_seen")


@dataclass(frozen=True)
class Change:
    """From ``time`` on (seconds since 1970) the machine costs ``price_per_hour_usd``, since it was ``what``.

    ``what`` is one of ``rented``, ``running``, ``stopped``, ``lost``, ``gone`` and ``ended``.
    """

    time: float
    what: str
    price_per_hour_usd: float


@dataclass(frozen=True)
class Entry:
    """One machine. ``changes`` begin with its rental; ``last_seen`` is when it was last seen alive by a command."""

    run: str
    workload: str
    provider: str
    id: str
    gpu_name: str
    region: str
    market: str
    price_per_hour_usd: float
    idle_price_per_hour_usd: float
    changes: tuple[Change, ...]
    last_seen: float
    node: str = FIRST_NODE
    more: Mapping[str, Any] = field(default_factory=dict)  # fields that this version does not know

    @property
    def key(self) -> str:
        """Where it lies in the bucket."""
        return entry_key(self.run, self.provider, self.id)

    @property
    def place(self) -> tuple[str, str]:
        """Its provider and its id there: what makes it the same machine."""
        return self.provider, self.id

    @property
    def began_at(self) -> float:
        """When it was rented."""
        return self.changes[0].time

    @property
    def ended(self) -> bool:
        """Whether it is known to cost nothing any more."""
        return self.changes[-1].what in ("gone", "ended")

    @property
    def ended_by_us(self) -> bool:
        """Whether a command has destroyed it."""
        return self.changes[-1].what == "ended"

    def changed(self, what: str, price_per_hour_usd: float, when: float) -> Entry:
        """Return the entry with one more change, never earlier than the last one."""
        change = Change(max(when, self.changes[-1].time), what, price_per_hour_usd)
        return replace(self, changes=(*self.changes, change))

    def cost_usd(self, now: float) -> float:
        """Return what it has cost until ``now``."""
        ends = [*(change.time for change in self.changes[1:]), now]
        spans = zip(self.changes, ends, strict=True)
        return sum(max(0.0, end - change.time) / 3600 * change.price_per_hour_usd for change, end in spans)

    def to_bytes(self) -> bytes:
        """Render the entry as the JSON document of the bucket."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("changes", "more")}
        changes = [vars(change) for change in self.changes]
        return json.dumps({**self.more, "version": VERSION, **known, "changes": changes}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Entry:
        """Read an entry; ``where`` names it in the :class:`CheckpointError` for what is none, or is too new."""
        try:
            document: dict[str, Any] = json.loads(data)
            version = document.pop("version")
            if isinstance(version, int) and version > VERSION:
                raise CheckpointError(
                    f"{where} is of version {version}, and this gpuyard reads version {VERSION}: use the newer gpuyard "
                    "that wrote it."
                )
            if version != VERSION:
                raise ValueError(f"version {version!r}")
            changes = tuple(
                Change(float(one["time"]), str(one["what"]), float(one["price_per_hour_usd"]))
                for one in document.pop("changes")
            )
            if not changes:
                raise ValueError("it has no changes")
            words = {name: str(document.pop(name)) for name in _WORDS}
            numbers = {name: float(document.pop(name)) for name in _NUMBERS}
            node = str(document.pop("node", "") or FIRST_NODE)
            known: dict[str, Any] = {**words, **numbers, "node": node}
            return cls(**known, changes=changes, more=document)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where} is not an entry of gpuyard's ledger: {error!r}.") from error


def entry_key(run: str, provider: str, instance_id: str) -> str:
    """Return the key of a machine's entry."""
    return f"{run}/{FOLDER}/{provider}-{instance_id}.json"
