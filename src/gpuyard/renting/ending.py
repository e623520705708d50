"""Ending a run: its stages in good order, then its machines, but none that may hold what the bucket lacks.

The one place that decides whether a machine may be destroyed because its run is to end. ``teardown.yml`` and
``shutdown=true`` both come here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gpuyard import pace, ssh
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import Manifest, Store, answer_soon
from gpuyard.config import SshKey
from gpuyard.errors import (
    BucketError,
    CheckpointError,
    ConnectionLostError,
    GpuyardError,
    LeakError,
    MissingObjectError,
    NothingBegunError,
    NotSavedError,
    ProviderError,
    UsageError,
)
from gpuyard.formats.label import FIRST_NODE, check_name
from gpuyard.formats.ledger import Entry
from gpuyard.formats.run_record import RunRecord
from gpuyard.hosts import host_name
from gpuyard.providers.base import OWN, Instance, PlannedCall, Progress, Provider, State
from gpuyard.providers.resources import Resource
from gpuyard.remedies import option, remedy
from gpuyard.renting import access, belongings, destroy, machine, rent, runs, shelved, survey, together, watch
from gpuyard.renting.belongings import Belongings
from gpuyard.renting.ledger import Ledger, entry_of, stopped_by_us
from gpuyard.renting.pending import PendingNotes
from gpuyard.renting.places import newest_of, nodes_apart, own_place

LOSE_WAIT_S = 30.0
"""How long a machine has to end its stages that is destroyed whatever it says (seconds)."""
_LOSE_PUBLISH_S = 30.0  # and after that, to publish
_STATUS_S = 20.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to end, and how.

    ``lose``: destroy also what is not saved. ``wait_s``: how long a machine has to end its stages; ``None``: as long as
    the running stage's own grace time and publishing need. ``only`` limits what is destroyed: to a machine whose run
    has ``ended`` (and nothing is stopped), to one on which it has ``not-begun``, or to one on which no stage runs any
    more since the run goes on elsewhere (``left``). ``since`` is the number of the newest checkpoint before the launch
    that has followed the run: a later one holds its work. With ``node`` only that node of the run is ended, with
    ``places`` only the machines that are named, by provider and id. ``keep_volumes``: whether the run's volumes,
    filesystems and snapshots outlive it; ``None``: those that were kept before. ``seen`` are the machines that the run
    had when its end was decided without anybody looking: with another one it has been launched again, and goes on.
    """

    run: str
    node: str | None = None
    lose: bool = False
    wait_s: float | None = None
    only: Literal["", "ended", "not-begun", "left"] = ""
    since: int = 0
    keep_volumes: bool | None = None
    places: frozenset[tuple[str, str]] | None = None
    seen: frozenset[tuple[str, str]] | None = None

    @property
    def whole(self) -> bool:
        """Whether the run as such is to end, with all that it has, and not some of its machines only."""
        return self.node is None and self.places is None and self.only in ("", "ended")

    def check(self) -> None:
        """Raise :class:`UsageError` for an option that cannot work. A run that is not named is told of later."""
        if self.run:
            check_name(self.run)
        if self.wait_s is not None and not (math.isfinite(self.wait_s) and self.wait_s > 0):
            raise UsageError(f"wait_s={self.wait_s:g} must be a number of seconds above 0.")
        if self.lose and self.only:
            raise UsageError(f"lose=true destroys whatever there is, so it does not go with only={self.only}.")
        if self.keep_volumes and not self.whole:
            raise UsageError("keep_volumes=true says what outlives a run, so it needs the end of all of it.")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a machine may be destroyed without losing anything; ``why`` says it in whole sentences."""

    instance: Instance
    may_go: bool
    why: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What was done, or with ``check`` would be: in words, as API calls, and the run's machines before and after."""

    before: list[str]
    after: list[str]
    actions: list[str] = field(default_factory=list)
    planned: list[PlannedCall] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        return bool(self.actions) or self.cancelled


