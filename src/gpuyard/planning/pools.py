"""A run whose stages name several pools of one node each: on which boxes it runs, and what moving between them costs.

Followed, such a run may move from box to box at a stage boundary: the old box publishes a checkpoint, a new one is
rented, restores it and goes on, and the old one is destroyed. That costs the time that a new box takes to be ready, for
which both are paid, and saves the difference of the prices. Every way to share the pools among boxes is reckoned, and
the cheapest is taken; where nobody follows, one box runs all that is left.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpuyard import market, records
from gpuyard.cost import NOTHING, Span, dollars_text, hours_text
from gpuyard.errors import NoOfferError, UsageError
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.label import pool_of as label_pool
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Instance, Offer
from gpuyard.remedies import option, remedy
from gpuyard.renting import runs
from gpuyard.renting.machine import describe
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload

Place = tuple[int, str]
"""An iteration's number, from 0, and a stage's name."""
# With more pools than this, only one box for all and one box a pool are looked at: each further way asks every cloud.
_MOST_SHARED = 3
_MARKETS: tuple[Literal["on-demand", "interruptible"], ...] = ("on-demand", "interruptible")


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of its boxes a run goes on with.

    ``machine`` is ``None`` when one has to be rented. ``behind`` are boxes that the run has left, or has to leave, and
    that end before it goes on. ``pool`` is that of the stage that comes next, ``waits`` whether a box waits for it.
    """

    machine: Instance | None
    behind: tuple[Instance, ...]
    pool: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Box:
    """A box that runs the stages of ``pools``: what can be rented for it, best first, and why."""

    pools: tuple[str, ...]
    offers: Sequence[Offer]
    words: Sequence[str] = ()
    runners_up: Sequence[str] = ()  # why the next best offers lost
    max_price_per_hour_usd: float | None = None  # what an offer may cost

    @property
    def price_per_hour_usd(self) -> float:
        """What its best offer costs an hour."""
        return self.offers[0].price_per_hour_usd

    @property
    def gpu_name(self) -> str:
        """The GPU of its best offer."""
        return self.offers[0].gpu_name


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run what is left: on which boxes, how often the run moves, and what that takes and costs.

    ``hours`` and ``dollars`` are of everything, ``by_box`` of the stages on each box with the first one's set-up, and
    ``moving`` of the hand-overs alone.
    """

    boxes: tuple[Box, ...]
    moves: int
    hours: Span
    dollars: Span
    by_box: tuple[tuple[Span, Span], ...]
    moving: tuple[Span, Span]


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that is taken, and the one that it was compared with: one box for all, or else the best that moves."""

    pool: str  # whose stage comes next
    taken: Way
    other: Way | None
    reason: str
    unknown: tuple[str, ...] = ()  # the stages without hours

    @property
    def first(self) -> Box:
        """The box that is rented now."""
        return next(box for box in self.taken.boxes if self.pool in box.pools)

    @property
    def turn_pools(self) -> tuple[str, ...]:
        """The pools that the first box serves; empty for every pool."""
        return self.first.pools if len(self.taken.boxes) > 1 else ()

    def text(self) -> list[str]:
        """Return the choice for people: a table by box, and the reason in a sentence."""
        rows = [["pools", "machine", "$/hour", "hours", "worst", "USD", "worst"]]
        for box, spans in zip(self.taken.boxes, self.taken.by_box, strict=True):
            rows.append([", ".join(box.pools), _name(box.offers[0]), f"{box.price_per_hour_usd:.4f}", *_cells(*spans)])
        if self.taken.moves:
            rows.append([_moves(self.taken.moves), "", "", *_cells(*self.taken.moving)])
        rows.append(["in all", "", "", *_cells(self.taken.hours, self.taken.dollars)])
        return [*records.table(rows), *self._lower_bound(), self.reason]

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON-able values: hours and dollars, expected and worst."""
        return {
            "pool": self.pool,
            "reason": self.reason,
            "taken": _way_dict(self.taken),
            "other": _way_dict(self.other) if self.other else {},
            "stages_without_hours": list(self.unknown),
        }

    def _lower_bound(self) -> list[str]:
        if not self.unknown:
            return []
        names = ", ".join(self.unknown)
        return [f"The workload gives no hours for {names}: the sums are without, so a lower bound."]


def takes_turns(workload: Workload) -> bool:
    """Tell whether the run's pools can follow one another on one box at a time: there are several, of one node each."""
    return len(workload.pool_names) > 1 and _has_one_node(workload)


