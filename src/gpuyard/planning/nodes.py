"""The nodes of a run: which there are, what each runs, and what its machine has to offer.

Where every pool has one node, one box serves all of them, and its machine has to be what the strictest of them needs.
As soon as a pool has more nodes, every node has a box of its own, and runs the stages of its pool only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuyard import cost, gpus, ranking, records
from gpuyard.errors import UsageError
from gpuyard.formats.journal import Position
from gpuyard.formats.label import FIRST_NODE, NODE_NAME
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Instance, Offer, Query
from gpuyard.renting import runs
from gpuyard.renting.places import own_place
from gpuyard.workload import Needs, Workload
from gpuyard.workload.renting import Alternative

_NUMBERS = ("gpu_count", "gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb", "reliability", "internet_mbit_s")
_VERSIONS = ("cuda", "driver", "compute_capability")
_SWITCHES = ("static_ip", "data_center")


@dataclass(frozen=True, slots=True)
class Place:
    """A node as its workload wants it: the pools whose stages it runs, and where in the bucket its checkpoints lie.

    ``label`` is the node on the label of its machine, by default ``name``. Of a run that moves from box to box it says
    for which pool each box was rented.
    """

    name: str
    pools: tuple[str, ...]
    place: str
    label: str = ""

    @property
    def on_label(self) -> str:
        """The node that is on the label of its machine."""
        return self.label or self.name


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node as it will be. ``offers`` is empty when it has a machine, or needs none since its stages are done."""

    place: Place
    now: runs.Node
    disk_gb: float
    offers: list[Offer] = field(default_factory=list)
    runners_up: list[str] = field(default_factory=list)  # why the next best offers lost
    max_price_per_hour_usd: float | None = None  # what an offer may cost
    to_run: list[Position] = field(default_factory=list)  # its stages that this launch runs
    provider: str = ""  # the one cloud at which its machines are looked for; "": all of them
    replace_preempted: bool = False

    @property
    def name(self) -> str:
        """Its name, ``<pool>-<number>``."""
        return self.place.name

    @property
    def machine(self) -> Instance | None:
        """The machine that it has already."""
        return self.now.machine

    @property
    def gpu_name(self) -> str:
        """The GPU of its machine, or of the best offer."""
        if self.machine:
            return self.machine.gpu_name
        return self.offers[0].gpu_name if self.offers else ""

    @property
    def traffic_price_per_gb_usd(self) -> float:
        """What its cloud asks for a gigabyte of traffic; 0 where it asks nothing or does not say."""
        return self.offers[0].traffic_price_per_gb_usd if self.offers and not self.machine else 0.0

    @property
    def price_per_hour_usd(self) -> float:
        """What its machine costs an hour, all-in; the best offer's price when it is still to be rented."""
        if self.machine:
            return self.machine.price_per_hour_usd
        return self.offers[0].price_per_hour_usd if self.offers else 0.0


def places(workload: Workload, run: str) -> list[Place]:
    """Return the nodes of ``run``, in the order of their pools' first stages."""
    sizes = {pool: workload.pool(pool).nodes for pool in workload.pool_names}
    if set(sizes.values()) == {1}:
        return [Place(FIRST_NODE, tuple(sizes), run)]
    alone = next((pool for pool, size in sizes.items() if size == 1), None)
    found = []
    for pool, size in sizes.items():
        for number in range(size):
            name = f"{pool}-{number}"
            if not NODE_NAME.fullmatch(name):
                raise UsageError(
                    f"{workload.source}: pools.{pool}: its nodes would be called {name}, which no label can hold: a "
                    "pool of several has a name of at most 20 characters, and at most 10000 nodes. Nothing was rented."
                )
            found.append(Place(name, (pool,), run if pool == alone else own_place(run, name)))
    return found


def query(
    workload: Workload, pools: Sequence[str], done: Collection[tuple[int, str]], request: PlanRequest
) -> tuple[Query, str]:
    """Return what the machine of a node that runs the stages of ``pools`` has to offer, and in words what decides it.

    Only what is still to run counts; ``done`` are pairs of iteration and stage name.
    """
    left = [pool for pool in pools if any(stage.pool == pool for stage in workload.left(done))] or list(pools)
    by_stage, why = workload.market_of(done, pools)
    asked = workload.query(
        max_price_per_hour_usd=request.max_price_per_hour_usd,
        market=request.market or by_stage,
        needs=strictest(workload, left),
    )
    asked = records.with_conditions(asked, request.conditions)
    places = [place for place in workload.order if place not in done]
    traffic = traffic_gb_per_hour(workload, pools, places)
    found = ranking.grounded(asked, near=request.near, traffic_gb_per_hour=traffic)
    return found, "" if request.market else why


