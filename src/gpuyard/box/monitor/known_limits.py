"""The limits of the run, as the machine last saw them in the bucket: ``limits.json`` of the settings folder.

Whoever has the bucket open anyway (:mod:`gpuyard.box.monitor.beating`) writes them down, so that the monitor, which
does not load a bucket's client, can hold the run against them. What all machines of the run have cost is counted from
the ledger; between two looks this machine's own price is added.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from gpuyard.box.checkpoints import Store
from gpuyard.errors import CheckpointError, MissingObjectError
from gpuyard.files import write_whole
from gpuyard.formats.ledger import FOLDER, Entry
from gpuyard.formats.limits import Limits, limits_key

FILE = "limits.json"


@dataclass(frozen=True)
class KnownLimits:
    """``lease_end`` is in seconds since 1970. ``spent_usd`` is what the run had cost at ``time``.

    ``price_per_hour_usd`` is what its machines together cost an hour from then on.
    """

    lease_end: float | None = None
    budget_usd: float | None = None
    spent_usd: float = 0.0
    price_per_hour_usd: float = 0.0
    time: float = 0.0

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self.lease_end is not None or self.budget_usd is not None

    def over(self, now: float) -> tuple[str, str] | None:
        """Return which limit is over (``lease`` or ``budget``) and a clause that says so; ``None`` when none is."""
        if self.lease_end is not None and self.lease_end <= now:
            end = datetime.fromtimestamp(self.lease_end, timezone.utc)
            return "lease", f"its lease ended at {end:%Y-%m-%d %H:%M} UTC"
        spent = self.spent_usd + max(0.0, now - self.time) / 3600 * self.price_per_hour_usd
        if self.budget_usd is not None and spent >= self.budget_usd:
            return "budget", f"its run has cost ${spent:.2f}, and its budget is ${self.budget_usd:.2f}"
        return None


def read(folder: Path) -> KnownLimits:
    """Return what was last written down, no limits where nothing was or where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return KnownLimits(**json.loads((folder / FILE).read_bytes()))
    return KnownLimits()


def look(store: Store, run: str, now: float) -> KnownLimits:
    """Return the limits that the bucket has of ``run``. Raises :class:`CheckpointError` when it does not say them."""
    key = limits_key(run)
    try:
        limits = Limits.from_bytes(store.get(key), where=f"{store.url}/{key}")
    except MissingObjectError:
        return KnownLimits()
    if limits.budget_usd is None:
        return KnownLimits(limits.lease_end)
    spent = price = 0.0
    for item in store.objects(f"{run}/{FOLDER}/"):
        with contextlib.suppress(CheckpointError):  # one that cannot be read says nothing of the others
            entry = Entry.from_bytes(store.get(item.key), where=f"{store.url}/{item.key}")
            spent += entry.cost_usd(now)
            price += entry.changes[-1].price_per_hour_usd
    return KnownLimits(limits.lease_end, limits.budget_usd, spent, price, now)


def write(folder: Path, limits: KnownLimits) -> None:
    """Write them down, where they differ in anything but the time; ``OSError`` when that cannot be done."""
    if limits.any or (folder / FILE).exists():
        write_whole(folder / FILE, json.dumps(asdict(limits)), mode=0o644)
