"""The right to rent for a run, claimed in the bucket, so that of two controllers only one rents at a time.

Whoever wants it puts a claim of its own into the bucket and lists the run's claims. It has the right when it sees no
other one; else it takes its claim back, waits, and tries again. Of two controllers that do so at once, at least one
lists after both have written, so never both have the right; when both step back, chance decides the next time. The
store need not know more than that a listing shows everything that was written before: a server that takes no notice of
``If-None-Match`` will do as well, and so does a claim that has to be taken over from a controller that was killed.

A claim is written again while its controller is at work. One that is older than :data:`LIVES_S` by the store's own
clock counts no more.
"""

from __future__ import annotations

import json
import random
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from gpuyard import pace
from gpuyard.box.checkpoints import Store, StoredObject
from gpuyard.errors import CheckpointError, GpuyardError
from gpuyard.formats.manifest import timestamp
from gpuyard.providers.base import Progress
from gpuyard.renting import locks
from gpuyard.renting.notebook import Notebook

FOLDER = "claims"
VERSION = 1
LIVES_S = 60.0
"""A claim that was not written again for so long is its controller's no more."""
RENEWED_EVERY_S = 15.0
WATCHING = "supervisors"
LEASE_S = 30.0
"""A lease of a supervisor that was not written again for so long is free; it is written three times as often."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of all runs in a bucket. Without one, nobody is kept out by this."""

    bucket: Notebook = field(default_factory=Notebook)
    progress: Progress = lambda _: None
    clock: pace.Clock = field(default_factory=pace.Clock)

    @contextmanager
    def hold(self, run: str) -> Iterator[bool]:
        """Be the only controller that rents for ``run``; yield whether another one was at it before.

        A bucket that does not answer is told, and keeps nobody from renting: of two new machines of a run the younger
        one goes back, as without a bucket.
        """
        key = f"{run}/{FOLDER}/{secrets.token_hex(6)}.json"
        content = {"version": VERSION, "controller": socket.gethostname(), "since": timestamp()}
        data = json.dumps(content, indent=1).encode()
        waited = False
        try:
            store = self.bucket.store()
            if store is not None:
                waited = self._take(store, run, key, data)
        except GpuyardError as error:
            self.bucket.give_up()
            self.progress(f"Another controller that rents for run {run} at this moment would not be seen: {error}")
            store = None
        if store is None:
            yield waited
            return
        done = threading.Event()
        renewing = threading.Thread(target=_renew, args=(store, key, data, done), name=f"claim {run}", daemon=True)
        renewing.start()
        try:
            yield waited
        finally:
            done.set()
            renewing.join()
            with suppress(CheckpointError):  # it ends by itself
                store.delete(key)

    def _take(self, store: Store, run: str, key: str, data: bytes) -> bool:
        """Come back when the claim ``key`` stands alone; return whether another one was in its way."""
        waited = told = False
        for delay in self.clock.delays():
            store.put(key, data)
            others = _others(store, run, key, folder=FOLDER, lives_s=LIVES_S)
            if others == []:
                return waited
            store.delete(key)
            if others:
                # At first it may only be another one that tries at this moment.
                if waited and not told:
                    told = True
                    self.progress(
                        f"{_whose(store, others[0])} rents for run {run} at this moment; waiting for it, or, when it "
                        f"was killed, for {LIVES_S:.0f} s."
                    )
                waited = True
            self.clock.sleep(delay * random.uniform(0.5, 1.5))
        raise AssertionError("the delays never end")


@contextmanager
def alone(run: str, claims: Claims | None, progress: Progress | None = None) -> Iterator[bool]:
    """Be the only command that rents for ``run``, on this controller and, by ``claims``, on any other one.

    Yields whether somebody else was at it before. ``None`` for ``claims`` asks this controller's commands only.
    """
    with (
        locks.exclusive(run, progress) as waited,
        claims.hold(run) if claims else nullcontext(False) as beaten,
    ):
        yield waited or beaten


class Lease:
    """The right to supervise a run, which one supervisor has at a time, in the way of a claim.

    It is tried for and not waited for, since a supervisor has other runs as well, and it is lost when the bucket cannot
    be written: then another one may have it.
    """

    def __init__(self, store: Store, run: str, *, clock: pace.Clock | None = None) -> None:
        self._store, self._run, self._clock = store, run, clock or pace.Clock()
        self._key = f"{run}/{WATCHING}/{secrets.token_hex(6)}.json"
        content = {"version": VERSION, "controller": socket.gethostname(), "since": timestamp()}
        self._data = json.dumps(content, indent=1).encode()
        self._written_at: float | None = None
        self._step_back = False

    @property
    def held(self) -> bool:
        """Whether nobody else can have it now."""
        return self._written_at is not None and self._clock.now() - self._written_at < LEASE_S * 0.8

    def take(self) -> str:
        """Try to have it, and write it again when that is due; return in words who has it, "" when it is ours.

        Raises :class:`CheckpointError` when the bucket does not answer.
        """
        if self._written_at is not None and self.held:
            self.renew()
            return ""
        if self._step_back and random.random() < 0.5:
            # Two that try in step would see each other for ever.
            return "Another supervisor"
        asked_at = self._clock.now()
        self._store.put(self._key, self._data)
        others = _others(self._store, self._run, self._key, folder=WATCHING, lives_s=LEASE_S)
        if others == []:
            self._written_at, self._step_back = asked_at, False
            return ""
        self._written_at, self._step_back = None, True
        whose = _whose(self._store, others[0]) if others else "Another supervisor"
        self._store.delete(self._key)
        return whose

    def renew(self) -> None:
        """Write it again when that is due. Raises :class:`CheckpointError` when the bucket does not answer."""
        now = self._clock.now()
        if self._written_at is not None and self.held and now - self._written_at >= LEASE_S / 3:
            self._store.put(self._key, self._data)
            self._written_at = now

    def drop(self) -> None:
        """Let another one have it at once."""
        if self._written_at is not None:
            self._written_at = None
            with suppress(CheckpointError):  # it ends by itself
                self._store.delete(self._key)


def _others(store: Store, run: str, key: str, *, folder: str, lives_s: float) -> list[StoredObject] | None:
    """Return the claims of others that count, ``None`` when the listing does not even show our own."""
    listed = list(store.objects(f"{run}/{folder}/"))
    if key not in [item.key for item in listed]:
        return None
    # Our own has just been written, so the newest one tells what time it is in the store.
    now = max(item.modified for item in listed)
    living = []
    for item in listed:
        if now - item.modified > lives_s:
            store.delete(item.key)
        elif item.key != key:
            living.append(item)
    return living


def _whose(store: Store, claim: StoredObject) -> str:
    try:
        content = json.loads(store.get(claim.key))
        return f"A command on {content['controller']} (since {content['since']})"
    except (CheckpointError, ValueError, LookupError, TypeError):
        return "Another controller"


def _renew(store: Store, key: str, data: bytes, done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY_S):
        with suppress(CheckpointError):
            store.put(key, data)
