"""The offers that fit a run, best first, and why."""

from __future__ import annotations

from collections.abc import Sequence

from gpuyard import market, records
from gpuyard.box.stages.choice import expected
from gpuyard.errors import UsageError
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Offer, Progress, Provider
from gpuyard.renting import runs
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload


def fitting(
    run: Run, workload: Workload, clouds: Sequence[Provider], request: PlanRequest, progress: Progress | None
) -> tuple[list[Offer], list[str]]:
    """Return what fits, best first, and the choice in words. A physical host that was just lost is not taken again."""
    # Only the stages that are to run have a say; what the command asks for is in the workload already.
    places = expected(request.choice, workload, runs.stages_done(run.progress))
    by_stage, why = workload.market_of(set(workload.order).difference(places))
    query = workload.query(market=by_stage)
    collected = market.collect(clouds, query, progress=progress)
    lost = {instance.machine_id for instance in run.leftovers if instance.machine_id}
    verdicts = market.judge(collected.offers, query, avoid_machines=lost)
    reasons = market.explain(verdicts)
    offers = market.rank(verdicts)
    if request.offer:
        offers, reasons = _the_one(request.offer, verdicts), [f"Taking offer {request.offer}, which was named."]
    return offers, [*records.offer_table(offers), *reasons, *([why] if why and not request.market else [])]


def _the_one(wanted: str, verdicts: Sequence[market.Verdict]) -> list[Offer]:
    """Return the named offer (an id may be offered on both markets), or say why it cannot be taken."""
    named = [verdict for verdict in verdicts if verdict.offer.id == wanted]
    if not named:
        raise UsageError(f"offer={wanted!r} is not among the {len(verdicts)} offers there are now.")
    fitting = market.rank(named)
    if not fitting:
        reasons = "; ".join(str(reason) for reason in named[0].reasons)
        raise UsageError(f"offer={wanted!r} does not fit: {reasons}.")
    return fitting
