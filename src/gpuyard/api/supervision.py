"""One run as a supervisor watches it: how it stands, what that means, and what is done about it.

Every look begins with what the clouds list and what the bucket holds, and every act can be repeated: it is written
into the bucket before it is begun, and ends with nothing but another look. So a supervisor may be killed at any moment,
and the next one goes on from what it sees.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpuyard import pace
from gpuyard.api import follow
from gpuyard.api.follow import End, Follow
from gpuyard.errors import CheckpointError, GpuyardError
from gpuyard.formats.manifest import timestamp
from gpuyard.formats.supervision import Supervision
from gpuyard.providers.base import OWN, Instance, Progress, State
from gpuyard.remedies import remedy
from gpuyard.renting import ending, limits, machine, watch
from gpuyard.renting.claim import Lease
from gpuyard.renting.runs import Node, Run
from gpuyard.renting.survey import Survey

MISSES = 2
"""How often in a row a machine is not to be seen before it counts as lost, when nothing else says so."""
FULL_LOOK_S = 15.0
"""How often the bucket and the machines are asked while the clouds list what they listed before (seconds)."""
PATIENCE_S = 60.0
"""How long a machine may be without stages before they are started: another command may be about to do that."""
LONGEST_PAUSE_S = 300.0
"""The longest pause between two tries of what has failed."""
_FIRST_PAUSE_S = 10.0
_GAP_S = 60.0
_RENEW_LOOK_S = 2.0
_ENDED = (*watch.AS_ASKED, "failed")


class World(follow.World, Protocol):
    """The ways to a run that supervising needs beyond following it; tests bring their own."""

    def look(self, name: str, seen: Survey) -> Look:
        """Return the run as clouds, bucket and machines show it. Raises :class:`GpuyardError`."""

    def status(self, instance: Instance) -> str:
        """Return the state of a machine's stages, ``unreachable`` where it gives no answer."""

    def end_returned(self, name: str, returned: Instance) -> None:
        """End a machine that has come back beside its successor. Raises :class:`GpuyardError` when it is kept."""

    def supervision(self, name: str) -> Supervision:
        """Return how the run is supervised. Raises :class:`CheckpointError`."""

    def write(self, name: str, supervision: Supervision) -> None:
        """Write that into the bucket. Raises :class:`CheckpointError`."""

    def tell(self, run: str, alert: str, text: str, *, warning: bool) -> None:
        """Tell people of the run."""


