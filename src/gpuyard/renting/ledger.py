"""What the machines of a run have cost, from when to when, also when they are gone.

One small object a machine lies in the bucket, ``<run>/ledger/<provider>-<id>.json``: its price, and every change of
what it costs an hour. Two times are not known exactly. A provider does not say when it took a machine away: such a
machine counts at its full price until it was last seen alive, by a command or by its newest checkpoint, and at its idle
price from then on, so the sum is a lower bound. And a machine that was rented without waiting for it counts at its full
price from the beginning. The provider's invoice counts, not this.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal

from gpuyard.box.checkpoints import Manifest, Store, latest_manifest
from gpuyard.errors import BucketError, CheckpointError, GpuyardError, MissingObjectError
from gpuyard.providers.base import Instance, Progress, State
from gpuyard.renting.notebook import Notebook

FOLDER = "ledger"
VERSION = 1

What = Literal["rented", "running", "stopped", "lost", "gone", "ended"]


@dataclass(frozen=True, slots=True)
class Change:
    """From ``time`` on (seconds since 1970) the machine costs ``price_per_hour_usd``, since it was ``what``."""

    time: float
    what: What
    price_per_hour_usd: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One machine. ``changes`` begin with its rental; ``last_seen`` is when it was last seen alive by a command."""

    run: str
    workload: str
    provider: str
    id: str
    gpu_name: str
    region: str
    market: str
    price_per_hour_usd: float
    idle_price_per_hour_usd: float
    changes: tuple[Change, ...]
    last_seen: float

    @classmethod
    def of(cls, instance: Instance, now: float) -> Entry:
        """Return the entry of a machine of which nothing is written yet."""
        began = now if instance.created_at is None else min(instance.created_at, now)
        new = instance.state is State.PENDING
        price = instance.idle_price if new else instance.price_per_hour_usd
        return cls(
            run=instance.ref.run if instance.ref else "",
            workload=instance.ref.workload if instance.ref else "",
            provider=instance.provider,
            id=instance.id,
            gpu_name=instance.gpu_name,
            region=instance.region,
            market=instance.market,
            price_per_hour_usd=instance.price_per_hour_usd,
            idle_price_per_hour_usd=instance.idle_price,
            changes=(Change(began, "rented", price),),
            last_seen=began,
        )

    @property
    def key(self) -> str:
        """Where it lies in the bucket."""
        return _key(self.run, self.provider, self.id)

    @property
    def place(self) -> tuple[str, str]:
        """Its provider and its id there: what makes it the same machine."""
        return self.provider, self.id

    @property
    def began_at(self) -> float:
        """When it was rented."""
        return self.changes[0].time

    @property
    def ended(self) -> bool:
        """Whether it is known to cost nothing any more."""
        return self.changes[-1].what in ("gone", "ended")

    @property
    def ended_by_us(self) -> bool:
        """Whether a command has destroyed it."""
        return self.changes[-1].what == "ended"

    def changed(self, what: What, price_per_hour_usd: float, when: float) -> Entry:
        """Return the entry with one more change, never earlier than the last one."""
        change = Change(max(when, self.changes[-1].time), what, price_per_hour_usd)
        return replace(self, changes=(*self.changes, change))

    def settled(self, instance: Instance | None, alive_at: float) -> Entry:
        """Return the entry as its machine is now, ``None`` for one that its provider does not list any more.

        ``alive_at`` is when it was last seen alive by others than commands, 0 when nobody else knows.
        """
        if self.ended:
            return self
        last, seen = self.changes[-1], max(self.last_seen, alive_at)
        if instance is None:
            return self.changed("gone", 0.0, seen)
        if instance.runs and last.what == "rented":
            return replace(self, changes=(*self.changes[:-1], Change(last.time, "running", self.price_per_hour_usd)))
        if instance.idle and last.what in ("rented", "running"):
            return self.changed("lost", self.idle_price_per_hour_usd, seen)
        return self

    def cost_usd(self, now: float) -> float:
        """Return what it has cost until ``now``."""
        ends = [*(change.time for change in self.changes[1:]), now]
        spans = zip(self.changes, ends, strict=True)
        return sum(max(0.0, end - change.time) / 3600 * change.price_per_hour_usd for change, end in spans)

    def to_bytes(self) -> bytes:
        """Render the entry as the JSON document of the bucket."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Entry:
        """Read an entry; fields that this version does not know are passed over.

        Raises :class:`CheckpointError` for what is none, naming it by ``where``.
        """
        try:
            document: dict[str, Any] = json.loads(data)
            if document["version"] != VERSION:
                raise CheckpointError(f"{where} has version {document['version']}; this gpuyard reads {VERSION} only.")
            changes = tuple(
                Change(float(one["time"]), one["what"], float(one["price_per_hour_usd"])) for one in document["changes"]
            )
            if not changes:
                raise ValueError("it has no changes")
            types: dict[str, type] = {one.name: float if one.type == "float" else str for one in fields(cls)}
            del types["changes"]
            return cls(**{name: kind(document[name]) for name, kind in types.items()}, changes=changes)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{where} is not an entry of gpuyard's ledger: {error!r}.") from error


def alive_at(manifest: Manifest | None) -> float:
    """Return when a run was last alive as its newest checkpoint says, in seconds since 1970, 0 when there is none."""
    try:
        return datetime.fromisoformat(manifest.time).timestamp() if manifest else 0.0
    except ValueError:
        return 0.0


def entries(store: Store, run: str, complain: Progress = lambda _: None) -> list[Entry]:
    """Return what is written of the machines of ``run``, in the order in which they were rented.

    ``complain`` is told of an entry that cannot be read. Raises :class:`BucketError` when the bucket does not answer.
    """
    found = []
    for item in store.objects(f"{run}/{FOLDER}/"):
        data = store.get(item.key)
        try:
            found.append(Entry.from_bytes(data, where=f"{store.url}/{item.key}"))
        except CheckpointError as error:
            complain(f"What a machine of run {run} has cost is not counted: {error}")
    return sorted(found, key=lambda entry: (entry.began_at, entry.provider, entry.id))


@dataclass(slots=True)
class Ledger:
    """Writes down what happens to machines. Nothing here raises: what cannot be written is told.

    Without a bucket nothing is written.
    """

    bucket: Notebook = field(default_factory=Notebook)
    progress: Progress = lambda _: None
    now: Callable[[], float] = time.time

    def rented(self, instance: Instance) -> None:
        """Write down that ``instance`` has just been rented, or found to have been."""
        self._write(instance, lambda store: Entry.of(instance, self.now()))

    def running(self, instance: Instance) -> None:
        """Write down that ``instance`` has been seen running."""

        def seen(store: Store) -> Entry:
            now, known = self.now(), self._read(store, instance)
            if known is None or known.ended:
                known = Entry.of(instance, now)
            # What was asked for at the rental was the offer's price.
            known = replace(
                known, price_per_hour_usd=instance.price_per_hour_usd, idle_price_per_hour_usd=instance.idle_price
            )
            if known.changes[-1].price_per_hour_usd != known.price_per_hour_usd:
                known = known.changed("running", known.price_per_hour_usd, now)
            return replace(known, last_seen=now)

        if instance.state is State.RUNNING:
            self._write(instance, seen)

    def stopped(self, instance: Instance) -> None:
        """Write down that ``instance`` has been stopped by us."""

        def halted(store: Store) -> Entry:
            now = self.now()
            known = self._read(store, instance) or Entry.of(instance, now)
            return replace(known.changed("stopped", known.idle_price_per_hour_usd, now), last_seen=now)

        self._write(instance, halted)

    def ended(self, instance: Instance, asked_at: float) -> None:
        """Write down that ``instance``, which was as given here, is confirmed gone; its end was asked for then."""

        def over(store: Store) -> Entry:
            known = self._read(store, instance) or Entry.of(instance, asked_at)
            alive = _alive(store, known.run) if instance.idle else 0.0
            known = known.settled(instance, min(alive, asked_at))
            return known if known.ended else known.changed("ended", 0.0, asked_at)

        self._write(instance, over)

    def given_back(self, mine: Instance, known_ids: Collection[str]) -> list[Entry]:
        """Return the other machines of the run that have been ended since ``mine`` was rented.

        ``known_ids`` are left out: those that the run had before, and those that this very command has ended.
        """
        assert mine.ref is not None  # it was rented for a run
        try:
            store = self.bucket.store()
            known = entries(store, mine.ref.run) if store is not None else []
        except GpuyardError:
            return []  # told where something is written
        began = next((one.began_at for one in known if one.place == mine.place), math.inf)
        others = [one for one in known if one.place != mine.place and one.id not in known_ids]
        return [one for one in others if one.changes[-1].what == "ended" and one.changes[-1].time >= began]

    def gone(self, run: str, listed: Iterable[Instance], clouds: Collection[str]) -> None:
        """Write down which machines of ``run`` are gone though nobody has ended them: ``clouds`` list all they have."""
        here = {instance.place for instance in listed}

        def close(store: Store) -> None:
            known = entries(store, run)
            lost = [one for one in known if not one.ended and one.place not in here]
            alive = _alive(store, run) if lost else 0.0
            for one in lost:
                if one.provider in clouds:
                    settled = one.settled(None, min(alive, self.now()) if one is known[-1] else 0.0)
                    store.put(one.key, settled.to_bytes())

        self._with_bucket(f"which machines of run {run} are gone", close)

    def _write(self, instance: Instance, entry: Callable[[Store], Entry]) -> None:
        if instance.ref is not None:
            what = f"what {instance.provider} {instance.id} costs"
            self._with_bucket(what, lambda store: _put(store, entry(store)))

    def _with_bucket(self, what: str, work: Callable[[Store], None]) -> None:
        uncounted = f"The bucket could not be told {what}, so status will not count it in full"
        if self.bucket.failed:
            self.progress(f"{uncounted}.")
            return
        try:
            store = self.bucket.store()
            if store is not None:
                work(store)
        except GpuyardError as error:
            # An entry that cannot be read says nothing of the others.
            if isinstance(error, BucketError) or not isinstance(error, CheckpointError):
                self.bucket.give_up()
            self.progress(f"{uncounted}: {error}")

    def _read(self, store: Store, instance: Instance) -> Entry | None:
        assert instance.ref is not None  # asked by _write
        key = _key(instance.ref.run, instance.provider, instance.id)
        try:
            return Entry.from_bytes(store.get(key), where=f"{store.url}/{key}")
        except MissingObjectError:
            return None


def _alive(store: Store, run: str) -> float:
    """Return when the run's newest checkpoint was made, 0 when there is none that can be read."""
    try:
        return alive_at(latest_manifest(store, run))
    except BucketError:
        raise
    except CheckpointError:
        return 0.0


def _put(store: Store, entry: Entry) -> None:
    store.put(entry.key, entry.to_bytes())


def _key(run: str, provider: str, instance_id: str) -> str:
    return f"{run}/{FOLDER}/{provider}-{instance_id}.json"
