"""Another bid for the interruptible machine of a run, which stays what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gpuyard.api.site import Site
from gpuyard.errors import UsageError
from gpuyard.providers.base import Instance, Progress
from gpuyard.remedies import option
from gpuyard.renting import ledger, machine, notebook, survey


@dataclass(frozen=True, slots=True)
class BidRequest:
    """Whose bid is to be which: US dollars an hour for the machine, without its disk. ``node``: by default the only."""

    run: str
    bid_usd: float
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """The machine before and after, and what was done or with ``check`` would be."""

    before: Instance
    after: Instance
    actions: list[str]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        prices = [one.price_per_hour_usd for one in (self.before, self.after)]
        return {
            "changed": bool(self.actions),
            "actions": self.actions,
            "diff": dict(zip(("before", "after"), ({"price_per_hour_usd": price} for price in prices), strict=True)),
            "price_per_hour_usd": prices[1],
            "text": self.text,
        }


def change(site: Site, request: BidRequest, *, check: bool = False, progress: Progress) -> Changed:
    """Bid another price for the machine of a run, also for one that was outbid, which may come back by it.

    Raises :class:`UsageError` when the run has no such machine, or more than one is meant,
    :class:`gpuyard.errors.UnsupportedError` where its cloud takes no bids.
    """
    if not request.run:
        raise UsageError(f"For which run? Name it with {option('run')}.")
    if not (math.isfinite(request.bid_usd) and request.bid_usd > 0):
        raise UsageError(f"bid={request.bid_usd:g} must be a number of dollars an hour above 0.")
    clouds = site.clouds()
    held = survey.find(clouds, request.run, request.node)
    if not held:
        raise UsageError(
            f"Run {request.run} has no machine at the clouds that were asked, so there is nothing to bid for."
        )
    if len(held) > 1:
        known = ", ".join(sorted({one.ref.node for one in held if one.ref}))
        raise UsageError(f"Run {request.run} has {len(held)} machines: say which is meant with node, one of {known}.")
    (before,) = held
    cloud = next(one for one in clouds if one.name == before.provider)
    disk = before.idle_price if before.market == "interruptible" else 0.0
    words = f"bid ${request.bid_usd:.4f} an hour for {machine.describe(before)}"
    if before.market == "interruptible" and abs(before.price_per_hour_usd - disk - request.bid_usd) < 5e-5:
        return Changed(before, before, [], f"That is bid for {machine.describe(before)} already.")
    if check:
        return Changed(before, before, [words], f"would {words}")
    cloud.change_bid(before.id, request.bid_usd)
    after = cloud.instance(before.id) or before
    ledger.Ledger(notebook.Notebook(site.shared_store), progress).running(after)
    state = "" if after.runs else f" It is {after.state}: its cloud brings it back when nobody bids more."
    text = f"{machine.describe(after)} costs ${after.price_per_hour_usd:.4f} an hour now, with its disk.{state}"
    return Changed(before, after, [words], text)
