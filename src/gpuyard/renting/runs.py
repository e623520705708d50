"""Runs as they are: the machines that the clouds list, joined with what the bucket knows.

Neither side is enough alone. A run whose machine was taken away exists only in the bucket, one that has just been
rented only at its provider; nothing about either is kept on the controller.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    write_record,
)
from gpuyard.config import BucketSettings
from gpuyard.errors import CheckpointError, UnreadableManifestError
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ledger
from gpuyard.renting.ledger import Entry

LIVE = frozenset({State.RUNNING, State.PENDING, State.STOPPED, State.UNKNOWN})
"""States of a machine that still is the run's machine; one that was taken away or failed is only a leftover."""

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Run:
    """A run, with its machines (most alive first), what the bucket holds of it, and what its machine says that it does.

    ``stages`` is the answer of :func:`gpuyard.renting.watch.status`; empty where the machine was not asked.
    """

    name: str
    workload: str
    instances: tuple[Instance, ...] = ()
    record: RunRecord | None = None
    manifest: Manifest | None = None
    entries: tuple[Entry, ...] = ()  # what the ledger says of its machines, those that are gone included
    clouds: frozenset[str] = frozenset()  # the clouds whose machines are all among ``instances``
    stages: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""  # why the record or the newest checkpoint in the bucket cannot be read, and what to do

    @property
    def machine(self) -> Instance | None:
        """The machine that the run has, ``None`` when it has none or only what is left of one."""
        return next((instance for instance in self.instances if instance.state in LIVE), None)

    @property
    def is_up(self) -> bool:
        """Whether it has a machine that can be asked what its stages do."""
        return self.machine is not None and self.machine.state is State.RUNNING

    @property
    def leftovers(self) -> tuple[Instance, ...]:
        """Machines that were taken away or failed, and may still bill their disk."""
        return tuple(instance for instance in self.instances if instance.state not in LIVE)

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the newest checkpoint says of iteration, stage and outcome; empty without one."""
        return self.manifest.progress if self.manifest else {}

    @property
    def outcome(self) -> str | None:
        """``done`` or ``failed`` when the run ended, as its record or its last checkpoint says, else ``None``."""
        if self.record and self.record.outcome in ("done", "failed"):
            return self.record.outcome
        return "done" if self.progress.get("finished") and self.progress.get("outcome") == "done" else None

    @property
    def state(self) -> str:
        """One word: ``finished``, ``failed``, its machine's state, ``preempted``, ``cancelled`` or ``interrupted``.

        Of a machine that was asked it is what its stages do: ``not-started``, ``running``, ``idle``, ``interrupted``,
        ``failed`` or ``finished``; ``unreachable`` when it did not answer, and the bucket knows of no end.
        """
        said = str(self.stages.get("state") or "")
        if said and said != "unreachable":
            return said
        if self.outcome:
            return "finished" if self.outcome == "done" else "failed"
        if said:
            return said
        if self.machine:
            return str(self.machine.state)
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
        return sum(one.cost_usd(moment) for one in self._accounts(moment) if one.place in here)

    def spent_usd(self, now: float | None = None) -> float:
        """Return what all its machines have cost, those included that are gone, as far as the ledger knows them."""
        moment = time.time() if now is None else now
        return sum(one.cost_usd(moment) for one in self._accounts(moment))

    def _accounts(self, now: float) -> list[Entry]:
        """Return an entry for every machine, as it is now; of one that the ledger does not know, by its age."""
        here = {one.place: one for one in self.instances}
        known = {one.place: one for one in self.entries}
        known |= {place: Entry.of(one, now) for place, one in here.items() if place not in known}
        ordered = sorted(known.values(), key=lambda one: one.began_at)
        # The newest checkpoint was made on the machine that was rented last.
        alive = min(now, ledger.alive_at(self.manifest))
        return [
            one.settled(here.get(one.place), alive if one is ordered[-1] else 0.0)
            if one.place in here or one.provider in self.clouds
            else one
            for one in ordered
        ]


def _age_h(instance: Instance, now: float) -> float:
    return max(0.0, now - instance.created_at) / 3600 if instance.created_at else 0.0


def open_bucket(settings: BucketSettings) -> Store | None:
    """Return the store that ``settings`` name, ``None`` for a run that keeps its checkpoints on the box only."""
    if not settings.url:
        return None
    return open_store(
        settings.url,
        endpoint=settings.endpoint or None,
        access_key=settings.access_key or None,
        secret_key=settings.secret_key or None,
        region=settings.region or None,
    )


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
    # A folder may hold nothing but notes of what was rented; only a record or a checkpoint makes it a run.
    bare = {name for name in asked if not (records[name].created or records[name].problem or name in found)}
    records = {name: record for name, record in records.items() if name not in bare}
    problems = {name: record.problem for name, record in records.items() if record.problem}
    complaints: list[str] = []
    return Stored(
        records,
        {name: manifest for name, manifest in found.items() if isinstance(manifest, Manifest)},
        _entries(store, asked, complaints.append) if costs else {},
        tuple(complaints),
        problems | {name: str(error) for name, error in found.items() if isinstance(error, UnreadableManifestError)},
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
        held = sorted(owned.get(name, []), key=lambda one: (one.state not in LIVE, one.state != State.RUNNING, one.id))
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
    if record is None or record.outcome in ("done", "failed", "cancelled"):
        return False
    if not record.created and latest_manifest(store, run) is None:
        return False  # there are only notes of what was rented for it
    if not check:
        write_record(store, run, record.workload, outcome="cancelled")
    return True


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


def stage_text(progress: Mapping[str, Any]) -> str:
    """Return where a run is, in a few words, from a checkpoint's progress: ``iteration 1, search``."""
    if not progress:
        return "-"
    if progress.get("finished"):
        return "all stages done" if progress.get("outcome") == "done" else "stopped"
    return f"iteration {progress.get('iteration', 0)}, {progress.get('stage') or 'start'}"


def place_text(one: Run) -> str:
    """Return where a run is, in a few words: as its machine says it, else as its newest checkpoint does."""
    if one.stages.get("stage"):
        return f"iteration {one.stages.get('iteration')}, {one.stages['stage']}"
    return stage_text(one.progress)
