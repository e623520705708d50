"""The offers that fit a run, best first, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpuyard import market, records
from gpuyard.errors import UsageError
from gpuyard.planning import pools
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Offer, Progress, Provider, Query
from gpuyard.renting import runs
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload


def fitting(
    run: Run, workload: Workload, clouds: Sequence[Provider], request: PlanRequest, progress: Progress | None
) -> tuple[list[Offer], list[str]]:
    """Return what fits, best first, and the choice in words. A physical host that was just lost is not taken again."""
    done = runs.stages_done(run.progress)
    by_stage, why = workload.market_of(done)
    asked = workload.query(max_price_per_hour_usd=request.max_price_per_hour_usd, market=request.market or by_stage)
    offers, words = candidates(asked, run, clouds, request, progress)
    return offers, [*words, *([why] if why and not request.market else [])]


def by_pools(
    run: Run,
    workload: Workload,
    clouds: Sequence[Provider],
    request: PlanRequest,
    turn: pools.Turn,
    progress: Progress | None,
) -> pools.Choice:
    """Return on which boxes a run goes on whose pools take turns, and what that costs."""
    left = pools.left_of(workload, runs.stages_done(run.progress))

    def find(names: tuple[str, ...]) -> pools.Box:
        limit = request.max_price_per_hour_usd
        query, why = pools.query(workload, names, left, max_price_per_hour_usd=limit, wanted=request.market)
        # The offer that was named is for the machine that is rented now.
        wanted = request if turn.pool in names else dataclasses.replace(request, offer=None)
        found, words = candidates(query, run, clouds, wanted, None)
        return pools.Box(names, found, [*words, *([why] if why else [])], query.disk_gb)

    if progress:
        progress(f"Asking {' and '.join(cloud.title for cloud in clouds)} for machines for each pool.")
    return pools.choose(workload, left, find, pool=turn.pool, followed=request.follow)


def candidates(
    asked: Query, run: Run, clouds: Sequence[Provider], request: PlanRequest, progress: Progress | None
) -> tuple[list[Offer], list[str]]:
    """Return what fits a query and the request's own conditions, best first, and the choice in words."""
    query = dataclasses.replace(asked, **request.conditions)
    collected = market.collect(clouds, query, progress=progress)
    lost = {instance.machine_id for instance in run.leftovers if instance.machine_id}
    verdicts = market.judge(collected.offers, query, avoid_machines=lost)
    reasons = market.explain(verdicts)
    offers = market.rank(verdicts)
    if request.offer:
        offers, reasons = _the_one(request.offer, verdicts), [f"Taking offer {request.offer}, which was named."]
    return offers, [*records.offer_table(offers), *reasons]


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