def left_of(workload: Workload, done: Collection[Place]) -> list[Place]:
    """Return the stages that are still to run, in their order."""
    return [place for place in workload.order if place not in done]


def turn_of(run: Run, workload: Workload) -> Turn:
    """Return which box the run goes on with, and which it has left.

    What the newest checkpoint says decides: that the run waits for a box of a pool, or not. A box's node names the
    pool for which it was rented. The younger of two boxes is the one to which the run has moved.
    """
    left = left_of(workload, runs.stages_done(run.progress))
    pool = pool_of(workload, left[0][1] if left else workload.stages[-1].name)
    waits = run.progress.get("outcome") == "waiting" and bool(left)
    living = sorted(
        (one for one in run.instances if one.alive),
        key=lambda one: math.inf if one.created_at is None else one.created_at,
    )
    if not living:
        return Turn(None, (), pool, waits)
    youngest = living[-1]
    if waits and youngest.ref is not None and label_pool(youngest.ref.node) != pool:
        return Turn(None, tuple(living), pool, waits)
    return Turn(youngest, tuple(living[:-1]), pool, waits)


def after_moves(run: Run, workload: Workload) -> Turn | None:
    """Return which box a run of one pool goes on with that has moved, as :func:`turn_of`; ``None`` if it has not."""
    moved = {one.ref.node for one in run.instances if one.ref} - {FIRST_NODE}
    return turn_of(run, workload) if moved and _has_one_node(workload) else None


def move(run: Run, workload: Workload, request: PlanRequest) -> Turn:
    """Return that a run leaves its box for another one; raises :class:`UsageError` where it cannot."""
    again = f"`{remedy('move', run=run.name, provider='…')}`"
    if not _has_one_node(workload):
        raise UsageError(f"Run {run.name} has several nodes at work, and only a run of one node can be moved.")
    living = tuple(one for one in run.instances if one.alive)
    if not living:
        raise UsageError(
            f"Run {run.name} has no machine that it could leave: `{remedy('resume', run=run.name)}` goes on with it "
            "wherever you say."
        )
    if not (request.provider or request.offer):
        raise UsageError(
            f"Where is run {run.name} to move? Name a provider, an offer ({option('offer')}) or a box of yours "
            f"({option('box')}): {again}."
        )
    for one in living:
        same = one.way.name == request.offer if one.way else not request.offer
        if request.provider in (None, one.provider) and same:
            more = "" if one.way else f", or with {option('offer')} another machine there"
            raise UsageError(f"Run {run.name} is there already ({describe(one)}): name another place{more}.")
    turn = turn_of(run, workload)
    return Turn(None, living, turn.pool, waits=True)


def free_node(pool: str, run: Run) -> str:
    """Return a node of the pool that is on the label of no machine of the run: two on one would count as a leak."""
    taken = {one.ref.node for one in run.instances if one.ref}
    return next(node for number in itertools.count() if (node := f"{pool}-{number}") not in taken)


def _has_one_node(workload: Workload) -> bool:
    return all(workload.pool(name).nodes == 1 for name in workload.pool_names)


def node_of(pool: str) -> str:
    """Return the node of a pool of one node."""
    return f"{pool}-0"


def pools_of(machine: Instance, workload: Workload, *, followed: bool) -> tuple[str, ...]:
    """Return which pools a machine serves that was rented for them but has not been told; empty for all.

    A run that nobody followed has one box for all, on the node that every run begins with.
    """
    node = machine.ref.node if machine.ref else FIRST_NODE
    pool = node.rpartition("-")[0]
    if pool not in workload.pool_names or (node == FIRST_NODE and not followed):
        return ()
    return (pool,)