class Boxes(Protocol):
    """The way to the machines' stages; tests bring their own."""

    def status(self, instance: Instance) -> Mapping[str, Any]:
        """Return what :func:`gpuyard.renting.watch.status` returns."""

    def stop(
        self,
        instance: Instance,
        *,
        wait_s: float | None,
        limit_s: float | None,
        tell: Progress,
    ) -> Mapping[str, Any]:
        """Do what :func:`gpuyard.renting.watch.stop` does."""

    def settle(self, instance: Instance) -> None:
        """Have everything written to the machine's disks, as far as it answers."""


@dataclass(frozen=True, slots=True)
class OverSsh:
    """The machines' stages, reached over SSH with ``key``; through their ``clouds`` also where nobody has been yet."""

    key: SshKey
    clouds: Sequence[Provider] = ()

    def status(self, instance: Instance) -> Mapping[str, Any]:
        """Return what the machine's stages do."""
        access.let_in(self.clouds, [instance], self.key)
        return watch.status(instance, self.key, timeout_s=_STATUS_S)

    def stop(
        self,
        instance: Instance,
        *,
        wait_s: float | None,
        limit_s: float | None,
        tell: Progress,
    ) -> Mapping[str, Any]:
        """Let the machine's stages end in good order, and return whether all is saved."""
        access.let_in(self.clouds, [instance], self.key, progress=tell)
        return watch.stop(instance, self.key, wait_s=wait_s, limit_s=limit_s, tell=tell)

    def settle(self, instance: Instance) -> None:
        """Have everything written to the machine's disks, before one that is kept is taken from it."""
        watch.settle(instance, self.key)


