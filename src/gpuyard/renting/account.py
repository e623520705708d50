"""What a run has taken and cost, against what was planned: reckoned from the ledger, the journal and the workload.

Dollars are the ledger's, to the cent. What stages took is what the journal in the newest checkpoint says: of an attempt
that a lost machine cut off it knows the time until that machine's last checkpoint, a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import Store
from gpuyard.box.checkpoints.listing import set_prefix
from gpuyard.cost import NOTHING, Span
from gpuyard.errors import CheckpointError
from gpuyard.formats import journal
from gpuyard.formats.ledger import Entry
from gpuyard.formats.manifest import JOURNAL
from gpuyard.renting.runs import Node, Run
from gpuyard.workload import Workload

_UP = ("rented", "running")
_OVER = ("lost", "gone", "ended")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A stage from its start to its end, in seconds since 1970. ``place`` is the machine, where it is known."""

    node: str
    iteration: int
    stage: str
    number: int
    began: float
    ended: float
    outcome: str  # "cut off" where no end is recorded, "running" for one that goes on
    place: tuple[str, str] | None = None

    @property
    def hours(self) -> float:
        """How long it took."""
        return max(0.0, self.ended - self.began) / 3600


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the run with what the ledger says; times are in seconds since 1970."""

    entry: Entry
    until: float  # the moment of the report
    stage_hours: float

    @property
    def ended(self) -> float | None:
        """When it ended, ``None`` while it may still bill."""
        return self.entry.changes[-1].time if self.entry.ended else None

    @property
    def lost(self) -> float | None:
        """When it was lost, ``None`` when it was not."""
        return next((one.time for one in self.entry.changes if one.what in ("lost", "gone")), None)

    @property
    def hours(self) -> float:
        """For how many hours it was up, or on its way."""
        return sum(end - begin for begin, end, what in spans(self.entry, self.until) if what in _UP) / 3600

    @property
    def resting_hours(self) -> float:
        """For how many hours it was there without being up: stopped by a command, or lost and not yet ended."""
        resting = ("stopped", "lost")
        return sum(end - begin for begin, end, what in spans(self.entry, self.until) if what in resting) / 3600

    @property
    def idle_hours(self) -> float:
        """For how many of its hours no stage ran."""
        return max(0.0, self.hours - self.stage_hours)

    @property
    def usd(self) -> float:
        """What it has cost."""
        return self.entry.cost_usd(self.until)


@dataclass(frozen=True, slots=True)
class StageLine:
    """What a stage was planned to take and took, all iterations together; ``None``: the workload does not say."""

    name: str
    planned_hours: Span | None
    planned_usd: Span | None
    hours: float
    usd: float
    attempts: int
    cut_off: int
    done: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Account:
    """A run, reckoned. ``planned`` are hours and dollars with set-up; ``unplanned`` the stages without hours."""

    run: str
    workload: str
    state: str
    until: float
    machines: list[Machine]
    attempts: list[Attempt]
    stages: list[StageLine]
    planned: tuple[Span, Span]
    unplanned: list[str]
    published_bytes: int
    checkpoints: int
    notes: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float:
        """For how many hours machines were up, added up."""
        return sum(one.hours for one in self.machines)

    @property
    def usd(self) -> float:
        """What all machines have cost: what the ledger says, to the cent."""
        return sum(one.usd for one in self.machines)

    @property
    def stage_usd(self) -> float:
        """What the machines cost while stages ran."""
        return sum(one.usd for one in self.stages)

    @property
    def idle_share(self) -> float:
        """The part of the machines' hours in which no stage ran, from 0 to 1."""
        return sum(one.idle_hours for one in self.machines) / self.hours if self.hours else 0.0

    @property
    def losses(self) -> int:
        """How many machines were lost."""
        return sum(one.lost is not None for one in self.machines)

    @property
    def restarts(self) -> int:
        """How often a stage began that had begun before."""
        return max(0, len(self.attempts) - len({(one.node, one.iteration, one.stage) for one in self.attempts}))


def spans(entry: Entry, until: float) -> list[tuple[float, float, str]]:
    """Return from when to when a machine was in which state, up to ``until``."""
    ends = [*(change.time for change in entry.changes[1:]), until]
    return [
        (change.time, max(change.time, min(end, until)), change.what)
        for change, end in zip(entry.changes, ends, strict=True)
    ]


def cost_between(entry: Entry, begin: float, end: float) -> float:
    """Return what a machine has cost from ``begin`` to ``end``, in US dollars."""
    prices = [change.price_per_hour_usd for change in entry.changes]
    seconds = [max(0.0, until - max(since, begin)) for since, until, _ in spans(entry, end)]
    return sum(price * part / 3600 for price, part in zip(prices, seconds, strict=True))


