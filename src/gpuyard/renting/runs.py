"""Runs as they are: the machines that the clouds list, joined with what the bucket knows.

Neither side is enough alone. A run whose machine was taken away exists only in the bucket, one that has just been
rented only at its provider; nothing about either is kept on the controller.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gpuyard.box.checkpoints import (
    LocalStore,
    Manifest,
    RunRecord,
    Store,
    answer_soon,
    clear_unfinished,
    latest_manifest,
    list_runs,
    open_store,
    read_record,
    write_record,
)
from gpuyard.config import BucketSettings
from gpuyard.errors import BucketError, CheckpointError, UnreadableManifestError
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.ledger import Entry
from gpuyard.formats.limits import Limits
from gpuyard.formats.location import Location
from gpuyard.providers.base import Instance, State
from gpuyard.providers.resources import Resource
from gpuyard.renting import ledger, limits
from gpuyard.renting.places import made_by, nodes_apart, own_place
from gpuyard.renting.shelved import HOURS_A_MONTH

_AT_ONCE = 8

# The state of a run whose nodes are in different states is the first of these that one of them is in.
_TELLING = (
    *("failed", "preempted", "interrupted", "unreachable", "stopped", "unknown"),
    *("running", "pending", "not-started", "idle", "cancelled", "finished"),
)


@dataclass(frozen=True, slots=True)
class Apart:
    """What the bucket holds in the place of its own that a node has, beside the run's."""

    record: RunRecord | None = None
    manifest: Manifest | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A place in a pool, with its machines (most alive first), what the bucket holds of it, and what it does.

    ``stages`` is the answer of :func:`gpuyard.renting.watch.status`; empty where the machine was not asked.
    """

    name: str
    instances: tuple[Instance, ...] = ()
    record: RunRecord | None = None
    manifest: Manifest | None = None
    entries: tuple[Entry, ...] = ()  # what the ledger says of its machines, those that are gone included
    clouds: frozenset[str] = frozenset()  # the clouds whose machines are all among ``instances``
    stages: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""  # why the record or the newest checkpoint in the bucket cannot be read, and what to do

    @property
    def machine(self) -> Instance | None:
        """The machine that the node has, ``None`` when it has none or only what is left of one."""
        return next((instance for instance in self.instances if instance.alive), None)

    @property
    def is_up(self) -> bool:
        """Whether it has a machine that can be asked what its stages do."""
        return self.machine is not None and self.machine.runs

    @property
    def leftovers(self) -> tuple[Instance, ...]:
        """Machines that were taken away or failed, and may still bill their disk."""
        return tuple(instance for instance in self.instances if not instance.alive)

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the newest checkpoint says of iteration, stage and outcome; empty without one."""
        return self.manifest.progress if self.manifest else {}

    @property
    def outcome(self) -> str | None:
        """``done`` or ``failed`` when its stages ended, as its record or its last checkpoint says, else ``None``."""
        if self.record and self.record.outcome in ("done", "failed"):
            return self.record.outcome
        return "done" if self.progress.get("finished") and self.progress.get("outcome") == "done" else None

    @property
    def state(self) -> str:
        """One word: ``finished``, ``failed``, its machine's state, ``preempted``, ``cancelled`` or ``interrupted``.

        Of a machine that was asked it is what its stages do: ``not-started``, ``running``, ``idle``, ``waiting``,
        ``interrupted``, ``failed`` or ``finished``; ``unreachable`` when it did not answer, and the bucket knows of no
        end.
        """
        said = str(self.stages.get("state") or "")
        if said and said != "unreachable":
            return said
        if self.outcome:
            return "finished" if self.outcome == "done" else "failed"
        if said:
            return said
        if self.machine:
            return "unreachable" if self.machine.silent else str(self.machine.state)
        if any(instance.state is State.PREEMPTED for instance in self.instances):
            return "preempted"
        if not (self.record or self.manifest) and self.entries and all(one.ended_by_us for one in self.entries):
            return "cancelled"
        return "cancelled" if self.record and self.record.outcome == "cancelled" else "interrupted"

    @property
    def resumable(self) -> bool:
        """Whether it has no machine, can go on from what the bucket holds, and was not torn down on purpose.

        A run that was torn down can go on, too, but only when it is named.
        """
        waits = self.machine is None and self.state in ("preempted", "interrupted")
        return waits and (self.manifest is not None or self.record is not None)

    @property
    def price_per_hour_usd(self) -> float:
        """What all its machines cost an hour as they are now."""
        return sum(instance.cost_now_per_hour_usd for instance in self.instances)

    def hours(self, now: float | None = None) -> float:
        """Return for how many hours its machines of now have been rented, added up."""
        moment = time.time() if now is None else now
        return sum(_age_h(instance, moment) for instance in self.instances)

    def cost_usd(self, now: float | None = None) -> float:
        """Return what its machines of now have cost, as their prices say; the provider's invoice counts, not this."""
        here = {instance.place for instance in self.instances}
        moment = time.time() if now is None else now
        return sum(one.cost_usd(moment) for one in self.accounts(moment) if one.place in here)

    def spent_usd(self, now: float | None = None) -> float:
        """Return what all its machines have cost, those included that are gone, as far as the ledger knows them."""
        moment = time.time() if now is None else now
        return sum(one.cost_usd(moment) for one in self.accounts(moment))

    def accounts(self, now: float) -> list[Entry]:
        """Return an entry for every machine, as it is now; of one that the ledger does not know, by its age."""
        here = {one.place: one for one in self.instances}
        known = {one.place: one for one in self.entries}
        known |= {place: ledger.entry_of(one, now) for place, one in here.items() if place not in known}
        ordered = sorted(known.values(), key=lambda one: one.began_at)
        # The newest checkpoint was made on the machine that was rented last.
        alive = min(now, ledger.alive_at(self.manifest))
        return [
            ledger.settled(one, here.get(one.place), alive if one is ordered[-1] else 0.0)
            if one.place in here or one.provider in self.clouds
            else one
            for one in ordered
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """A run: its machines (most alive first), what the bucket holds of it, and what its machines say that they do.

    ``record``, ``manifest`` and ``problem`` are of the run's own place in the bucket, ``apart`` of the nodes that have
    one of their own. ``stages`` is by node what :attr:`Node.stages` is.
    """

    name: str
    workload: str
    instances: tuple[Instance, ...] = ()
    record: RunRecord | None = None
    manifest: Manifest | None = None
    entries: tuple[Entry, ...] = ()
    clouds: frozenset[str] = frozenset()
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: str = ""
    apart: Mapping[str, Apart] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    belongings: tuple[Resource, ...] = ()  # its volumes and snapshots, where somebody has asked for them

    @property
    def takes_turns(self) -> bool:
        """Whether its pools have one node each, so that one box after another serves all of them as one node."""
        return self.record is not None and self.record.takes_turns

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes, by pool and number: those of which a machine, the ledger or the bucket knows, but at least one."""
        if self.takes_turns:
            return (self.node(FIRST_NODE),)
        names = {one.ref.node for one in self.instances if one.ref} | {one.node for one in self.entries}
        names |= self.apart.keys() | self.stages.keys()
        if self.manifest:
            names.add(made_by(self.manifest))
        return tuple(self.node(name) for name in sorted(names, key=_by_number) or [FIRST_NODE])

    def node(self, name: str) -> Node:
        """Return one of its nodes, which may have nothing yet."""
        apart = self.apart.get(name, Apart())
        # What lies at the run's own place is this node's when it has made it, or when nobody else can have.
        shared = made_by(self.manifest) == name if self.manifest else not self.apart
        record = self.record
        if apart.record and apart.record.outcome in ("done", "failed"):
            record = apart.record
        elif record and not shared and record.outcome in ("done", "failed"):
            record = replace(record, outcome=None)
        return Node(
            name,
            tuple(one for one in self.instances if self.takes_turns or one.ref is None or one.ref.node == name),
            record or apart.record,
            apart.manifest or (self.manifest if shared else None),
            tuple(one for one in self.entries if self.takes_turns or one.node == name),
            self.clouds,
            self.stages.get(name, {}),
            apart.problem or (self.problem if shared else ""),
        )

    @property
    def machine(self) -> Instance | None:
        """The first machine that it has, ``None`` when it has none or only what is left of some."""
        return next((instance for instance in self.instances if instance.alive), None)

    @property
    def lease_end(self) -> float | None:
        """Until when it is rented, in seconds since 1970, ``None`` for no end; the bucket comes before the labels."""
        said = [one.ref.lease_end for one in self.instances if one.ref and one.ref.lease_end is not None]
        return self.limits.lease_end if self.limits != Limits() else max(said, default=None)

    @property
    def is_up(self) -> bool:
        """Whether it has a machine that can be asked what its stages do."""
        return any(node.is_up for node in self.nodes)

    @property
    def leftovers(self) -> tuple[Instance, ...]:
        """Machines that were taken away or failed, and may still bill their disk."""
        return tuple(instance for instance in self.instances if not instance.alive)

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the newest checkpoint at its own place says of iteration, stage and outcome; empty without one."""
        return self.manifest.progress if self.manifest else {}

    @property
    def outcome(self) -> str | None:
        """``done`` when all its nodes are, ``failed`` when one of them is, else ``None``."""
        outcomes = {node.outcome for node in self.nodes}
        return "failed" if "failed" in outcomes else "done" if outcomes == {"done"} else None

    @property
    def state(self) -> str:
        """One word, as :attr:`Node.state`; of several nodes the one that most needs somebody."""
        states = {node.state for node in self.nodes}
        return min(states, key=lambda state: _TELLING.index(state) if state in _TELLING else -1)

    @property
    def resumable(self) -> bool:
        """Whether one of its nodes is, as :attr:`Node.resumable`."""
        return any(node.resumable for node in self.nodes)

    @property
    def price_per_hour_usd(self) -> float:
        """What all its machines cost an hour as they are now."""
        return sum(node.price_per_hour_usd for node in self.nodes)

    def hours(self, now: float | None = None) -> float:
        """Return for how many hours its machines of now have been rented, added up."""
        return sum(node.hours(now) for node in self.nodes)

    def cost_usd(self, now: float | None = None) -> float:
        """Return what its machines of now have cost, as their prices say; the provider's invoice counts, not this."""
        return sum(node.cost_usd(now) for node in self.nodes)

    def spent_usd(self, now: float | None = None) -> float:
        """Return what all its machines have cost, those included that are gone, as far as the ledger knows them.

        What its ``belongings`` have cost is in it; of those that are gone nobody knows it any more.
        """
        moment = time.time() if now is None else now
        return sum(node.spent_usd(moment) for node in self.nodes) + sum(
            _kept_for_usd(one, moment) for one in self.belongings
        )


def _kept_for_usd(one: Resource, now: float) -> float:
    """Return what a volume or the like has cost since it was made; 0 where its cloud does not say price or time."""
    if not (one.price_per_month_usd and one.created_at):
        return 0.0
    return one.price_per_month_usd / HOURS_A_MONTH * max(0.0, now - one.created_at) / 3600


def _by_number(node: str) -> tuple[str, int, str]:
    pool, _, number = node.rpartition("-")
    return pool, int(number) if number.isdigit() else 0, node


def _age_h(instance: Instance, now: float) -> float:
    return max(0.0, now - instance.created_at) / 3600 if instance.created_at else 0.0


def open_bucket(settings: BucketSettings) -> Store | None:
    """Return the store that ``settings`` name, ``None`` for a run that keeps its checkpoints on the box only."""
    if not settings.location:
        return None
    return _opened(settings.location, frozenset(settings.keys.items()), os.getpid())


@functools.lru_cache(maxsize=8)
def _opened(place: Location, keys: frozenset[tuple[str, str]], process: int) -> Store:
    """Open each bucket once, since that costs more than to ask it, and its connections are kept.

    A process that was forked off opens its own: two must not speak through one connection.
    """
    return open_store(place, env=dict(keys))


def shared_bucket(settings: BucketSettings) -> Store | None:
    """Return the bucket that ``settings`` name where controllers and machines see the same, see :func:`shared`."""
    return shared(open_bucket(settings))


def shared(store: Store | None) -> Store | None:
    """Return the store where commands leave notes for each other, ``None`` when it is a folder of the machine's.

    ``file:///folder`` names a folder on the machine; only where the same folder is on this controller is it shared.
    """
    return None if isinstance(store, LocalStore) and not store.folder.is_dir() else store


def check_answers(store: Store | None) -> None:
    """Ask the bucket one small question.

    Raises :class:`gpuyard.errors.BucketError` when it fails, or has not answered in time.
    """
    if store is not None:
        answer_soon(store.folders, store.url)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a bucket knows of the runs, by their names; ``problems`` says whose checkpoints cannot be read, and why."""

    records: Mapping[str, RunRecord] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    entries: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    complaints: Sequence[str] = ()  # of what could not be read
    problems: Mapping[str, str] = field(default_factory=dict)  # by run: why it or its newest checkpoint cannot be read
    apart: Mapping[str, Mapping[str, Apart]] = field(default_factory=dict)  # by run and node
    limits: Mapping[str, Limits] = field(default_factory=dict)
    unlimited: Mapping[str, str] = field(default_factory=dict)  # by run: why its limits cannot be read


def stored(store: Store | None, *, run: str | None = None, costs: bool = False) -> Stored:
    """Return what ``store`` holds of all runs, or of one; what they have cost only when ``costs`` asks for it.

    A checkpoint that cannot be read is its run's problem only.

    Raises :class:`gpuyard.box.checkpoints.CheckpointError` when the bucket cannot be read.
    """
    if store is None:
        return Stored()
    records = {record.run: record for record in list_runs(store)}
    asked = [name for name in records if run in (None, name)]
    found = _manifests(store, asked)
    apart = _apart(store, asked)
    # A folder may hold nothing but notes of what was rented; only a record or a checkpoint makes it a run.
    begun = {name for name, record in records.items() if record.created or record.problem}
    bare = {name for name in asked if name not in begun and name not in found and name not in apart}
    records = {name: record for name, record in records.items() if name not in bare}
    problems = {name: record.problem for name, record in records.items() if record.problem}
    complaints: list[str] = []
    known = _limits(store, asked) if costs else {}
    unlimited = {name: limit for name, limit in known.items() if isinstance(limit, str)}
    complaints += unlimited.values()
    return Stored(
        records,
        {name: manifest for name, manifest in found.items() if isinstance(manifest, Manifest)},
        _entries(store, asked, complaints.append) if costs else {},
        tuple(complaints),
        problems | {name: str(error) for name, error in found.items() if isinstance(error, UnreadableManifestError)},
        apart,
        {name: limit for name, limit in known.items() if isinstance(limit, Limits)},
        unlimited,
    )


def join(machines: Iterable[Instance], kept: Stored, clouds: Iterable[str] = ()) -> list[Run]:
    """Return the runs that ``machines`` and the bucket know, by name. Machines that are not ours are left out.

    ``clouds`` are those whose machines are all there: what the ledger has of theirs and they do not list is gone.
    """
    asked = frozenset(clouds)
    owned: dict[str, list[Instance]] = {}
    for machine in machines:
        if machine.ref:
            owned.setdefault(machine.ref.run, []).append(machine)

    def build(name: str) -> Run:
        held = sorted(owned.get(name, []), key=lambda one: (not one.alive, not one.runs, one.id))
        record = kept.records.get(name)
        entries = tuple(kept.entries.get(name, ()))
        told = [one.ref.workload for one in held if one.ref]
        told += [record.workload if record else "", *(one.workload for one in entries)]
        workload = next(filter(None, told), "")
        return Run(
            name,
            workload,
            tuple(held),
            record,
            kept.manifests.get(name),
            entries,
            asked,
            problem=kept.problems.get(name, ""),
            apart=kept.apart.get(name, {}),
            limits=kept.limits.get(name, Limits()),
        )

    return [build(name) for name in sorted(owned.keys() | kept.records.keys() | kept.entries.keys())]


def cancel(store: Store, run: str, *, check: bool = False) -> bool:
    """Say in the bucket that the user has torn ``run`` down, unless it had ended; return whether that is news.

    What its machines had begun to upload is removed in any case. Raises :class:`gpuyard.errors.BucketError` when
    the bucket does not answer.
    """
    record = next((one for one in list_runs(store) if one.run == run), None)
    if not check:
        with contextlib.suppress(CheckpointError):  # a key that may not do this is no reason not to tell
            clear_unfinished(store, run)
            for node in nodes_apart(store, run):
                clear_unfinished(store, own_place(run, node))
    ended = ("done", "failed", "cancelled")
    apart = nodes_apart(store, run)
    if record is None or record.outcome == "cancelled":
        return False
    if record.outcome in ended and all(read_record(store, own_place(run, node)).outcome in ended for node in apart):
        return False
    if not record.created and latest_manifest(store, run) is None and not apart:
        return False  # there are only notes of what was rented for it
    if not check:
        write_record(store, run, record.workload, outcome="cancelled")
    return True


def _apart(store: Store, names: Sequence[str]) -> dict[str, dict[str, Apart]]:
    """Return what the nodes of the named runs have in places of their own."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        nodes = zip(names, pool.map(partial(nodes_apart, store), names), strict=True)
        places = {own_place(run, node): (run, node) for run, found in nodes for node in found}
        records = {record.run: record for record in pool.map(partial(read_record, store), places)}
    manifests = _manifests(store, list(places))
    found: dict[str, dict[str, Apart]] = {}
    for place, (run, node) in places.items():
        manifest = manifests.get(place)
        problem = str(manifest) if isinstance(manifest, UnreadableManifestError) else ""
        kept = manifest if isinstance(manifest, Manifest) else None
        record = records[place] if records[place].created else None
        found.setdefault(run, {})[node] = Apart(record, kept, problem)
    return found


def _manifests(store: Store, names: Sequence[str]) -> dict[str, Manifest | UnreadableManifestError]:
    def newest(name: str) -> Manifest | UnreadableManifestError | None:
        try:
            return latest_manifest(store, name)
        except UnreadableManifestError as error:
            return error

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = zip(names, pool.map(newest, names), strict=True)
        return {name: manifest for name, manifest in found if manifest is not None}


def stages_done(progress: Mapping[str, Any]) -> set[tuple[int, str]]:
    """Return the stages that a checkpoint's progress calls done; none where it does not say that as gpuyard does."""
    try:
        return {(int(iteration), str(stage)) for iteration, stage in progress.get("done") or ()}
    except (TypeError, ValueError):
        return set()


def _entries(store: Store, names: Sequence[str], complain: Callable[[str], None]) -> dict[str, Sequence[Entry]]:
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = zip(names, pool.map(partial(ledger.entries, store, complain=complain), names), strict=True)
        return {name: entries for name, entries in found if entries}


def _limits(store: Store, names: Sequence[str]) -> dict[str, Limits | str]:
    """Return the limits of the named runs, and a sentence for those that cannot be read."""

    def of(name: str) -> Limits | str:
        try:
            return limits.read(store, name)
        except BucketError:
            raise
        except CheckpointError as error:
            return f"Until when run {name} is rented and what it may cost is not known: {error}"

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))


def stage_text(progress: Mapping[str, Any]) -> str:
    """Return where a run is, in a few words, from a checkpoint's progress: ``iteration 1, search``."""
    if not progress:
        return "-"
    if progress.get("finished"):
        return "all stages done" if progress.get("outcome") == "done" else "stopped"
    return f"iteration {progress.get('iteration', 0)}, {progress.get('stage') or 'start'}"


def place_text(one: Node) -> str:
    """Return where a node is, in a few words: as its machine says it, else as its newest checkpoint does."""
    if one.stages.get("stage"):
        return f"iteration {one.stages.get('iteration')}, {one.stages['stage']}"
    return stage_text(one.progress)
