"""The offers that fit the nodes of a run, best first, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpuyard import market, records
from gpuyard.box.stages.choice import expected
from gpuyard.errors import NoOfferError, UsageError
from gpuyard.planning import nodes, pools
from gpuyard.planning.nodes import NodePlan
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Offer, Progress, Provider, Query
from gpuyard.renting import runs, storage
from gpuyard.workload import Workload

Failed = Mapping[tuple[str, str], str]
"""Hosts that are not to be chosen, by provider and host, with when and why they failed."""


@dataclass(slots=True)
class _Pool:
    """The nodes to rent that are to run the same stages, and what fits them."""

    pools: tuple[str, ...]
    members: list[NodePlan] = field(default_factory=list)
    verdicts: list[market.Verdict] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    query: Query = field(default_factory=Query)
    why: str = ""
    left_out: list[str] = field(default_factory=list)  # which offers cannot have the run's volume

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"pool {' and '.join(self.pools)}"

    def runners_up(self, offers: Sequence[Offer]) -> list[str]:
        """Return why those behind the first of ``offers`` lost."""
        return market.runners_up(offers, self.query, self.verdicts)


def fitting(
    wanted: Sequence[NodePlan],
    workload: Workload,
    clouds: Sequence[Provider],
    request: PlanRequest,
    progress: Progress | None,
    failed: Failed | None = None,
    run: str = "",
) -> tuple[list[NodePlan], list[str]]:
    """Return the nodes that have to be rented with what fits each, best first, and the choice in words.

    No two of them begin with the same machine, and a physical host that a node has just lost it does not take again,
    nor one of those that have ``failed`` before.
    Raises :class:`NoOfferError`, naming the pool, when there are fewer offers than nodes.
    """
    if request.offer and len(wanted) > 1:
        raise UsageError(
            f"offer={request.offer!r} is one machine, and {len(wanted)} are to be rented: leave offer out, or give "
            "each pool one node."
        )
    groups: dict[tuple[str, ...], _Pool] = {}
    for node in wanted:
        groups.setdefault(node.place.pools, _Pool(node.place.pools)).members.append(node)
    answers: dict[Query, list[Offer]] = {}
    for group in groups.values():
        _ask(group, workload, clouds, request, answers, progress, failed, run, alone=len(groups) == 1)
    chosen = _share_out(list(groups.values()))
    words: list[str] = []
    for group in groups.values():
        # Where one machine serves all pools, their names say nothing.
        words += [f"For {group.title}:"] if len(groups) > 1 else []
        words += [*records.offer_table(group.offers), *_reasons(group, request), *([group.why] if group.why else [])]
        words += group.left_out
    return [chosen[node.name] for node in wanted], words


def by_pools(
    node: NodePlan,
    workload: Workload,
    clouds: Sequence[Provider],
    request: PlanRequest,
    turn: pools.Turn,
    progress: Progress | None,
    failed: Failed | None = None,
) -> pools.Choice:
    """Return on which boxes a run goes on whose pools take turns, and what that costs."""
    answers: dict[Query, list[Offer]] = {}

    def find(names: tuple[str, ...]) -> pools.Box:
        group = _Pool(names, [node])
        # The offer that was named is for the machine that is rented now.
        wanted = request if turn.pool in names else replace(request, offer=None)
        _ask(group, workload, clouds, wanted, answers, None, failed, alone=True)
        words = [*records.offer_table(group.offers), *_reasons(group, wanted), *([group.why] if group.why else [])]
        limit = group.query.max_price_per_hour_usd
        return pools.Box(names, group.offers, words, group.runners_up(group.offers), limit)

    if progress:
        progress(f"Asking {' and '.join(cloud.title for cloud in clouds)} for machines for each pool.")
    return pools.choose(workload, node.to_run, find, pool=turn.pool, followed=request.follow)


def _ask(
    group: _Pool,
    workload: Workload,
    clouds: Sequence[Provider],
    request: PlanRequest,
    answers: dict[Query, list[Offer]],
    progress: Progress | None,
    failed: Failed | None,
    run: str = "",
    *,
    alone: bool,
) -> None:
    """Ask the clouds what fits the nodes of a pool; raises :class:`NoOfferError` when nothing does."""
    done = set.intersection(*(runs.stages_done(node.now.progress) for node in group.members))
    # Only the stages that are to run have a say.
    passed = set(workload.order).difference(expected(request.choice, workload, done))
    query, group.why = nodes.query(workload, group.pools, passed, request)
    if query not in answers:
        answers[query] = market.collect(clouds, query, progress=progress).offers
    lost = {one.machine_id for node in group.members for one in node.now.leftovers if one.machine_id}
    group.query = query
    offered = answers[query]
    # Runs whose pools take turns have none.
    want = storage.wanted(workload, run, group.members[0].place.on_label) if run else None
    if want:
        offered, group.left_out = storage.priced(want, offered, {cloud.name: cloud for cloud in clouds})
    group.verdicts = market.judge(offered, query, avoid_machines=lost, failed_hosts=failed)
    group.offers = market.rank(group.verdicts, query)
    if request.offer:
        group.offers = _the_one(request.offer, group.verdicts)
    if not group.offers:
        error = market.no_offer(group.verdicts)
        raise error if alone else NoOfferError(f"For {group.title}: {error}")


def _reasons(group: _Pool, request: PlanRequest) -> list[str]:
    if request.offer:
        return [f"Taking offer {request.offer}, which was named."]
    return market.explain(group.verdicts, group.query, group.offers)


def _share_out(groups: Sequence[_Pool]) -> dict[str, NodePlan]:
    """Return the nodes with their offers, each beginning with another machine; those with the least choice come first.

    A node's further offers may be another's first: which is taken is settled when they are rented.
    """
    taken: set[tuple[str, str]] = set()
    chosen: dict[str, NodePlan] = {}
    for group in sorted(groups, key=lambda group: len(group.offers) - len(group.members)):
        for node in group.members:
            free = [offer for offer in group.offers if not offer.is_one_machine or _key(offer) not in taken]
            if not free:
                raise NoOfferError(
                    f"Only {len(group.members) - sum(one.name not in chosen for one in group.members)} of the "
                    f"{len(group.members)} nodes of {group.title} can be had: {len(group.offers)} offers fit, and no "
                    "machine serves two nodes. Nothing was rented."
                )
            taken.add(_key(free[0]))
            chosen[node.name] = replace(
                node,
                offers=free,
                runners_up=group.runners_up(free),
                max_price_per_hour_usd=group.query.max_price_per_hour_usd,
            )
    return chosen


def _key(offer: Offer) -> tuple[str, str]:
    return offer.provider, offer.id


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
