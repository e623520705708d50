"""Everything that bills in all configured accounts and in the bucket, and what of it has been forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from gpuyard.box.checkpoints import Store
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.errors import CheckpointError
from gpuyard.formats.label import RUN_NAME
from gpuyard.formats.limits import Limits
from gpuyard.providers.base import Instance, Provider
from gpuyard.providers.resources import Resource
from gpuyard.renting import limits, pending, record, runs, shelved, survey
from gpuyard.renting.belongings import name_of
from gpuyard.renting.runs import Run
from gpuyard.renting.shelved import Shelved
from gpuyard.renting.survey import Survey

UNBEGUN_S = 24 * 3600.0
"""No launch brings a machine into shape for so long: its controller is gone."""
_BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the bucket holds under one folder. Sizes are in gigabytes of 10^9 bytes.

    ``unfinished`` is how many uploads have been begun and not ended, which no listing shows and S3 bills;
    ``price_per_gb_month_usd`` is what the run's workload says of the bucket, ``None`` where it says nothing.
    """

    name: str
    objects: int
    size_gb: float
    unfinished: int = 0
    oldest: float = 0.0  # seconds since 1970
    price_per_gb_month_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Whether something has been forgotten, and why; or what else is to be known of it."""

    why: str = ""
    orphaned: bool = False


@dataclass(frozen=True, slots=True)
class Everything:
    """What the accounts and the bucket hold. ``unanswered`` has a sentence for each that could not be asked."""

    machines: Survey
    shelves: Shelved
    runs: Mapping[str, Run] = field(default_factory=dict)
    prefixes: Sequence[Prefix] = ()
    bucket_url: str = ""
    unanswered: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    now: float = 0.0  # seconds since 1970
    names: frozenset[str] = frozenset()  # of the prefixes
    ends: Mapping[str, str] = field(default_factory=dict)  # by run: how and when it ended
    leases: Mapping[str, str] = field(default_factory=dict)  # by run: when its lease ended, if that is over

    def machine(self, one: Instance) -> Found:
        """Return whether a machine has been forgotten."""
        if one.ref is None or one.way:
            return Found()
        run = self.runs[one.ref.run]
        if why := self.why_over(run.name):
            return Found(why, orphaned=True)
        entry = next((entry for entry in run.entries if entry.place == one.place), None)
        if entry and entry.ended_by_us:
            return Found("a command has ended it, and it is still there", orphaned=True)
        others = [other for other in run.node(one.ref.node).instances if other.alive and other.place != one.place]
        if not one.alive:
            more = ", which has another one now" if others else ""
            return Found(f"what is left of a lost machine of its node{more}", orphaned=True)
        since = one.created_at or (entry.began_at if entry else self.now)
        if self.bucket_url and self._known(run) and not _begun(run) and self.now - since >= UNBEGUN_S:
            return Found("no stage of its run has begun in a day", orphaned=True)
        if twin := next((other for other in others if other.ref and other.ref.node == one.ref.node), None):
            return Found(f"its node has another machine, {twin.provider} {twin.id}")
        return self._of_its_run(run)

    def resource(self, one: Resource) -> Found:
        """Return whether something that is no machine has been forgotten."""
        loose = one.kind.bills and not one.attached_to
        if one.ref is None:
            return Found("attached to nothing" if loose and one.ours and one.kind.attaches else "")
        run = self.runs.get(one.ref.run) or Run(one.ref.run, one.ref.workload)
        if name_of(one) in run.limits.kept:
            return Found("kept on purpose")
        if why := self.why_over(run.name):
            return Found(why, orphaned=True)
        if loose and one.kind.attaches and run.machine is None:
            more = f"; {known}" if (known := self._of_its_run(run).why) else ""
            return Found(f"attached to nothing, and its run has no machine{more}")
        return self._of_its_run(run)

    def places(self, run: str) -> frozenset[tuple[str, str]]:
        """Return the machines of a run that were seen, by provider and id."""
        return frozenset(one.place for one in survey.owned(self.machines.instances, run))

    def why_over(self, name: str) -> str:
        """Return why all that a run has should end: it has itself, or its lease; empty when it should not."""
        return self.ends.get(name) or self.leases.get(name, "")

    def _known(self, run: Run) -> bool:
        """Tell whether the bucket has anything of a run."""
        return run.name in self.names

    def _of_its_run(self, run: Run) -> Found:
        """Return what is to be known of a run whose things are not forgotten."""
        if self.bucket_url and not self._known(run):
            # It may be in another bucket, so nothing of it is forgotten for certain.
            return Found("this bucket does not know its run")
        return Found("no stage of its run has begun") if self.bucket_url and not _begun(run) else Found()


def gather(providers: Sequence[Provider], store: Store | None, now: float) -> Everything:
    """Ask all clouds, all their shelves and the bucket at the same time. What does not answer is named.

    ``now`` is in seconds since 1970.
    """
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = pool.submit(survey.take, providers)
        shelves = pool.submit(shelved.take, providers)
        held = pool.submit(_held, store) if store else None
        seen, found = asked.result(), shelves.result()
        silent = found.unanswered()
        bills = {f"{name} {kind}": kind.bills for name, kind in found.errors}
        unanswered = seen.unanswered() | {name: words for name, words in silent.items() if bills[name]}
        kept, prefixes, notes = runs.Stored(), list[Prefix](), list[str]()
        if held is not None:
            try:
                kept, prefixes, notes = held.result()
            except CheckpointError as error:
                unanswered[_BUCKET] = (
                    f"The bucket could not be asked, so what it holds and whose runs are over is not seen: {error}"
                )
    unanswered |= {f"limits of {run}": sentence for run, sentence in kept.unlimited.items()}
    answered = [cloud.name for cloud in providers if cloud.name not in seen.errors]
    known = {run.name: run for run in runs.join(seen.instances, kept, answered)}
    things: dict[str, list[Resource]] = {}
    for one in found.resources:
        if one.ref:
            things.setdefault(one.ref.run, []).append(one)
    return Everything(
        seen,
        found,
        known,
        prefixes,
        store.url if store and _BUCKET not in unanswered else "",
        unanswered,
        [
            *survey.silent_boxes(seen.instances),
            # What costs nothing makes nothing incomplete that is about money.
            *(words for name, words in silent.items() if not bills[name]),
            *(sentence for sentence in kept.complaints if sentence not in kept.unlimited.values()),
            *kept.problems.values(),
            *pending.unanswered(notes),
            *pending.unanswered_here(),
        ],
        now,
        frozenset(one.name for one in prefixes),
        {name: f"its run {end}" for name, run in known.items() if (end := _end_of(run, things.get(name, [])))},
        {
            name: f"its lease ended at {limits.moment(lease)}"
            for name in known.keys() | things.keys()
            if (lease := _lease_end(known.get(name), things.get(name, []))) is not None and lease <= now
        },
    )


def _lease_end(run: Run | None, things: Sequence[Resource]) -> float | None:
    """Return until when a run is rented. Without a bucket the labels say it, also of what outlives the machines."""
    if run is not None and (run.lease_end is not None or run.limits != Limits()):
        return run.lease_end
    return max((one.ref.lease_end for one in things if one.ref and one.ref.lease_end is not None), default=None)


def _end_of(run: Run, things: Sequence[Resource]) -> str:
    """Return how and when a run ended, to follow its name; empty for one that goes on, or has been launched again."""
    outcome = run.record.outcome if run.record else None
    if outcome != "cancelled" and not all(node.outcome for node in run.nodes):
        return ""
    records = [run.record, *(one.record for one in run.apart.values())]
    ends = [_seconds(one.finished) for one in records if one and one.finished]
    if not ends or 0.0 in ends:
        return ""
    if _rented_after(run, max(ends)):
        return ""
    if any((one.created_at or 0.0) > max(ends) for one in things):
        return ""
    words = {"cancelled": "was torn down", "failed": "has failed"}.get(outcome or run.outcome or "", "has finished")
    finished = max(one.finished for one in records if one and one.finished)
    return f"{words} at {finished}"


def finished_with(run: Run) -> str:
    """Return why the machines of a run may end, to follow its name, as they have written themselves; empty if not."""
    records = [node.record for node in run.nodes if node.record]
    ends = [_seconds(one.finished or "") for one in records if one.over]
    if not run.instances or not ends or len(ends) < len(records) or 0.0 in ends or _rented_after(run, max(ends)):
        return ""
    words = {"lease": "its lease is over", "budget": "its budget is spent", "idle": "nobody needs it any more"}
    return words.get(records[0].over, "its stages have ended") + ", and everything is saved"


def _rented_after(run: Run, end: float) -> bool:
    """Tell whether a run may have got a machine after ``end``, which is in seconds since 1970.

    The box writes the end off only when its first stage begins, so a launch may be at it for hours.
    """
    began = {entry.place: entry.began_at for entry in run.entries}
    since = [one.created_at or began.get(one.place) for one in run.instances]
    return any(moment is None or moment > end for moment in since)


def _begun(run: Run) -> bool:
    return bool(run.manifest or run.apart or (run.record and (run.record.created or run.record.problem)))


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0


def _held(store: Store) -> tuple[runs.Stored, list[Prefix], list[str]]:
    """Return what the bucket knows of the runs, what it holds by folder, and the keys of notes of requests."""
    runs.check_answers(store)
    kept = runs.stored(store, costs=True)
    objects, sizes, oldest, keys = Counter[str](), Counter[str](), dict[str, float](), list[str]()
    for item in store.objects(""):
        name, _, rest = item.key.partition("/")
        name = name if rest else ""
        objects[name] += 1
        sizes[name] += item.size
        oldest[name] = min(oldest.get(name, item.modified), item.modified)
        if rest.startswith(f"{pending.FOLDER}/"):
            keys.append(item.key)
    unfinished = Counter[str]()

    def spare(key: str) -> bool:
        unfinished[key.partition("/")[0]] += 1
        return True  # all of them: nothing is removed here

    store.abort_unfinished("", spare)
    names = [*objects.keys() | unfinished.keys()]
    prices = dict(zip(names, in_parallel(partial(_price, store), names), strict=True))
    return (
        kept,
        [
            Prefix(name, objects[name], sizes[name] / 1e9, unfinished[name], oldest.get(name, 0.0), prices[name])
            for name in sorted(names)
        ],
        keys,
    )


def _price(store: Store, name: str) -> float | None:
    """Return what a gigabyte and month of the bucket costs, as a run's workload says."""
    if not RUN_NAME.fullmatch(name):
        return None
    try:
        made_of = record.read(store, name).made_of
        return float(made_of.workload["storage"]["price_per_gb_month"]) if made_of else None
    except (CheckpointError, LookupError, TypeError, ValueError):
        return None