@dataclass(frozen=True, slots=True)
class Look:
    """A run as it was seen.

    ``unanswered`` are the clouds that did not answer. ``signs`` says by node what changes with every sign of life that
    the bucket shows: its heartbeat and its newest checkpoint.
    """

    run: Run
    unanswered: frozenset[str] = frozenset()
    signs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a run is supervised. ``options`` are those of its launches, as a play takes them.

    ``shutdown``: the rental is to end with the run. ``stage``: it alone is to run. ``None`` for both: as was said
    before. After ``losses_before_on_demand`` losses its machines are rented on demand. A machine that has given signs
    of life and gives none for ``silent_s`` seconds is given up, though its cloud calls it running; 0: never.
    """

    shutdown: bool | None = None
    stage: str | None = None
    losses_before_on_demand: int = 3
    silent_s: float = 600.0
    options: Mapping[str, Any] = field(default_factory=dict)


class Watch:
    """Looks at one run and does what is to be done, as long as it has the run's lease."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        world: World,
        lease: Lease,
        progress: Progress,
        clock: pace.Clock | None = None,
    ) -> None:
        self.name = name
        self.over = ""  # why the run needs no supervisor any more
        self.failed = False
        self._rules, self._world, self._lease = rules, world, lease
        self._progress, self._clock = progress, clock or pace.Clock()
        self._record: Supervision | None = None
        self._complaint, self._complained = "", False
        self._waited = False  # whether another supervisor has had it
        self._listed: frozenset[tuple[tuple[str, str], State]] | None = None
        self._full_at = 0.0
        self._misses: dict[str, int] = {}
        self._standing: dict[str, tuple[str, float]] = {}  # by node: how it stands, and since when
        self._signs: dict[str, str] = {}
        self._noted_at = 0.0
        self._alive_at: dict[str, float] = {}  # by node: when its machine of now gave a sign of life
        self._machines: dict[str, Instance] = {}  # by node: the last one that was seen alive
        self._returned: frozenset[tuple[str, str]] = frozenset()
        self._tries = 0
        self._not_before = 0.0

    def step(self, seen: Survey) -> None:
        """Look once, and do what is to be done. Whatever goes wrong is told, and tried again later."""
        self._complained = False
        try:
            if whose := self._lease.take():
                self._record, self._waited = None, True
                self._complain(f"{whose} supervises run {self.name}; it is left to that one as long as it does.")
                return
            if self._record is None:
                self._begin()
            if self.over or not self._due(seen):
                return
            with self._keeping_the_lease():
                self._act(self._world.look(self.name, seen))
            if not self._complained:
                self._complaint = ""
        except GpuyardError as error:
            self._complain(str(error))
        finally:
            if self.over:
                self._lease.drop()

    def leave(self) -> None:
        """Let another supervisor have the run at once."""
        self._lease.drop()

    # -- what is known ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take the run over as the supervisor before has left it."""
        record = self._world.supervision(self.name)
        shutdown = record.shutdown if self._rules.shutdown is None else self._rules.shutdown
        stage = record.stage if self._rules.stage is None else self._rules.stage
        self._record = dataclasses.replace(record, shutdown=shutdown, stage=stage)
        if record.state == "ended":
            if self._waited:
                self.over = record.outcome or "it has ended"
                return
            # It was named once more, so it may have been launched again.
            self._record = dataclasses.replace(self._record, state="watching", outcome="")
        self._put(self._record)
        self._progress(f"Run {self.name} is supervised from here.")
        # What was seen before somebody else had it says nothing of now.
        self._listed, self._returned = None, frozenset()
        self._tries, self._not_before = 0, 0.0
        for seen in (self._misses, self._standing, self._signs, self._alive_at, self._machines):
            seen.clear()

    @property
    def record(self) -> Supervision:
        """What is known of the supervision; it is there as soon as the lease is."""
        assert self._record is not None
        return self._record

    def _write(self, **changes: Any) -> None:
        """Write down what has changed. Raises :class:`GpuyardError` when the run is not this supervisor's any more."""
        self._check_still_ours()
        self._put(dataclasses.replace(self.record, **changes))

    def _put(self, record: Supervision) -> None:
        self._record = dataclasses.replace(record, controller=socket.gethostname(), seen=timestamp())
        self._world.write(self.name, self._record)

    def _check_still_ours(self) -> None:
        """Raise :class:`GpuyardError` when another supervisor may have the run, or a teardown has it."""
        if not self._lease.held:
            raise GpuyardError(
                f"The bucket could not be told in time who supervises run {self.name}; it is looked again."
            )
        if self._world.supervision(self.name).state == "ended":
            self.over = "another command has ended it"
            raise GpuyardError(f"Run {self.name} is ended by another command, so it needs no supervisor any more.")

    def _complain(self, text: str) -> None:
        """Tell what hinders, once as long as it stays the same."""
        self._complained = True
        if text != self._complaint:
            self._complaint = text
            self._progress(text)

    def _tell(self, key: str, alert: str, text: str, *, warning: bool = False) -> None:
        """Tell people something once, also when another supervisor goes on: that it is told is written first."""
        if key not in self.record.told:
            self._write(told=(*self.record.told, key))
            self._progress(text)
            self._world.tell(self.name, alert, text, warning=warning)

    def _due(self, seen: Survey) -> bool:
        """Whether there is something to look at: a change at the clouds, or time has passed."""
        now = self._clock.now()
        listed = frozenset(
            (one.place, one.state) for one in seen.instances if one.ref is not None and one.ref.run == self.name
        )
        calm = listed == self._listed and not self._misses and all(state is State.RUNNING for _, state in listed)
        if calm and listed and now - self._full_at < FULL_LOOK_S:
            return False
        self._listed, self._full_at = listed, now
        return True

    def _is_pausing(self) -> bool:
        """Whether what was tried last is not to be tried again yet."""
        return self._clock.now() < self._not_before

    @contextmanager
    def _keeping_the_lease(self) -> Iterator[None]:
        """Write the lease again while something is done that takes minutes."""
        through = threading.Event()

        def renew() -> None:
            while not through.wait(_RENEW_LOOK_S):
                with suppress(CheckpointError):
                    self._lease.renew()

        renewing = threading.Thread(target=renew, name=f"lease of {self.name}", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            through.set()
            renewing.join()

    # -- what it means ----------------------------------------------------------------------------------------------

    def _act(self, look: Look) -> None:
        run, now = look.run, self._clock.date()
        states = {node.name: self._stands(node) for node in run.nodes}
        self._note_signs(look, states)
        if self._mind_the_limits(run, now):
            return
        # A machine that never began and went back looks the same while another one is being rented.
        ended_by_user = run.record is not None and run.record.outcome == "cancelled"
        if all(state == "cancelled" for state in states.values()) and (ended_by_user or self.record.state != "renting"):
            self._end_watching(run, "it was torn down", f"Run {self.name} was torn down, so it needs no supervisor.")
            return
        if run.machine is None and run.record is not None and run.record.over == "idle":
            why = "its machine has ended its own rental, since nobody needed it"
            self._end_watching(run, why, f"Run {self.name} needs no supervisor: {why}.")
            return
        if returned := self._come_back(run):
            if not self._is_pausing():
                with self._retried(f"returned:{returned.id}", f"Run {self.name} has a machine too many."):
                    self._world.end_returned(self.name, returned)
            return
        at_work = any(
            state in ("running", "waiting", "pending", "not-started", "unreachable") for state in states.values()
        )
        if all(state in _ENDED for state in states.values()) or ("failed" in states.values() and not at_work):
            if run.machine is not None:
                self._goes_on(run)  # it may have ended before anybody saw it at work
            self._conclude(run, states)
            return
        self._mind_the_losses(look, states)

    def _mind_the_losses(self, look: Look, states: Mapping[str, str]) -> None:
        """Rent again what is lost, start what does not run, and hand over what waits."""
        run = look.run
        gone = ("preempted", "interrupted", "cancelled")
        missing = [node for node in run.nodes if node.machine is None and states[node.name] in gone]
        for name in {*self._misses} - {node.name for node in missing}:
            del self._misses[name]
        lost = [node for node in missing if self._is_lost(look, node)]
        if "failed" in states.values():
            return  # what goes on beside it is waited for, and then it has failed
        if lost:
            self._rent_again(look, lost)
            return
        silent = [node for node in run.nodes if node.machine and self._is_silent(node, states[node.name])]
        if silent and not self._is_pausing():
            self._give_up(look, silent)
        if silent:
            return
        if missing:
            return
        waiting = [node for node in run.nodes if states[node.name] == "waiting"]
        idle = any(self._has_stages_to_start(node, states[node.name]) for node in run.nodes)
        if waiting and run.machine is not None and not self._is_pausing():
            pool = str(run.stages.get(waiting[0].name, {}).get("waits_for") or "")
            sequence = run.manifest.sequence if run.manifest else 0
            with self._retried(f"hand-over:{sequence}", f"Run {self.name} waits for a machine of another pool."):
                request = Follow(self.name, options=self._options())
                follow.hand_over(self._world, request, run, run.machine, pool, self._progress)
        elif idle and not self._is_pausing():
            self._start(look)
        elif stopped := [node for node in run.nodes if states[node.name] == "stopped"]:
            machines = ", ".join(machine.describe(node.machine) for node in stopped if node.machine)
            self._complain(f"Run {self.name} is stopped ({machines}); it is left so until somebody starts it.")
        elif all(state in ("running", *_ENDED) for state in states.values()):
            self._goes_on(run)
            self._tries, self._not_before = 0, 0.0

    def _stands(self, node: Node) -> str:
        """Return how a node stands: what its machine says, else what its cloud says, else what the bucket says."""
        answer = str(node.stages.get("state") or "")
        if node.machine is None:
            return node.state
        if answer and answer != "unreachable":
            return answer
        if answer and node.outcome:
            return "finished" if node.outcome == "done" else "failed"
        return answer or str(node.machine.state)

    def _note_signs(self, look: Look, states: Mapping[str, str]) -> None:
        """Remember since when each node stands as it does, and when its machine last gave a sign of life."""
        now = self._clock.now()
        if now - self._noted_at > _GAP_S:
            # Nobody has looked meanwhile, so that nothing was seen says nothing.
            self._alive_at = dict.fromkeys(self._alive_at, now)
        self._noted_at = now
        for node in look.run.nodes:
            state = states[node.name]
            if self._standing.get(node.name, ("", 0.0))[0] != state:
                self._standing[node.name] = state, now
            if node.machine is None:
                self._alive_at.pop(node.name, None)
                continue
            before = self._machines.get(node.name)
            if before is None or before.place != node.machine.place:
                self._alive_at.pop(node.name, None)
            self._machines[node.name] = node.machine
            sign = look.signs.get(node.name, "")
            answers = bool(node.stages) and node.stages.get("state") != "unreachable"
            if answers or (sign and sign != self._signs.get(node.name)):
                self._alive_at[node.name] = now
            self._signs[node.name] = sign

    def _is_lost(self, look: Look, node: Node) -> bool:
        """Tell whether a node's machine is gone: two sources say so, or two looks in a row.

        A cloud that does not answer says nothing, and a machine that still answers is not gone: it may be publishing
        its last checkpoint.
        """
        if self._is_unseen(look, node):
            self._complain(
                f"{machine.whose(self.name, node.name)} is not seen, since {', '.join(sorted(look.unanswered))} does "
                "not answer: that is not known to be a loss."
            )
            return False
        known = next((one for one in node.leftovers if one.ssh_host), self._machines.get(node.name))
        silent = False
        if known is not None and known.ssh_host:
            silent = self._world.status(known) == "unreachable"
            if not silent:
                self._misses[node.name] = 0
                return False
        self._misses[node.name] = self._misses.get(node.name, 0) + 1
        return silent or self._misses[node.name] >= MISSES

    def _is_unseen(self, look: Look, node: Node) -> bool:
        """Tell whether the node may have a machine at a cloud that did not answer."""
        if not look.unanswered:
            return False
        places = [one.provider for one in node.leftovers]
        places += [one.provider for one in node.entries if not one.ended][-1:]
        if (before := self._machines.get(node.name)) is not None:
            places.append(before.provider)
        return not places or bool(look.unanswered & {*places})

    def _is_silent(self, node: Node, state: str) -> bool:
        """Tell whether a machine that was alive has given no sign of life for too long."""
        if node.machine is None or node.machine.provider == OWN or state not in ("unreachable", "unknown"):
            return False
        if state == "unknown" and self._world.status(node.machine) != "unreachable":
            self._alive_at[node.name] = self._clock.now()  # only its cloud does not know how it is
        last = self._alive_at.get(node.name)
        if last is None:
            self._complain(
                f"{machine.whose(self.name, node.name)} does not answer here and has given no other sign of life yet: "
                "without the SSH key of whoever launched it, or a bucket that it publishes to, nothing is known of it."
            )
            return False
        return bool(self._rules.silent_s) and self._clock.now() - last >= self._rules.silent_s

    def _has_stages_to_start(self, node: Node, state: str) -> bool:
        """Tell whether a machine is there and nobody starts its stages."""
        if node.machine is None or state not in ("not-started", "interrupted", "pending"):
            return False
        since = self._standing[node.name][1]
        return self.record.state == "renting" or self._clock.now() - since >= PATIENCE_S

    def _come_back(self, run: Run) -> Instance | None:
        """Return the machine of a node that has got another one meanwhile, when that is seen the second time."""
        for node in run.nodes:
            labels = {one.ref.node for one in node.instances if one.ref and one.alive}
            for label in sorted(labels):
                living = [one for one in node.instances if one.ref and one.ref.node == label and one.alive]
                if len(living) < 2:
                    continue
                places = frozenset(one.place for one in living)
                if places != self._returned:
                    self._returned = places
                    self._full_at = float("-inf")
                    return None
                return self._too_many(living)
        self._returned = frozenset()
        return None

    def _too_many(self, living: Sequence[Instance]) -> Instance:
        """Return the machine that goes: of those whose stages are at work, the newest stays."""
        ordered = sorted(living, key=lambda one: (one.created_at or 0.0, one.provider, one.id))
        at_work = [one for one in ordered if self._world.status(one) not in ("unreachable", "not-started")]
        stays = (at_work or ordered)[-1]
        goes = next(one for one in ordered if one.place != stays.place)
        key = f"returned:{goes.provider}/{goes.id}"
        text = (
            f"{machine.describe(goes)} is there beside {machine.describe(stays)}, and both bill: the first one is "
            f"ended, when its work is saved."
        )
        self._tell(key, "returned", f"Run {self.name} has a machine too many. {text}", warning=True)
        return goes

    # -- what is done -----------------------------------------------------------------------------------------------

    def _mind_the_limits(self, run: Run, now: float) -> bool:
        """End the run when its lease or its budget is over, and tell when most of the budget is spent."""
        budget = run.limits.budget_usd
        if run.instances and (why := limits.over(run, now)):
            if self._is_pausing():
                return True
            with self._retried("limit", f"Run {self.name} is past its limits: {why}."):
                done = self._world.end(ending.Order(self.name))
                self._end_watching(run, why, "\n".join([f"Run {self.name} was ended: {why}.", *done.text]))
            return True
        if why := limits.over(run, now):
            self._end_watching(run, why, f"Run {self.name} has no machine and gets none any more: {why}.")
            return True
        if words := limits.nearly_over(run, now):
            self._tell(f"budget:{budget:g}", "budget", words, warning=True)
        return False

    def _conclude(self, run: Run, states: Mapping[str, str]) -> None:
        """Tell how the run has ended, and end its rental where that was asked for."""
        if self._is_pausing():
            return
        ends = [(node.name, node.machine, End(states[node.name])) for node in run.nodes if node.machine]
        failed = "failed" in states.values()
        words = f"Run {self.name} has {'failed' if failed else 'finished'}."
        if ends:
            try:
                _, text = follow.conclude(self._world, run, ends, ends_the_rental=self.record.shutdown)
                words = f"{words} {text}".rstrip()
            except GpuyardError as error:
                words = str(error)
        why = "failed" if failed else "finished"
        if self.record.shutdown and run.instances:
            with self._retried("end", f"Run {self.name} has ended, and its machine is not gone."):
                done = self._world.end(ending.Order(self.name, only="ended"))
                self._end_watching(run, why, "\n".join([words, *done.text]), failed=failed)
            return
        self._end_watching(run, why, words, failed=failed)

    def _end_watching(self, run: Run, why: str, text: str, *, failed: bool = False) -> None:
        alert = "failure" if failed else "end"
        sequence = run.manifest.sequence if run.manifest else 0
        self._tell(f"{alert}:{sequence}", alert, text, warning=failed)
        self._write(state="ended", outcome=why)
        self.failed = failed
        self.over = why

    def _rent_again(self, look: Look, lost: Sequence[Node]) -> None:
        """Have another machine for each node that has lost its own, and the stages go on there."""
        gone = [one for node in lost for one in self._last_machines(node)]
        names = [f"{provider}/{number}" for provider, number in gone]
        new = [name for name in names if name not in self.record.losses]
        if new or self.record.state != "renting":
            whose = " and ".join(machine.whose(self.name, node.name) for node in lost)
            what = f" ({', '.join(f'{provider} {number}' for provider, number in gone)})" if gone else ""
            self._tell(
                f"loss:{'+'.join(new) or len(self.record.losses)}",
                "loss",
                f"{whose} has lost its machine{what}: another one is rented, and goes on from the newest checkpoint.",
                warning=True,
            )
            self._write(state="renting", losses=(*self.record.losses, *new))
        if not self._is_pausing():
            self._launch(look, gone)

    def _give_up(self, look: Look, silent: Sequence[Node]) -> None:
        """End machines that give no sign of life, so that others can be rented in their place."""
        places = frozenset(node.machine.place for node in silent if node.machine)
        minutes = self._rules.silent_s / 60
        words = ", ".join(machine.describe(node.machine) for node in silent if node.machine)
        with self._retried("silent", f"Run {self.name}: {words} gives no sign of life."):
            whole = (
                [self._world.last_checkpoint(self.name)]
                if len(look.run.nodes) == 1
                else [node.manifest for node in silent]
            )
            if None in whole:
                raise GpuyardError(
                    f"Run {self.name}: {words} has given no sign of life for {minutes:g} minutes, and the bucket holds "
                    "no whole checkpoint, so its disk may hold all there is: it is kept, and bills."
                )
            self._write(state="renting")
            self._progress(f"Run {self.name}: {words} has given no sign of life for {minutes:g} minutes, and goes.")
            self._world.end(ending.Order(self.name, places=places, lose=True))

    def _last_machines(self, node: Node) -> list[tuple[str, str]]:
        """Return the machine that a node has lost, as far as anybody knows it."""
        if node.leftovers:
            return [one.place for one in node.leftovers]
        if (before := self._machines.get(node.name)) is not None:
            return [before.place]
        return [one.place for one in node.entries if not one.ended_by_us][-1:]

    def _start(self, look: Look) -> None:
        """Have the stages started on machines that are there: a launch was cut off, or a runner has ended."""
        if self.record.state != "renting":
            self._write(state="renting")
        self._progress(f"Run {self.name} has a machine on which nothing runs: it is brought into shape and started.")
        self._launch(look, [])

    def _launch(self, look: Look, gone: Sequence[tuple[str, str]]) -> None:
        answering = [name for name in look.run.clouds if name not in look.unanswered]
        first = [provider for provider, _ in gone if provider in answering][:1]
        # A launch asks all clouds that it may rent at, and one that does not answer would end it.
        rest = sorted({*answering} - {*first}) if look.unanswered else [""]
        ways = [*first, *rest] if gone else [""]
        options = {**self._options(), "run": self.name, "provider": ways[self._tries % len(ways)]}
        if len(self.record.losses) >= self._rules.losses_before_on_demand > 0:
            options["market"] = "on-demand"
        if self.record.stage:
            options["stage"] = self.record.stage
        self._check_still_ours()
        # Nobody else follows it, and a new machine that cannot be brought into shape goes back.
        self._world.launch({**options, "gpuyard_mode": "resume", "gpuyard_hand_over": True})
        self._tries += 1
        if self._tries >= len(ways):
            self._pause(self._tries - len(ways))
        if self._tries > len(ways):
            latest = self.record.losses[-1] if self.record.losses else "start"
            self._tell(
                f"stuck:{latest}",
                "not-resumed",
                f"Run {self.name} does not go on yet: {self._tries} launches have not brought it to work. It is tried "
                f"again and again; `{remedy('status', run=self.name)}` shows what bills.",
                warning=True,
            )
        self._full_at = float("-inf")

    def _options(self) -> dict[str, Any]:
        return {**self._rules.options, "follow": True, "shutdown": True}

    def _goes_on(self, run: Run) -> None:
        """Note that the stages have been started, and tell it after a loss."""
        if self.record.state == "renting":
            there = ", ".join(machine.describe(one) for one in run.instances if one.alive)
            if self.record.losses:
                self._tell(f"resume:{self.record.losses[-1]}", "resume", f"Run {self.name} goes on, on {there}.")
            self._write(state="watching")

    @contextmanager
    def _retried(self, key: str, what: str) -> Iterator[None]:
        """Tell people once of what cannot be done, and have it tried again after a pause that grows."""
        try:
            yield
        except GpuyardError as error:
            self._tell(f"{key}-kept", "kept", f"{what} {error}", warning=True)
            self._pause(self._tries)
            self._tries += 1
        else:
            self._tries = 0
            self._full_at = float("-inf")

    def _pause(self, tries: int) -> None:
        if tries >= 0:
            pause_s = min(LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries, 10))
            self._not_before = self._clock.now() + pause_s
