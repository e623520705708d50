"""Notes of create requests that nobody has seen answered yet, so that the next command looks before it rents.

A create whose answer is lost may have rented, and a new machine may be missing from its cloud's list for a while. The
command that sent the request looks for it. When that command is killed, only this note knows: it is written before the
request goes out and removed when the answer is certain. It lies in the bucket, where every controller finds it, or in
``~/.gpuyard/pending`` where there is no bucket or it does not answer. It holds no secret.
"""

from __future__ import annotations

import json
import math
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

from gpuyard import paths
from gpuyard.box.checkpoints import LocalStore, Store
from gpuyard.errors import CheckpointError, GpuyardError, MissingObjectError
from gpuyard.formats.label import FIRST_NODE, RunRef
from gpuyard.providers.base import Progress
from gpuyard.renting.notebook import Notebook

FOLDER = "requests"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Note:
    """One create request. ``sent_at`` is in seconds since 1970, by the clock of ``controller``."""

    run: str
    provider: str
    label: str
    sent_at: float
    controller: str
    key: str = ""  # under which it lies in its store

    @property
    def node(self) -> str:
        """The node for which the machine was asked."""
        ref = RunRef.from_label(self.label)
        return ref.node if ref else FIRST_NODE


@dataclass(slots=True)
class PendingNotes:
    """The notes of all runs. Nothing here raises: a note that cannot be kept is told, and renting goes on."""

    bucket: Notebook = field(default_factory=Notebook)
    progress: Progress = lambda _: None
    now: Callable[[], float] = time.time

    def write(self, ref: RunRef, provider: str) -> Note | None:
        """Note that a create for ``ref`` is about to be sent to ``provider``; ``None`` when no place takes the note."""
        note = Note(
            ref.run,
            provider,
            ref.label,
            self.now(),
            socket.gethostname(),
            f"{ref.run}/{FOLDER}/{provider}-{secrets.token_hex(4)}.json",
        )
        content = {"version": VERSION, **asdict(note)}
        del content["key"]
        for store in self._stores():
            try:
                store.put(note.key, json.dumps(content, indent=1).encode())
            except CheckpointError as error:
                self._failed(store, error)
                continue
            return note
        return None

    def read(self, run: str) -> list[Note]:
        """Return the notes of ``run``, the oldest first; one that cannot be read is left out."""
        found = [note for store in self._stores() for note in self._notes(store, run)]
        return sorted(found, key=lambda note: note.sent_at)

    def clear(self, *notes: Note | None) -> None:
        """Remove ``notes``: what they asked about is certain."""
        for note in filter(None, notes):
            for store in self._stores():
                try:
                    store.delete(note.key)
                except CheckpointError as error:
                    self._failed(store, error)

    def _notes(self, store: Store, run: str) -> Iterator[Note]:
        try:
            for item in store.objects(f"{run}/{FOLDER}/"):
                try:
                    yield _note(run, item.key, store.get(item.key))
                except MissingObjectError:
                    continue  # its command has just had an answer
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.progress(f"{store.url}/{item.key} is no note of an unanswered request; it is passed over.")
        except CheckpointError as error:
            self._failed(store, error)

    def _stores(self) -> list[Store]:
        """Return where notes lie: the bucket first, where there is one, then the controller's own folder."""
        try:
            shared = self.bucket.store()
        except GpuyardError as error:
            self.progress(f"Notes of unanswered requests stay on this controller: {error}")
            shared = None
        return [shared, _own()] if shared else [_own()]

    def _failed(self, store: Store, error: CheckpointError) -> None:
        """Say that a store cannot be used; a bucket is used no more."""
        if store.url != _own().url:
            self.bucket.give_up()
        self.progress(f"What a command has asked for and not seen answered may be overlooked: {error}")


def unanswered(keys: Iterable[str]) -> list[str]:
    """Return a sentence for each note of a request, which are known by their keys."""
    parts = ((run, name.partition("-")[0]) for run, _, name in (key.split("/", 2) for key in keys))
    return [
        f"A request of run {run} to {provider} is not known to be answered: a machine may have come of it."
        for run, provider in parts
    ]


def unanswered_here() -> list[str]:
    """Return the same for the notes that lie on this controller."""
    try:
        return unanswered(item.key for item in _own().objects("") if item.key.count("/") == 2)
    except CheckpointError as error:
        return [f"Notes of unanswered requests on this controller cannot be read: {error}"]


def _note(run: str, key: str, data: bytes) -> Note:
    content = json.loads(data)
    sent_at = float(content["sent_at"])
    if not math.isfinite(sent_at):
        raise ValueError(f"sent_at={sent_at}")
    return Note(
        run=run,
        provider=str(content["provider"]),
        label=str(content.get("label") or ""),
        sent_at=sent_at,
        controller=str(content.get("controller") or "another controller"),
        key=key,
    )


def _own() -> LocalStore:
    return LocalStore(paths.home() / "pending")