def alive_text(turn_pools: Sequence[str], *, followed: bool) -> list[str]:
    """Return what to say of a machine that the run has already, and that serves some of its pools."""
    if not turn_pools:
        return []
    then = "the run moves" if followed else f"it waits until somebody follows the run: {option('follow', True)}"
    return [f"That machine was rented for pool {turn_pools[0]}. Where another pool's stage comes next, {then}."]


def choose(
    workload: Workload,
    left: Sequence[Place],
    find: Callable[[tuple[str, ...]], Box],
    *,
    pool: str,
    followed: bool,
) -> Choice:
    """Return on which boxes what is ``left`` runs, from the stage of ``pool`` on; ``find`` asks the clouds for one.

    A way on which some box cannot be had is none; :class:`NoOfferError` and :class:`UsageError` say of one pool, or
    where nobody follows of all together, that it has no machine.
    """
    names = tuple(dict.fromkeys(pool_of(workload, stage) for _, stage in left)) or (pool,)
    known: dict[tuple[str, ...], Box | NoOfferError | UsageError] = {}

    def get(group: tuple[str, ...]) -> Box | NoOfferError | UsageError:
        if group not in known:
            try:
                known[group] = find(group)
            except (NoOfferError, UsageError) as error:
                known[group] = error
        return known[group]

    to_run = {stage for _, stage in left}
    unknown = tuple(stage.name for stage in workload.stages if stage.hours is None and stage.name in to_run)
    ways: list[Way] = []
    for parts in _partitions(names) if followed else iter([[names]]):
        boxes = [get(group) for group in parts]
        if lacking := [one for one in boxes if not isinstance(one, Box)]:
            if not followed or all(len(group) == 1 for group in parts):
                raise _explained(parts, boxes) from lacking[0]
            continue
        ways.append(reckon(workload, left, [one for one in boxes if isinstance(one, Box)]))
    ways.sort(key=lambda way: (round(way.dollars.expected, 6), way.moves))
    whole = next((way for way in ways if len(way.boxes) == 1), None)
    moving = next((way for way in ways if len(way.boxes) > 1), None)
    if not followed and whole:
        moves = f"{option('follow', True)} may move it"
        words = f"One machine runs the stages of all pools, since nobody follows the run: {moves}."
        return Choice(pool, whole, None, words, unknown)
    if whole is None:
        assert moving is not None  # one box a pool is a way, or the loop has raised
        why = str(known[names]).removesuffix(" Nothing was rented.")
        return Choice(pool, moving, None, f"The run moves, since no one machine can run all its stages: {why}", unknown)
    if moving is None:
        return Choice(pool, whole, None, "One machine runs all stages that are left.", unknown)
    if unknown:
        words = "One machine runs all stages: without all stages' hours nobody can say that moving saves anything."
        return Choice(pool, whole, moving, words, unknown)
    taken, other = (moving, whole) if moving.dollars.expected < whole.dollars.expected else (whole, moving)
    return Choice(pool, taken, other, _reason(moving, whole), unknown)


def reckon(workload: Workload, left: Sequence[Place], boxes: Sequence[Box]) -> Way:
    """Return what running the stages that are ``left`` on these boxes takes and costs.

    The first box's set-up is in it. At a hand-over both boxes are paid for as long as setting up the new one takes.
    """
    by_pool = {pool: number for number, box in enumerate(boxes) for pool in box.pools}
    setup = Span(workload.setup_hours.expected, workload.setup_hours.worst)
    hours, dollars = [NOTHING] * len(boxes), [NOTHING] * len(boxes)
    moving_hours, moving_dollars, moves = NOTHING, NOTHING, 0
    current: int | None = None
    for iteration, stage in left:
        number = by_pool[pool_of(workload, stage)]
        price = boxes[number].price_per_hour_usd
        if current is None:
            hours[number] += setup
            dollars[number] += setup * price
        elif current != number:
            moves += 1
            moving_hours += setup
            moving_dollars += setup * (price + boxes[current].price_per_hour_usd)
        current = number
        span = stage_hours(workload, iteration, stage, boxes[number].gpu_name)
        hours[number] += span
        dollars[number] += span * price
    return Way(
        tuple(boxes),
        moves,
        sum(hours, moving_hours),
        sum(dollars, moving_dollars),
        tuple(zip(hours, dollars, strict=True)),
        (moving_hours, moving_dollars),
    )


