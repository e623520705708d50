"""Following a run to its end, from machine to machine.

A run whose stages take turns on the machines of several pools waits where a stage of another pool comes next. Whoever
follows it hands it over: once the last checkpoint is in the bucket, the run is launched once more. That rents a machine
for the pool, brings it into shape, ends the machine that waits, and only then starts the stages. So a run has never two
machines at work; and when nothing can be rented, the machine that waits is still there.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpuyard import pace, play_process
from gpuyard.api import end
from gpuyard.api.end import Change
from gpuyard.api.site import Site
from gpuyard.box import checkpoints
from gpuyard.errors import CheckpointError, GpuyardError, UsageError
from gpuyard.formats.manifest import Manifest
from gpuyard.providers.base import Instance, Progress
from gpuyard.providers.resources import Kind
from gpuyard.remedies import remedy
from gpuyard.renting import ending, limits, machine, runs, shelved, survey, together, watch
from gpuyard.renting.runs import Run

LIMITS_S = 15.0
"""How often a run that is followed is held against its lease and its budget (seconds)."""
FOR_THE_FIRST_MACHINE = (
    "offer",
    "box",
    "restore",
    "stage",
    "from_stage",
    "iteration",
    "update",
    "lease_hours",
    "budget_usd",
)
"""Options of a launch that are not repeated at a hand-over: each says how one machine is chosen, or begins."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Which run is followed, and what becomes of its machine.

    ``shutdown``: end the rental when the run ends, well or not. ``since`` is the number of the newest checkpoint before
    the launch. ``options`` are the launch's own, which are repeated when the run is handed over.
    """

    run: str
    shutdown: bool = False
    since: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Followed:
    """How a run stood when following it ended, how often it was handed over, and what to say of its machine."""

    run: str
    state: str
    hand_overs: int
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"state": self.state, "hand_overs": self.hand_overs, "text": self.text}


@dataclass(frozen=True, slots=True)
class End:
    """How a machine's stages ended, and for which pool's machine they wait, if so."""

    state: str
    waits_for: str = ""


class World(Protocol):
    """The ways to the run that following needs; tests bring their own."""

    def run(self, name: str) -> Run:
        """Return the run as the clouds and the bucket know it."""

    def records(self, instance: Instance) -> Iterator[Mapping[str, Any]]:
        """Yield what the machine's stages do, until they end."""

    def how_it_ended(self, whose: str, instance: Instance, state: str) -> str:
        """Return how a run or node ended, in words."""

    def last_checkpoint(self, name: str) -> Manifest | None:
        """Return the newest checkpoint that is whole; raises :class:`CheckpointError` when the bucket cannot say."""

    def launch(self, options: Mapping[str, Any]) -> None:
        """Launch with these options. What has come of it is seen in :meth:`run`."""

    def end(self, order: ending.Order) -> Change:
        """End the machines of ``order``."""


def follow(site: Site, request: Follow, *, progress: Progress) -> Followed:
    """Show what the run does until it ends, hand it over where it waits, and with ``shutdown`` end its rental.

    Raises :class:`GpuyardError` when the run does not finish, when it cannot be handed over, and when its machine has
    to be kept though it was to end. The text names what bills then.
    """
    return follow_in(Real(site, progress), request, progress=progress)


def follow_in(world: World, request: Follow, *, progress: Progress, clock: pace.Clock | None = None) -> Followed:
    """Do what :func:`follow` does, in any ``world``."""
    try:
        followed = _to_the_end(world, request, progress, clock or pace.Clock())
    except GpuyardError as error:
        if request.shutdown:
            # Following ends also when the connection is lost, so what the machine and the bucket say decides.
            _close(world, request, progress, after=error)
        raise
    if request.shutdown:
        _close(world, request, progress)
    return followed


def show(records: Iterator[Mapping[str, Any]], progress: Progress) -> End:
    """Tell what happens on a machine until its stages end, and return how they did."""
    state, waits_for = "", ""
    for record in records:
        if line := watch.tell(record):
            progress(line)
        if record.get("state"):
            state, waits_for = str(record["state"]), str(record.get("waits_for") or "")
    return End(state, waits_for)