def end(
    providers: Sequence[Provider],
    store: Store | None,
    order: Order,
    boxes: Boxes,
    *,
    ledger: Ledger | None = None,
    notes: PendingNotes | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Ending:
    """End the run of ``order``: stop its stages, destroy every machine that may go, and tell the bucket.

    A machine that may hold what is not in the bucket is kept, and :class:`NotSavedError` says what is not saved, why,
    and how to end it all the same. :class:`LeakError` names every machine whose end could not be confirmed, and every
    cloud that could not be asked. Both come after all that can be done was done. What the machines have cost is written
    into ``ledger``. A machine of a request that ``notes`` say is unanswered is waited for first.
    """
    order.check()
    tell = progress or _silent
    judge = _Judge(order, store if order.run and not check else None, boxes)
    if order.run and not check:
        if judge.store is not None and judge.bucket.trouble is not None:
            tell(f"{judge.bucket.trouble} The machine may have another way to it.")
            # It is not asked again: each question would cost a minute.
            for book in (ledger, notes):
                if book is not None:
                    book.bucket.give_up()
        if notes is not None:
            # A cloud that does not answer now is told below, after all that can be seen has ended.
            with suppress(ProviderError):
                rent.await_noted(providers, order.run, notes, progress=tell, clock=pace.Clock())
    seen = survey.take(providers)
    ours = survey.owned(seen.answered())
    held = [
        one for one in survey.owned(ours, order.run, order.node) if order.places is None or one.place in order.places
    ]
    others = sorted({one.ref.run for one in ours if one.ref} - {order.run})
    if not order.run:
        raise UsageError(
            f"Name the run to end with {option('run')}; the runs with machines are: {', '.join(others) or 'none'}."
        )
    if others and not survey.owned(ours, order.run):
        # A slip in the name would otherwise look like the end of a rental that goes on.
        tell(f"Runs that have machines: {', '.join(others)}.")
    if order.seen is not None and (new := [one for one in held if one.place not in order.seen]):
        raise UsageError(
            f"Run {order.run} has got {'; '.join(map(machine.describe, new))} meanwhile, so it has been launched "
            "again: nothing of it was ended."
        )
    beside = Belongings(providers, order.run, order.keep_volumes)
    if order.whole:
        beside.look(tell)
    words = [machine.describe(one) for one in held]
    if check:
        beside.sort(store, str)
        return _plan(providers, held, order, words, seen, beside)
    # Side by side: each machine may take minutes to end its stages.
    verdicts = together.at_once(judge.of, held, tell)
    doomed = [verdict.instance for verdict in verdicts if verdict.may_go or order.lose]
    kept = [_kept(verdict, order) for verdict in verdicts if verdict.instance not in doomed]
    for verdict in verdicts:
        if verdict.may_go:
            tell(verdict.why)
        elif order.lose:
            done = "Freed" if verdict.instance.way else "Destroyed"
            tell(f"{done} all the same, as lose=true asks for: {verdict.why}")
    beside.sort(judge.store, lambda: "" if held or order.lose else judge.why_storage_stays())
    if kept:
        beside.stay()
    going = beside.going
    leaks, gone = _destroy(providers, doomed, going, beside.wished, boxes, ledger, tell)
    if ledger is not None and not ledger.bucket.failed:
        answered = [provider.name for provider in providers if provider.name not in seen.errors]
        listed = survey.owned(ours, order.run, order.node)
        ledger.gone(order.run, listed, answered, node=order.node)
    if order.whole:
        beside.note(judge.store, gone, tell)
    unseen = [*seen.unanswered().values(), *beside.unseen.values()]
    staying = [*kept, *beside.refusals()]
    if order.whole and (doomed or going) and not (leaks or staying or unseen):
        leaks += [LeakError(sentence) for sentence in belongings.left(providers, order.run, beside.wished)]
    if leaks and not staying and not unseen:
        raise leaks[0] if len(leaks) == 1 else LeakError(" ".join(map(str, leaks)), provider=leaks[0].provider)
    if staying or unseen:
        sentences = [*map(str, leaks)] if leaks else machine.ended(doomed)
        trouble = " ".join([*sentences, *staying, *unseen])
        if unseen:
            again = f"Tear run {order.run} down again when all clouds answer."
            raise LeakError(f"{trouble} {again}", provider=next(iter(seen.errors), ""))
        raise LeakError(trouble, provider=leaks[0].provider) if leaks else NotSavedError(trouble)
    # A machine whose end could not be confirmed the last time may be gone now, with nothing left to destroy.
    with suppress(OSError):
        ssh.forget_run(order.run, providers, node=order.node or "")
    cancelled, text = False, list[str]()
    if order.whole and (not order.only or doomed):
        cancelled, text = _cancel(judge, order, destroyed=bool(doomed))
    if not order.only or doomed:
        text += _spent(order.run, doomed, ledger)
    text += beside.words()
    actions = [f"{machine.end_verb(one)} {machine.describe(one)}" for one in doomed]
    actions += [f"destroy {shelved.describe(one)}" for one in gone]
    return Ending(words, [], actions, text=text, cancelled=cancelled)


def _destroy(
    providers: Sequence[Provider],
    doomed: Sequence[Instance],
    going: Sequence[Resource],
    staying: Sequence[Resource],
    boxes: Boxes,
    ledger: Ledger | None,
    tell: Progress,
) -> tuple[list[ProviderError], list[Resource]]:
    """Destroy machines and what goes with them; return what could not be confirmed, and which resources are gone.

    Storage that can be taken from a machine goes before it, the rest after it. Nothing of this keeps a machine billing.
    """
    machines = {one.id for one in doomed}
    if freed := [one for one in staying if machines & {*one.attached_to}]:
        for instance in doomed:
            if instance.runs and any(instance.id in one.attached_to for one in freed):
                boxes.settle(instance)
        shelved.detach(providers, freed, tell)
    # Keys and the like go last: what a machine that lives still uses may not be ended, or would lock it out.
    free = shelved.detach(providers, [one for one in going if one.kind.bills], tell)
    unended = [one for one, _ in shelved.end(providers, free, tell)]
    leaks: list[ProviderError] = []
    try:
        destroy.destroy_all(providers, doomed, ledger=ledger, progress=tell)
    except ProviderError as error:
        leaks.append(error)
    errors = shelved.end(providers, [one for one in going if one not in free or one in unended], tell)
    leaks += [
        LeakError(sentence, provider=one.provider, instance_id=one.id)
        for (one, _), sentence in zip(errors, belongings.leak_sentences(errors), strict=True)
    ]
    return leaks, [one for one in going if one not in [left for left, _ in errors]]


def _plan(
    providers: Sequence[Provider],
    held: Sequence[Instance],
    order: Order,
    words: list[str],
    seen: survey.Survey,
    beside: Belongings,
) -> Ending:
    """Return what would be done. No machine is asked, since only stopping its stages shows whether all is saved."""
    if seen.errors or beside.unseen:
        unseen = [*seen.unanswered().values(), *beside.unseen.values()]
        raise LeakError(" ".join(unseen), provider=next(iter(seen.errors), ""))
    by_name = {provider.name: provider for provider in providers}
    condition = "" if order.lose else " if nothing is lost with it"
    living = [one for one in held if not one.idle]
    actions = [f"end the stages on {one.provider} {one.id} in good order" for one in living if not order.only]
    actions += [f"{machine.end_verb(one)} {machine.describe(one)}{condition}" for one in held]
    planned = [call for one in held for call in by_name[one.provider].plan_destroy(one.id)]
    also = beside.planned(condition)
    return Ending(words, [], actions + also[0], planned + also[1])


def _spent(run: str, ended: Sequence[Instance], ledger: Ledger | None) -> list[str]:
    """Return what the machines that have just ended have cost, and the run in all, as far as that is known."""
    if ledger is None:
        return []
    entries = {entry.place: entry for entry in ledger.entries(run)}
    now = ledger.now()
    for one in ended:
        # Without a bucket there is only what the machine itself says.
        entries.setdefault(one.place, entry_of(one, now).changed("ended", 0.0, now))
    places = {one.place for one in ended}
    nodes = {entry.node for entry in entries.values()}
    lines = [
        f"{entry.provider} {entry.id} has cost {_dollars([entry], now)}"
        + (f", as {host_name(run, entry.node, nodes)}." if len(nodes) > 1 else ".")
        for entry in entries.values()
        if entry.place in places
    ]
    if not entries:
        return []
    count = f"{len(entries)} machine{'' if len(entries) == 1 else 's'}"
    found = list(entries.values())
    bills = "" if _are_own(found) else "; the clouds' own bills count"
    return [*lines, f"Run {run} has cost {_dollars(found, now)} in all, on {count}{bills}."]


def _are_own(entries: Sequence[Entry]) -> bool:
    return all(entry.provider == OWN for entry in entries)


def _dollars(entries: Sequence[Entry], now: float) -> str:
    """Return what machines have cost; boxes of the user's own cost nothing."""
    return "nothing" if _are_own(entries) else f"${sum(entry.cost_usd(now) for entry in entries):.4f}"


def _kept(verdict: Verdict, order: Order) -> str:
    """Return why a machine is kept, what it costs, and what can be done, in sentences."""
    one = verdict.instance
    teardown = f"`{remedy('teardown', run=order.run)}`"
    bills = f"{machine.describe(one)} is kept, and {machine.costs(one)}"
    if order.only:
        nothing, ends = ("Nothing is freed", "frees") if one.way else ("Nothing is destroyed", "ends")
        return f"{nothing}: {verdict.why} So {bills}: `{remedy('status')}` shows how it stands, {teardown} {ends} it."
    loses = "frees the box, and loses" if one.way else "destroys the machine and"
    return (
        f"{verdict.why} So {bills}: {teardown} tries again, and with `{option('lose', True)}` it {loses} "
        "what is only there."
    )


def _cancel(judge: _Judge, order: Order, *, destroyed: bool) -> tuple[bool, list[str]]:
    """Tell the bucket that the run was not lost but ended; return whether that is news, and what else to say."""
    if judge.store is None:
        return False, []
    try:
        judge.bucket.known()
        return runs.cancel(judge.store, order.run), []
    except CheckpointError as error:
        words = (
            f"The bucket could not be told that run {order.run} was ended on purpose, so it still counts as "
            f"resumable: {error}"
        )
        if not (destroyed or order.lose):
            # There was no machine: telling the bucket was all that there was to do.
            raise BucketError(words) from error
        return False, [words]


class _Bucket:
    """What the bucket holds of the run. One that is dead costs seconds, once."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._known = False
        self.launched = False  # whether it was launched with this very bucket, and no stage has begun
        self.trouble: CheckpointError | None = None
        try:
            self._known = answer_soon(self._knows, store.url)
        except CheckpointError as error:
            self.trouble = error
        except (GpuyardError, OSError) as error:
            self.trouble = BucketError(str(error))

    def _knows(self) -> bool:
        """Tell whether the run has ever begun: other notes about it may be written before that."""
        folders = self._store.folders(f"{self._run}/")
        if "checkpoints" in folders or "nodes" in folders:
            return True
        try:
            record = RunRecord.from_bytes(self._run, self._store.get(f"{self._run}/run.json"))
        except MissingObjectError:
            return False
        # A launch writes the record before it rents, the box when the first stage begins; what cannot be read counts.
        self.launched = bool(record.launched and not record.created)
        return not self.launched

    def known(self) -> bool:
        """Tell whether the bucket knows of the run; raises :class:`CheckpointError` when it did not answer."""
        if self.trouble is not None:
            raise self.trouble
        return self._known

    def whole(self, instance: Instance) -> Manifest | None:
        """Return the newest checkpoint of a machine's node whose every object is in the bucket.

        Raises :class:`CheckpointError`.
        """
        if not self.known():
            return None
        node = instance.ref.node if instance.ref else FIRST_NODE
        return newest_of(self._store, self._run, node, checkpoints.latest_whole_manifest)

    def holds_whole(self) -> bool:
        """Tell whether the run has a checkpoint whose every object is in the bucket; raises :class:`CheckpointError`.

        Of a run of several nodes, every one that has begun to publish must have one.
        """
        places = [self._run, *(own_place(self._run, node) for node in nodes_apart(self._store, self._run))]
        begun = [place for place in places if checkpoints.sequences(self._store, place)]
        return bool(begun) and all(checkpoints.latest_whole_manifest(self._store, place) for place in begun)


class _Judge:
    """Decides of one machine after another whether it may go."""

    def __init__(self, order: Order, store: Store | None, boxes: Boxes) -> None:
        self.order, self.store, self._boxes = order, store, boxes
        self._asked: _Bucket | None = None
        if store is not None:
            self._asked = _Bucket(store, order.run)

    @property
    def bucket(self) -> _Bucket:
        """The run's bucket, which must be there."""
        assert self._asked is not None
        return self._asked

    def of(self, instance: Instance, tell: Progress) -> Verdict:
        """Return the verdict on one machine; one that lives has its stages stopped for it."""
        if instance.state in (State.PREEMPTED, State.FAILED):
            return self._lost(instance)
        if instance.state is State.STOPPED:
            return self._stopped(instance)
        refusal = self._not_this_one(instance)
        if refusal is not None:
            return refusal
        limit_s = None
        wait_s = self.order.wait_s
        if self.order.lose:
            wait_s = LOSE_WAIT_S if wait_s is None else wait_s
            limit_s = wait_s + _LOSE_PUBLISH_S
        try:
            answer = self._boxes.stop(instance, wait_s=wait_s, limit_s=limit_s, tell=tell)
        except ConnectionLostError as error:
            return self._unanswering(instance, str(error), began=not (error.silent or instance.state is State.PENDING))
        except NothingBegunError:
            return Verdict(instance, True, f"No stage has begun on {_name(instance)}, so nothing is lost with it.")
        except GpuyardError as error:
            return self._unanswering(instance, str(error), began=True)
        return self._by_answer(instance, answer)

    def why_storage_stays(self) -> str:
        """Return why the storage of a run without a machine may hold the only copy; empty when it does not."""
        if self._asked is None:
            return "There is no machine that could say whether all is saved, and no bucket."
        try:
            if self._asked.holds_whole() if self._asked.known() else self._asked.launched:
                return ""
        except CheckpointError as error:
            return f"It may hold what is not in the bucket: {error}"
        holds = "holds no whole checkpoint" if self._asked.known() else f"knows nothing of run {self.order.run}"
        return f"The bucket {holds}, so it may hold the only copy."

    def _not_this_one(self, instance: Instance) -> Verdict | None:
        """Return the verdict on a machine that is not to be ended as things are, ``None`` when it is."""
        if not self.order.only:
            return None
        state = str(self._boxes.status(instance).get("state"))
        name = _name(instance)
        if state == "unreachable":
            if self.order.only == "ended":
                return self._unanswering(instance, f"{name} does not answer.", began=True)
            if self.order.only == "left":
                return self._silent_behind(instance)
            return Verdict(instance, False, f"{name} does not answer, so its stages may be at work.")
        if self.order.only == "not-begun":
            begun = state != "not-started"
            return Verdict(instance, False, f"The stages have begun on {name} ({state}).") if begun else None
        # What a run leaves may also have been ended so that it can go on elsewhere.
        ended: tuple[str, ...] = (*watch.AS_ASKED, "failed")
        if self.order.only == "left":
            ended = (*ended, "waiting", "not-started", "interrupted")
        if state in ended:
            return None
        words = "goes on" if state == "running" else f"has not ended ({state})"
        return Verdict(instance, False, f"Run {self.order.run} {words} on {name}.")

    def _by_answer(self, instance: Instance, answer: Mapping[str, Any]) -> Verdict:
        saved = answer.get("saved")
        if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), bool):
            return self._unanswering(instance, f"{_name(instance)} does not say whether all is saved.", began=True)
        why = f"{_name(instance)}: {saved.get('why')}"
        all_saved = saved["state"] and answer.get("ended") is not False
        if all_saved and saved.get("sequence") is not None and self.store and self.store.url.startswith("file:"):
            return self._by_shared_folder(instance, why)
        return Verdict(instance, all_saved, why)

    def _by_shared_folder(self, instance: Instance, why: str) -> Verdict:
        """Return the verdict where the bucket is a folder, which may be one on the machine itself."""
        try:
            shared = self.bucket.known()
        except CheckpointError as error:
            return Verdict(instance, False, f"{why} But that is not seen from here: {error}")
        if shared:
            return Verdict(instance, True, why)
        folder = self.store.url if self.store else ""
        return Verdict(instance, False, f"{why} But that is {folder} on the machine itself, which goes with it.")

    def _stopped(self, instance: Instance) -> Verdict:
        """Return the verdict on a stopped machine: it may go when all was saved before a command of ours stopped it.

        Its newest checkpoint says how its stages ended, so that nothing ran after it, and the ledger that nobody has
        seen the machine run since.
        """
        name = _name(instance)
        try:
            whole = self._asked.whole(instance) if self._asked else None
            if whole and self.store and whole.progress.get("outcome") and stopped_by_us(self.store, instance):
                words = f"{name} is stopped, and before that everything was saved, as {_checkpoint(whole)}."
                return Verdict(instance, True, words)
        except CheckpointError:
            pass  # told below
        return self._unanswering(instance, f"{name} is stopped, so its work cannot be saved.", began=True)

    def _lost(self, instance: Instance) -> Verdict:
        """Return the verdict on a machine that was taken away or failed: what the bucket holds is all there will be."""
        name = f"{_name(instance)} ({instance.state})"
        if self._asked is None:
            if instance.state is State.FAILED and _never_ran(instance):
                return Verdict(instance, True, f"{name} has never run, so nothing is lost with it.")
            return Verdict(instance, False, f"There is no bucket, so the disk of {name} may hold the only copy.")
        try:
            whole = self._asked.whole(instance)
            if whole is None and _never_ran(instance) and not self._asked.known():
                return Verdict(instance, True, f"{name} has never run, so nothing is lost with it.")
        except CheckpointError as error:
            return Verdict(instance, False, f"The disk of {name} may hold what is not in the bucket: {error}")
        if whole is None:
            return Verdict(
                instance, False, f"The bucket holds no whole checkpoint, so the disk of {name} may hold the only copy."
            )
        if self.order.only == "ended" and not self._is_end(whole):
            return Verdict(instance, False, f"{name} was lost before the end of its run was in the bucket.")
        words = f"{name} can write no more, and what came after {_checkpoint(whole)} is lost with it"
        return Verdict(instance, True, f"{words}: that is the newest whole one in the bucket.")

    def _unanswering(self, instance: Instance, why: str, *, began: bool) -> Verdict:
        """Return the verdict on a machine that cannot say whether all is saved.

        ``began``: it may have done work, since its cloud has it running and something answers at its address.
        """
        if self._asked is None:
            if not began and instance.state is State.PENDING and _never_ran(instance):
                return Verdict(instance, True, f"{why} It has never run, so nothing is lost with it.")
            return Verdict(instance, False, f"{why} There is no bucket, so it may hold the only copy.")
        try:
            whole = self._asked.whole(instance)
            if not began and whole is None and _never_ran(instance) and not self._asked.known():
                words = f"{why} It has never been reached, and the bucket knows nothing of run {self.order.run}"
                return Verdict(instance, True, f"{words}, so nothing is lost with it.")
        except CheckpointError as error:
            return Verdict(instance, False, f"{why} What it has done may not be in the bucket: {error}")
        if whole is not None and self._is_end(whole):
            return Verdict(instance, True, f"{why} But {_checkpoint(whole)} is in the bucket, and is the run's end.")
        last = f"The newest whole one in the bucket is {_checkpoint(whole)}." if whole else "The bucket holds none."
        return Verdict(instance, False, f"{why} What it has done since its last checkpoint may be lost with it. {last}")

    def _silent_behind(self, instance: Instance) -> Verdict:
        """Return the verdict on a machine that the run leaves and that does not answer."""
        why = f"{_name(instance)} does not answer."
        try:
            whole = self._asked.whole(instance) if self._asked else None
        except CheckpointError as error:
            return Verdict(instance, False, f"{why} What it has done may not be in the bucket: {error}")
        if whole is not None and whole.progress.get("outcome") == "waiting":
            return Verdict(
                instance, True, f"{why} But {_checkpoint(whole)} is in the bucket, and is all that it had to do."
            )
        return Verdict(instance, False, f"{why} What it has done since its last checkpoint may be lost with it.")

    def _is_end(self, whole: Manifest) -> bool:
        """Tell whether nothing of the run can come after this checkpoint."""
        outcome = whole.progress.get("outcome")
        if whole.progress.get("finished") and outcome == "done":
            return True
        # A failed run may have been started again; what a launch has followed is known to be its own end.
        return self.order.only == "ended" and outcome == "failed" and whole.sequence > self.order.since


def _never_ran(instance: Instance) -> bool:
    """Tell whether nobody on this controller has ever reached the machine: its host key is not pinned here."""
    return ssh.host_key_fingerprint(instance) is None


def _checkpoint(manifest: Manifest) -> str:
    return f"checkpoint {manifest.sequence} of {manifest.time} ({runs.stage_text(manifest.progress)})"


def _name(instance: Instance) -> str:
    return f"{instance.provider} {instance.id}"


def _silent(_: str) -> None:
    """Tell nobody."""