def stage_hours(workload: Workload, iteration: int, stage: str, gpu_name: str) -> Span:
    """Return the hours of a stage in an iteration on a GPU, none where the workload does not say."""
    hours = next(one.hours_in(iteration, gpu_name) for one in workload.stages if one.name == stage)
    return Span(hours.expected, hours.worst) if hours else NOTHING


def pool_of(workload: Workload, stage: str) -> str:
    """Return the pool of a stage."""
    return next((one.pool for one in workload.stages if one.name == stage), workload.stages[0].pool)


def _partitions(names: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    """Yield the ways to share the pools among boxes; a box's pools keep their order."""
    if len(names) > _MOST_SHARED:
        yield [names]
        yield [(name,) for name in names]
        return
    if not names:
        yield []
        return
    first, rest = names[0], names[1:]
    for parts in _partitions(rest):
        yield [(first,), *parts]
        for number, part in enumerate(parts):
            yield [(first, *part), *parts[:number], *parts[number + 1 :]]


def _explained(
    parts: Sequence[tuple[str, ...]], boxes: Sequence[Box | NoOfferError | UsageError]
) -> NoOfferError | UsageError:
    """Return the error of the first box that cannot be had, with the pools that it is for."""
    for group, error in zip(parts, boxes, strict=True):
        if not isinstance(error, Box):
            pools = f"{'Pool' if len(group) == 1 else 'Pools'} {', '.join(group)}"
            return type(error)(f"{pools}: {error}")
    raise AssertionError("every box can be had")


def _reason(moving: Way, whole: Way) -> str:
    """Return in a sentence which of the two ways is taken, and why."""
    saved = whole.dollars.expected - moving.dollars.expected
    costs = f"{_moves(moving.moves)} cost ${dollars_text(moving.moving[1].expected)}"
    costs += f" and {hours_text(moving.moving[0].expected)} h"
    if saved > 0:
        return (
            f"The run moves between machines: {costs}, and in all it saves ${dollars_text(saved)} against one machine "
            f"for all stages ({_name(whole.boxes[0].offers[0])}, ${dollars_text(whole.dollars.expected)})."
        )
    return (
        f"One machine runs all stages, for ${dollars_text(whole.dollars.expected)} in all: moving would "
        f"come to ${dollars_text(moving.dollars.expected)}, of which {costs}."
    )


def _moves(count: int) -> str:
    return f"{count} hand-over{'' if count == 1 else 's'}"


def _name(offer: Offer) -> str:
    count = market.count_of(offer.gpu_count)
    return f"{offer.provider} {offer.id}, {count} × {offer.gpu_name or 'GPU'}, {offer.market}"


def _cells(hours: Span, dollars: Span) -> list[str]:
    return [
        hours_text(hours.expected),
        hours_text(hours.worst),
        dollars_text(dollars.expected),
        dollars_text(dollars.worst),
    ]


def _way_dict(way: Way) -> dict[str, Any]:
    def spans(hours: Span, dollars: Span) -> dict[str, Any]:
        return {"hours": dataclasses.asdict(hours), "usd": dataclasses.asdict(dollars)}

    return {
        **spans(way.hours, way.dollars),
        "moves": way.moves,
        "moving": spans(*way.moving),
        "boxes": [
            {
                "pools": list(box.pools),
                "offer": records.offer_to_dict(box.offers[0]),
                "price_per_hour_usd": box.price_per_hour_usd,
                **spans(*one),
            }
            for box, one in zip(way.boxes, way.by_box, strict=True)
        ],
    }