def _to_the_end(world: World, request: Follow, progress: Progress, clock: pace.Clock) -> Followed:
    hand_overs = 0
    while True:
        run = world.run(request.run)
        if run.machine is None:
            raise UsageError(f"Run {run.name} has no machine, so there is nothing to follow.")
        if not hand_overs:
            progress(machine.following(run.name, run.instances))
        ends = _show_within_limits(world, run, progress, clock)
        waits_for = next((end.waits_for for _, _, end in ends if end.state == "waiting"), None)
        if waits_for is None:
            break
        hand_over(world, request, run, run.machine, waits_for, progress)
        hand_overs += 1
    state, text = conclude(world, run, ends, ends_the_rental=request.shutdown)
    return Followed(run.name, state, hand_overs, text)


def conclude(
    world: World, run: Run, ends: Sequence[tuple[str, Instance, End]], *, ends_the_rental: bool = False
) -> tuple[str, str]:
    """Return the state of a run whose stages have ended, and what to say; raises :class:`GpuyardError` if not well.

    Both tell what bills from then on, unless the rental is ended now.
    """
    teardown = f"`{remedy('teardown', run=run.name)}`"
    bills = (
        f"It has boxes of yours only, which cost nothing and are the run's until {teardown} frees them."
        if all(one.way for one in run.instances)
        else f"As long as its machine is there, it bills {run.price_per_hour_usd:.4f} USD an hour: "
        f"{teardown} ends that."
    )
    after = [] if ends_the_rental else [bills]
    unfinished = [
        world.how_it_ended(machine.whose(run.name, node), instance, end.state)
        for node, instance, end in ends
        if end.state not in watch.AS_ASKED
    ]
    if unfinished:
        raise GpuyardError("\n".join([*unfinished, *after]))
    return watch.as_asked([end.state for _, _, end in ends], "".join(after))


def _show_within_limits(
    world: World, run: Run, progress: Progress, clock: pace.Clock
) -> list[tuple[str, Instance, End]]:
    """Do what :func:`show_all` does, and end the run when its lease or its budget is over.

    Raises :class:`GpuyardError` then, when all of it has ended or as much as could be.
    """
    if run.lease_end is None and run.limits.budget_usd is None:
        return show_all(world, run, progress)
    through = threading.Event()
    began = clock.date()
    for line in limits.told(run, began):
        progress(line)

    def watch_limits(say: Progress) -> str:
        warned = bool(limits.nearly_over(run, began))
        while True:
            now = clock.date()
            if why := limits.over(run, now):
                say(f"Run {run.name} is ended: {why}.")
                done = world.end(ending.Order(run.name))
                return "\n".join([f"Run {run.name} was ended: {why}.", *done.text])
            if not warned and (words := limits.nearly_over(run, now)):
                warned = True
                say(words)
            if through.wait(LIMITS_S):
                return ""

    def work(what: str, say: Progress) -> str | list[tuple[str, Instance, End]] | GpuyardError:
        try:
            return watch_limits(say) if what == "limits" else show_all(world, run, say)
        except GpuyardError as error:
            return error
        finally:
            if what != "limits":
                through.set()

    ends, ended = together.at_once(work, ("stages", "limits"), progress, see_through=False)
    if isinstance(ended, GpuyardError):
        raise ended
    if ended:
        raise GpuyardError(str(ended))
    if isinstance(ends, GpuyardError):
        raise ends
    assert not isinstance(ends, str)  # that is the answer of the other one
    return ends


def show_all(world: World, run: Run, progress: Progress) -> list[tuple[str, Instance, End]]:
    """Show what all machines of the run do until their stages end, and return how they did, by node."""
    held = [(node.name, node.machine) for node in run.nodes if node.machine]

    def one(place: tuple[str, Instance], say: Progress) -> End:
        node, instance = place
        return show(world.records(instance), (lambda line: say(f"{node}: {line}")) if len(held) > 1 else say)

    if len(held) == 1:  # told as it comes, without a thread between
        return [(*held[0], one(held[0], progress))]
    ends = together.at_once(one, held, progress, see_through=False)
    return [(*place, end) for place, end in zip(held, ends, strict=True)]


