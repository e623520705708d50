"""The nodes of a run: which there are, what each runs, and what its machine has to offer.

Where every pool has one node, one box serves all of them, and its machine has to be what the strictest of them needs.
As soon as a pool has more nodes, every node has a box of its own, and runs the stages of its pool only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuyard import gpus
from gpuyard.errors import UsageError
from gpuyard.formats.journal import Position
from gpuyard.formats.label import FIRST_NODE, NODE_NAME
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Instance, Offer, Query
from gpuyard.renting import runs
from gpuyard.renting.places import own_place
from gpuyard.workload import Needs, Workload

_NUMBERS = ("gpu_count", "gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb", "reliability")


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
    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request.conditions.items()
    }
    return dataclasses.replace(asked, **said), "" if request.market else why


def strictest(workload: Workload, pools: Sequence[str]) -> Needs:
    """Return what a machine needs that serves all ``pools``: the most of each number, and the names that all allow."""
    needs = {pool: workload.pool(pool).needs or Needs() for pool in pools}
    values: dict[str, Any] = {}
    for name in _NUMBERS:
        said = [number for one in needs.values() if (number := getattr(one, name)) is not None]
        values[name] = max(said, default=None)
    values["cuda"] = max((one.cuda for one in needs.values() if one.cuda), key=_version, default=None)
    for name, takes in (("gpu_names", gpus.matches), ("regions", _holds)):
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
