"""The number of the set that is being made, claimed in the bucket before anything is sent.

Two publishers of one run must neither share a number nor remove what the other one relies on. That is a matter of
order: a publisher writes its claim, then lists, and relies only on what that listing shows; when its manifest is there
it lists again, and removes nothing while another one's claim is open. Whoever claims later than that finds the manifest
in its own listing. The store need not know more than that a listing shows everything that was written before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import threading
import time
from pathlib import Path

from gpuyard.box.checkpoints.listing import FILES, Listing, claim_key, number_of, set_prefix
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import timestamp

_TRIES = 10
_MOST = 10**18


class OvertakenError(Exception):
    """Between the first look and the claim, another publisher has changed what this one was about to rely on."""


class Claim:
    """One publisher's claim, taken when it first needs a number. Several threads may ask for it."""

    def __init__(self, store: Store, run: str, root: Path) -> None:
        self._store = store
        self._run = run
        self._lock = threading.Lock()
        self.publisher = _publisher(root)
        self.number = 0  # none is taken
        self.seen: Listing = self.look()

    def look(self) -> Listing:
        """List the run's sets anew, and return that."""
        self.seen = Listing(self._store, self._run)
        return self.seen

    def take(self) -> int:
        """Return the number, and claim one before when there is none yet.

        Raises :class:`OvertakenError` when the claim stands, but what was seen before it has changed meanwhile.
        """
        with self._lock:
            if self.number:
                return self.number
            before = self.seen
            for attempt in range(_TRIES):
                self.number = max(self.seen.numbers, default=0) + 1
                if self.number >= _MOST:
                    raise CheckpointError(f"{set_prefix(self._run, self.number - 1)} leaves no number for another set.")
                own = claim_key(self._run, self.number, self.publisher)
                self._store.put(own, json.dumps({"time": timestamp(), "publisher": self.publisher}).encode())
                if set(self.look().keys(self.number)) == {own}:
                    break
                # Somebody else has this number, or wants it, too: both take another one.
                self.release()
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
            else:
                raise CheckpointError(f"Others publish checkpoints of {self._run} just now: there is no free number.")
            if not self.seen.still_shows(before):
                raise OvertakenError
            return self.number

    def key(self, path: str) -> str:
        """Return the key for a file of the set."""
        return set_prefix(self._run, self.take()) + FILES + path

    def release(self) -> None:
        """Take the claim back; without one, do nothing."""
        if self.number:
            number, self.number = self.number, 0
            self._store.delete(claim_key(self._run, number, self.publisher))

    def clear(self) -> None:
        """Remove what an earlier publisher of this folder left when it was killed; our lock says that it is gone."""
        for key in self.seen.claims_of(self.publisher):
            with contextlib.suppress(CheckpointError):
                self._store.abort_unfinished(set_prefix(self._run, number_of(self._run, key)))
            self._store.delete(key)


def _publisher(root: Path) -> str:
    """Return a name for whoever publishes this folder on this machine, until its next boot."""
    info = root.stat()
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    words = (boot, socket.gethostname(), str(root.resolve()), str(info.st_dev), str(info.st_ino))
    return hashlib.sha256("|".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]