def traffic_gb_per_hour(workload: Workload, pools: Sequence[str], places: Sequence[Position]) -> float:
    """Return what the workload says that it sends and fetches, in 10^9 bytes for each expected hour of what is left.

    0 where it does not say that, or has no hours for what is left.
    """
    if workload.traffic is None:
        return 0.0
    hours = cost.of_pools(workload, pools, 0.0, places=places).run.hours
    rounds = len({iteration for iteration, _ in places})
    whole = workload.traffic.setup_gb + workload.traffic.gb_per_iteration * rounds
    return whole / hours.expected if hours and hours.expected else 0.0


def strictest(workload: Workload, pools: Sequence[str]) -> Needs:
    """Return what a machine needs that serves all ``pools``: the most of each number, and the names that all allow.

    Its alternatives are what the pools' choices make together, those first that take the fewest steps down.
    """
    needs = {pool: workload.pool(pool).needs or Needs() for pool in pools}
    if len({one.model_dump_json() for one in needs.values()}) == 1:
        return next(iter(needs.values()))
    by_pool = [_choices(one) for one in needs.values()]
    steps = sorted(itertools.product(*(range(len(choices)) for choices in by_pool)), key=sum)
    found: list[Needs] = []
    for taken in steps:
        chosen = [choices[at] for choices, at in zip(by_pool, taken, strict=True)]
        try:
            together = _strictest(workload, dict(zip(needs, chosen, strict=True)))
        except UsageError:
            if taken == steps[-1] and not found:
                raise
            continue
        if together not in found:
            found.append(together)
    first, *others = found
    kept = [{name: getattr(other, name) for name in Alternative.model_fields} for other in others]
    return first.model_copy(update={"alternatives": [Alternative.model_validate(one) for one in kept]})


def _choices(needs: Needs) -> list[Needs]:
    """Return needs without alternatives, and what each of these makes of them."""
    plain = needs.model_copy(update={"alternatives": []})
    said = [one.model_dump(exclude_none=True) for one in needs.alternatives]
    return [plain, *(plain.model_copy(update=values) for values in said)]


def _strictest(workload: Workload, needs: Mapping[str, Needs]) -> Needs:
    values: dict[str, Any] = {}
    for name in _NUMBERS:
        said = [number for one in needs.values() if (number := getattr(one, name)) is not None]
        values[name] = max(said, default=None)
    most = [one.most_gpu_ram_gb for one in needs.values() if one.most_gpu_ram_gb is not None]
    values["most_gpu_ram_gb"] = min(most, default=None)
    for name in _VERSIONS:
        versions = [version for one in needs.values() if (version := getattr(one, name))]
        values[name] = max(versions, key=_version, default=None)
    for name in _SWITCHES:
        values[name] = any(getattr(one, name) for one in needs.values())
    values["prefer"] = next((one.prefer for one in needs.values() if one.prefer != "price"), "price")
    for name, takes in (("gpu_names", gpus.matches), ("regions", _holds), ("countries", _holds)):
        values[name] = _common(workload, name, {pool: getattr(one, name) for pool, one in needs.items()}, takes)
    return Needs.model_validate(values)


def _common(
    workload: Workload,
    what: str,
    wanted: Mapping[str, Sequence[str]],
    takes: Callable[[str, str], bool],
) -> list[str]:
    """Return what every pool that says something allows; ``takes`` says whether a wish takes a narrower one."""
    said = {pool: names for pool, names in wanted.items() if names}
    both: list[str] | None = None
    for names in said.values():
        if both is None:
            both = list(names)
            continue
        narrower = [
            *(b for b in names if any(takes(a, b) for a in both)),
            *(a for a in both if any(takes(b, a) for b in names)),
        ]
        both = list(dict.fromkeys(narrower))
    if both == []:
        wishes = ", ".join(f"{pool} {' or '.join(names)}" for pool, names in said.items())
        raise UsageError(
            f"{workload.source}: one machine cannot serve all pools that are left: of {what} they allow {wishes}, and "
            "these have nothing in common. Let one of them allow what another does. Nothing was rented."
        )
    return both or []


def _holds(region: str, other: str) -> bool:
    """Tell whether ``other`` is ``region`` or a place in it: ``Sweden, SE`` is in ``SE``."""
    return region.strip().lower() in {other.strip().lower(), *(part.strip().lower() for part in other.split(","))}


def _version(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