def hand_over(world: World, request: Follow, run: Run, left: Instance, pool: str, progress: Progress) -> None:
    """Move the run to a machine of another pool; raises :class:`GpuyardError` when it stays where it is."""
    waits = f"Run {run.name} waits for a machine of pool {pool}"
    ways_out = (
        f"{machine.describe(left)} is kept, and {machine.costs(left)}: "
        f"`{remedy('launch', run=run.name, follow=True)}` tries again, `{remedy('teardown', run=run.name)}` "
        f"{'frees' if left.way else 'ends'} it."
    )
    try:
        last = world.last_checkpoint(run.name)
    except CheckpointError as error:
        raise GpuyardError(f"{waits}, and is not moved, since the bucket cannot be read: {error} {ways_out}") from error
    if last is None or last.progress.get("outcome") != "waiting":
        raise GpuyardError(f"{waits}, and is not moved, since its last checkpoint is not in the bucket. {ways_out}")
    progress(f"{waits}, and checkpoint {last.sequence} is whole in the bucket: handing it over.")
    options = {name: value for name, value in request.options.items() if name not in FOR_THE_FIRST_MACHINE}
    world.launch({**options, "run": run.name, "gpuyard_mode": "resume", "gpuyard_hand_over": True})
    now = world.run(run.name)
    # Another command may have moved it while this one tried to.
    if now.machine is not None and left.place not in [one.place for one in now.instances]:
        return
    saved = f"{waits}, and could not be handed over, as shown above. All is saved, as checkpoint {last.sequence}."
    if [one.place for one in now.instances] == [left.place]:
        raise GpuyardError(f"{saved} {ways_out}")
    there = "; ".join(f"{machine.describe(one)}, which {machine.costs(one)}" for one in now.instances)
    raise GpuyardError(
        f"{saved} It has now: {there or 'no machine'}. `{remedy('resume', run=run.name, follow=True)}` goes on."
    )


def _close(world: World, request: Follow, progress: Progress, *, after: GpuyardError | None = None) -> None:
    """Destroy the machine when the run has ended and its end is saved; the error ``after`` which that happens stays."""
    order = ending.Order(request.run, only="ended", since=request.since)
    try:
        done = world.end(order)
    except GpuyardError as error:
        if after is None:
            raise
        raise GpuyardError(f"{after}\n{error}") from error
    for action in done.actions:
        progress(f"As shutdown=true asks for: {action}.")


@dataclass(frozen=True, slots=True)
class Real:
    """The way to the run over the clouds, the bucket and SSH that ``site`` names."""

    site: Site
    progress: Progress
    play: Callable[..., int] = play_process.run

    def run(self, name: str) -> Run:
        """Return the run; a bucket that cannot be read hides no machine."""
        seen = survey.take(self.site.clouds())
        if name not in [one.ref.run for one in survey.owned(seen.answered()) if one.ref]:
            seen.complete()  # it may be at the cloud that does not answer
        store = self.site.store()
        try:
            runs.check_answers(store)
            kept = runs.stored(store, run=name, costs=True)
        except CheckpointError as error:
            self.progress(f"The bucket cannot be read: {error}")
            kept = runs.Stored()
        run = watch.choose(runs.join(seen.instances, kept), name)
        if run.limits.budget_usd is None:
            return run
        beside = shelved.take(self.site.clouds(), kinds=[kind for kind in Kind if kind.bills])
        for sentence in beside.unanswered().values():
            self.progress(sentence)
        return dataclasses.replace(run, belongings=tuple(beside.of_run(name)))

    def records(self, instance: Instance) -> Iterator[Mapping[str, Any]]:
        """Yield what the machine's stages do."""
        return watch.progress(instance, self.site.key())

    def how_it_ended(self, whose: str, instance: Instance, state: str) -> str:
        """Return how the run or node ended."""
        return watch.how_it_ended(whose, instance, self.site.key(), state)

    def last_checkpoint(self, name: str) -> Manifest | None:
        """Return the newest checkpoint whose every object is in the bucket."""
        store = self.site.store()
        return checkpoints.latest_whole_manifest(store, name) if store else None

    def launch(self, options: Mapping[str, Any]) -> None:
        """Launch in a process of its own, whose output is told line by line."""
        self.play("launch", options, tell=self.progress)

    def end(self, order: ending.Order) -> Change:
        """End machines; those of all clouds are asked, whatever the launch was limited to."""
        return end.end(dataclasses.replace(self.site, provider=None), order, progress=self.progress)
