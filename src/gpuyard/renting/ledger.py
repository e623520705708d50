"""What the machines of a run have cost, from when to when, also when they are gone.

One small object a machine lies in the bucket, ``<run>/ledger/<provider>-<id>.json``: its price, and every change of
what it costs an hour. Two times are not known exactly. A provider does not say when it took a machine away: such a
machine counts at its full price until it was last seen alive, by a command or by its newest checkpoint, and at its idle
price from then on, so the sum is a lower bound. And a machine that was rented without waiting for it counts at its full
price from the beginning. The provider's invoice counts, not this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from gpuyard.box.checkpoints import Manifest, Store
from gpuyard.errors import BucketError, CheckpointError, GpuyardError, MissingObjectError
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.ledger import FOLDER, Change, Entry, entry_key
from gpuyard.providers.base import Instance, Progress, State
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.places import newest_of


def entry_of(instance: Instance, now: float) -> Entry:
    """Return the entry of a machine of which nothing is written yet."""
    began = now if instance.created_at is None else min(instance.created_at, now)
    ref = instance.ref
    price = instance.idle_price if instance.state is State.PENDING else instance.price_per_hour_usd
    return Entry(
        run=ref.run if ref else "",
        workload=ref.workload if ref else "",
        provider=instance.provider,
        id=instance.id,
        gpu_name=instance.gpu_name,
        region=instance.region,
        market=instance.market,
        price_per_hour_usd=instance.price_per_hour_usd,
        idle_price_per_hour_usd=instance.idle_price,
        changes=(Change(began, "rented", price),),
        last_seen=began,
        node=ref.node if ref else FIRST_NODE,
    )


def settled(entry: Entry, instance: Instance | None, alive_at: float) -> Entry:
    """Return the entry as its machine is now, ``None`` for one that its provider does not list any more.

    ``alive_at`` is when it was last seen alive by others than commands, 0 when nobody else knows.
    """
    if entry.ended:
        return entry
    last, seen = entry.changes[-1], max(entry.last_seen, alive_at)
    if instance is None:
        return entry.changed("gone", 0.0, seen)
    if instance.runs and last.what == "rented":
        return replace(entry, changes=(*entry.changes[:-1], Change(last.time, "running", entry.price_per_hour_usd)))
    if instance.idle and last.what in ("rented", "running"):
        return entry.changed("lost", entry.idle_price_per_hour_usd, seen)
    return entry


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


def stopped_by_us(store: Store, instance: Instance) -> bool:
    """Tell whether the last that the ledger knows of a machine is that a command has stopped it.

    Raises :class:`CheckpointError` when the bucket does not answer, or the entry cannot be read.
    """
    assert instance.ref is not None  # it belongs to a run
    key = entry_key(instance.ref.run, instance.provider, instance.id)
    try:
        return Entry.from_bytes(store.get(key), where=f"{store.url}/{key}").changes[-1].what == "stopped"
    except MissingObjectError:
        return False


@dataclass(slots=True)
class Ledger:
    """Writes down what happens to machines. Nothing here raises: what cannot be written is told.

    Without a bucket nothing is written.
    """

    bucket: Notebook = field(default_factory=Notebook)
    progress: Progress = lambda _: None
    now: Callable[[], float] = time.time

    def entries(self, run: str) -> list[Entry]:
        """Return what is written of the machines of ``run``; nothing when the bucket cannot say so now."""
        try:
            store = None if self.bucket.failed else self.bucket.store()
            return entries(store, run, self.progress) if store is not None else []
        except GpuyardError:
            return []

    def rented(self, instance: Instance) -> None:
        """Write down that ``instance`` has just been rented, or found to have been."""
        self._write(instance, lambda store: entry_of(instance, self.now()))

    def running(self, instance: Instance) -> None:
        """Write down that ``instance`` has been seen running."""

        def seen(store: Store) -> Entry:
            now, known = self.now(), self._read(store, instance)
            if known is None or known.ended:
                known = entry_of(instance, now)
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
            known = self._read(store, instance) or entry_of(instance, now)
            return replace(known.changed("stopped", known.idle_price_per_hour_usd, now), last_seen=now)

        self._write(instance, halted)

    def ended(self, instance: Instance, asked_at: float) -> None:
        """Write down that ``instance``, which was as given here, is confirmed gone; its end was asked for then."""

        def over(store: Store) -> Entry:
            known = self._read(store, instance) or entry_of(instance, asked_at)
            alive = _alive(store, known) if instance.idle else 0.0
            known = settled(known, instance, min(alive, asked_at))
            return known if known.ended else known.changed("ended", 0.0, asked_at)

        self._write(instance, over)

    def given_back(self, mine: Instance, known_ids: Collection[str]) -> list[Entry]:
        """Return the other machines of the same node that have been ended since ``mine`` was rented.

        ``known_ids`` are left out: those that the run had before, and those that this very command has ended.
        """
        assert mine.ref is not None  # it was rented for a run
        known = self.entries(mine.ref.run)
        began = next((one.began_at for one in known if one.place == mine.place), math.inf)
        others = [
            one for one in known if one.node == mine.ref.node and one.place != mine.place and one.id not in known_ids
        ]
        return [one for one in others if one.changes[-1].what == "ended" and one.changes[-1].time >= began]

    def gone(self, run: str, listed: Iterable[Instance], clouds: Collection[str], *, node: str | None = None) -> None:
        """Write down which machines of ``run`` are gone though nobody has ended them: ``clouds`` list all they have.

        With ``node`` only that node's machines are looked at.
        """
        here = {instance.place for instance in listed}

        def close(store: Store) -> None:
            known = [one for one in entries(store, run) if node in (None, one.node)]
            lost = [one for one in known if not one.ended and one.place not in here]
            newest = {one.node: one for one in known}
            for one in lost:
                if one.provider in clouds:
                    # Its node's newest checkpoint was made on the machine that was rented last for it.
                    alive = _alive(store, one) if one is newest[one.node] else 0.0
                    store.put(one.key, settled(one, None, min(alive, self.now())).to_bytes())

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
        key = entry_key(instance.ref.run, instance.provider, instance.id)
        try:
            return Entry.from_bytes(store.get(key), where=f"{store.url}/{key}")
        except MissingObjectError:
            return None


def _alive(store: Store, entry: Entry) -> float:
    """Return when the newest checkpoint of the entry's node was made, 0 when there is none that can be read."""
    try:
        return alive_at(newest_of(store, entry.run, entry.node))
    except BucketError:
        raise
    except CheckpointError:
        return 0.0


def _put(store: Store, entry: Entry) -> None:
    store.put(entry.key, entry.to_bytes())
