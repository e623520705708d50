"""Until when a run is rented and what it may cost: as asked now, as launched with, or as its workload says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gpuyard.box.checkpoints import Store
from gpuyard.cost import NOTHING, Span
from gpuyard.errors import UsageError
from gpuyard.formats.limits import Limits
from gpuyard.planning.request import PlanRequest
from gpuyard.remedies import option
from gpuyard.renting import ledger, limits
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload

_MOST_HOURS = 24 * 366 * 10


@dataclass(frozen=True, slots=True)
class Limited:
    """The limits of a run as a launch will have them.

    ``new``: whether they are to be written into the bucket before anything is rented. ``label_end`` is the end of the
    lease for the labels of new machines, where there is no bucket that could say it. ``spent_usd`` is what all machines
    of the run have cost, 0 where no budget asks for it.
    """

    limits: Limits = field(default_factory=Limits)
    new: bool = False
    label_end: int | None = None
    spent_usd: float = 0.0

    def text(self) -> list[str]:
        """Return the limits in sentences."""
        lease, budget = self.limits.lease_end or self.label_end, self.limits.budget_usd
        lines = [f"It is rented until {limits.moment(lease)}: a reaping ends it then."] if lease else []
        if budget:
            spent = f", of which ${self.spent_usd:.4f} are spent" if self.spent_usd else ""
            lines.append(f"Its budget is ${budget:.2f}{spent}: whoever follows it, or a reaping, ends it then.")
        return lines


def check(request: PlanRequest) -> None:
    """Raise :class:`UsageError` for a limit that cannot be one."""
    for name, value, what in (
        ("lease_hours", request.lease_hours, "hours"),
        ("budget_usd", request.budget_usd, "US dollars"),
    ):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name}={value:g} must be a number of {what} above 0, or 0 for no such limit.")
    if request.lease_hours is not None and request.lease_hours > _MOST_HOURS:
        raise UsageError(f"lease_hours={request.lease_hours:g} is more than ten years; 0 is no lease.")


def decide(
    run: Run, workload: Workload, request: PlanRequest, store: Store | None, *, now: Callable[[], float] = time.time
) -> Limited:
    """Return the limits of ``run``; ``store`` is the bucket that controllers share, ``None`` without one.

    What is asked for now counts, then what the run was launched with, then what its workload says. Raises
    :class:`UsageError` for a lease that is over, and for limits that nobody could see.
    """
    before = limits.find(store, run.name) if store else None
    first = before is None and run.lease_end is None
    lease_hours = request.lease_hours if request.lease_hours is not None or not first else workload.budget.lease_hours
    budget_usd = request.budget_usd if request.budget_usd is not None or not first else workload.budget.usd
    after = before or Limits()
    if lease_hours is not None:
        after = replace(after, lease_end=now() + lease_hours * 3600 if lease_hours else None)
    if budget_usd is not None:
        after = replace(after, budget_usd=budget_usd or None)
    lease_end = after.lease_end if before or lease_hours is not None else run.lease_end
    if lease_end is not None and lease_end <= now():
        raise UsageError(
            f"The lease of run {run.name} ended at {limits.moment(lease_end)}, so the next reaping would end it: "
            f"give it another one with {option('lease_hours')}, or none with {option('lease_hours', 0)}."
        )
    if store is not None:
        spent = _spent(run, store, now()) if after.budget_usd else 0.0
        # Also that there is to be none is written, so that the workload's does not count later.
        said = before is None and (lease_hours is not None or budget_usd is not None)
        return Limited(after, said or after != (before or Limits()), spent_usd=spent)
    if after.budget_usd:
        raise UsageError(
            f"budget_usd={after.budget_usd:g} needs a bucket, since what a run has cost is counted there: "
            f"name one with {option('bucket', 's3://…')}, or give no budget with {option('budget_usd', 0)}."
        )
    if request.lease_hours is not None and run.machine is not None:
        raise UsageError(
            f"lease_hours={request.lease_hours:g} cannot change the lease of a machine that lives, since without a "
            "bucket that stands on its label only: leave it out."
        )
    return Limited(label_end=None if lease_end is None else int(lease_end))


def _spent(run: Run, store: Store, now: float) -> float:
    return replace(run, entries=tuple(ledger.entries(store, run.name))).spent_usd(now)


def refuse_cost(limited: Limited, run: str, cost: Span | None, *, renting: bool, lower_bound: bool) -> list[str]:
    """Return what to know of a run whose machines are expected to cost more than its budget.

    ``cost`` is what is still to come. Raises :class:`UsageError` where something is to be ``renting`` all the same.
    """
    budget = limited.limits.budget_usd
    if not budget:
        return []
    least = "at least " if lower_bound else ""
    coming = cost or NOTHING
    spent = f"${limited.spent_usd:.2f} are spent, and " if limited.spent_usd else ""
    if limited.spent_usd + coming.expected > budget or limited.spent_usd >= budget:
        words = (
            f"Run {run} is expected to cost more than budget_usd={budget:g}: {spent}{least}${coming.expected:.2f} are "
            "still to come."
        )
        if renting:
            raise UsageError(
                f"{words} Nothing was rented. Give it more with {option('budget_usd')} (0: no limit), less to do, or a "
                "cheaper machine."
            )
        return [words]
    if limited.spent_usd + coming.worst > budget:
        return [f"At worst run {run} costs more than budget_usd={budget:g}: ${coming.worst:.2f} are still to come."]
    if lower_bound:
        return [f"Whether budget_usd={budget:g} is enough is not known: some stages have no hours."]
    return []