def of_run(run: Run, workload: Workload | None, store: Store | None, now: float) -> Account:
    """Return the account of a run at the moment ``now``. What cannot be read is told in its ``notes``."""
    notes: list[str] = []
    entries: list[Entry] = []
    attempts: list[Attempt] = []
    sent: list[int] = []
    for node in run.nodes:
        own = node.accounts(now)
        events = _events(node, store, notes)
        entries += own
        attempts += attempts_in(events, node, own, now)
        sent += _sent(node, events, store)
    by_place = {entry.place: entry for entry in entries}
    machines = [
        Machine(entry, now, sum(one.hours for one in attempts if one.place == entry.place))
        for entry in sorted(entries, key=lambda one: one.began_at)
    ]
    if not entries:
        notes.append("Nothing is written of its machines, so hours and dollars are not known.")
    if workload is None:
        notes.append("The bucket does not say what it is made of, so nothing was planned that could be compared.")
    stages = _stages(attempts, by_place, workload, entries[0] if entries else None)
    setup = Span(workload.setup_hours.expected, workload.setup_hours.worst) if workload and entries else NOTHING
    price = entries[0].price_per_hour_usd if entries else 0.0
    planned = (
        sum((one.planned_hours for one in stages if one.planned_hours), setup),
        sum((one.planned_usd for one in stages if one.planned_usd), setup * price),
    )
    return Account(
        run.name,
        run.workload,
        run.state,
        now,
        machines,
        sorted(attempts, key=lambda one: one.began),
        stages,
        planned,
        [stage.name for stage in workload.stages if stage.hours is None] if workload else [],
        sum(sent),
        len(sent),
        notes,
    )


def attempts_in(events: Sequence[Mapping[str, Any]], node: Node, entries: Sequence[Entry], now: float) -> list[Attempt]:
    """Return the attempts of a node's journal, each with the machine that it ran on, as far as that is known."""
    found: list[Attempt] = []
    begun: tuple[Mapping[str, Any], float] | None = None
    last = 0.0

    def close(end: float, outcome: str) -> None:
        nonlocal begun
        if begun is None:
            return
        event, began = begun
        begun = None
        found.append(
            Attempt(
                node.name,
                int(event.get("iteration") or 0),
                str(event.get("stage")),
                int(event.get("attempt") or 1),
                began,
                max(began, end),
                outcome,
                _machine_at(entries, began),
            )
        )

    for event in events:
        when = _moment(event)
        if event["event"] in ("stage-start", journal.BEGIN):
            close(last, "cut off")
        if event["event"] == "stage-start":
            began_ns = event.get("began_ns")
            begun = (event, began_ns / 1e9 if isinstance(began_ns, int) else when)
        elif event["event"] == "stage-end":
            close(when, str(event.get("outcome")))
        last = max(last, when)
    lives = begun is not None and any(one.place == _machine_at(entries, begun[1]) for one in node.instances if one.runs)
    # A machine that lives has gone on since its last checkpoint.
    close(now if lives else last, "running" if lives else "cut off")
    return found


def _machine_at(entries: Iterable[Entry], moment: float) -> tuple[str, str] | None:
    """Return the machine on which a stage began then: of two, the one that was there first has not been left yet."""
    for entry in sorted(entries, key=lambda one: one.began_at):
        over = next((change.time for change in entry.changes if change.what in _OVER), None)
        # What a machine has begun after it was last seen alive was begun all the same, and on no other one.
        if entry.began_at <= moment and (over is None or moment <= over):
            return entry.place
    before = [entry for entry in entries if entry.began_at <= moment]
    return max(before, key=lambda one: one.began_at).place if before else None


def _stages(
    attempts: Sequence[Attempt],
    entries: Mapping[tuple[str, str], Entry],
    workload: Workload | None,
    first: Entry | None,
) -> list[StageLine]:
    names = [stage.name for stage in workload.stages] if workload else []
    names += [name for name in dict.fromkeys(one.stage for one in attempts) if name not in names]
    lines = []
    for name in names:
        own = [one for one in attempts if one.stage == name]
        hours = _planned(workload, name, first.gpu_name if first else "")
        lines.append(
            StageLine(
                name,
                hours,
                hours * first.price_per_hour_usd if hours and first else None,
                sum(one.hours for one in own),
                sum(cost_between(entries[one.place], one.began, one.ended) for one in own if one.place),
                len(own),
                sum(one.outcome == "cut off" for one in own),
                len({one.iteration for one in own if one.outcome == "done"}),
                sum(stage == name for _, stage in workload.order) if workload else 0,
            )
        )
    return lines


def _planned(workload: Workload | None, name: str, gpu_name: str) -> Span | None:
    stage = next((one for one in workload.stages if one.name == name), None) if workload else None
    if workload is None or stage is None or stage.hours is None:
        return None
    said = [stage.hours_in(iteration, gpu_name) for iteration, other in workload.order if other == name]
    return sum((Span(one.expected, one.worst) for one in said if one), NOTHING)


def _events(node: Node, store: Store | None, notes: list[str]) -> list[Mapping[str, Any]]:
    """Return the journal of a node as its newest checkpoint has it."""
    entry = next((one for one in node.manifest.files if one.path == JOURNAL), None) if node.manifest else None
    if entry is None or store is None:
        notes.append(
            f"There is no checkpoint with a journal of node {node.name}, so what its stages took is not known."
        )
        return []
    try:
        return list(journal.parse(store.get(entry.key)))
    except CheckpointError as error:
        notes.append(f"What the stages of node {node.name} took is not known: {error}")
        return []


def _sent(node: Node, events: Sequence[Mapping[str, Any]], store: Store | None) -> list[int]:
    """Return how many bytes were sent with each checkpoint of a node.

    A journal does not hold the publication of the set that it lies in, so what the bucket still has counts by its size.
    """
    found = {int(one["sequence"]): int(one.get("bytes_sent") or 0) for one in events if one["event"] == "published"}
    if store is not None and node.manifest is not None:
        with suppress(CheckpointError):
            for manifest in checkpoints.manifests(store, node.manifest.run):
                own = set_prefix(manifest.run, manifest.sequence)
                new = sum(entry.size for entry in manifest.files if entry.key.startswith(own))
                found.setdefault(manifest.sequence, new)
    return list(found.values())


def _moment(event: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return 0.0
