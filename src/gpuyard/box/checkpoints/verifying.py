"""Reading the objects of a set, and telling whether they are what their manifest names."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gpuyard.box.checkpoints.listing import Listing, note_key, read_manifest, write_note
from gpuyard.box.checkpoints.parallel import THREADS, in_parallel
from gpuyard.box.checkpoints.reading import latest_manifest, manifest_of, manifests, sequences
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import CheckpointError, MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import FileEntry, Manifest


class DamagedSetError(CheckpointError):
    """A set's files do not agree with its manifest. ``keys`` are those of the objects that do not."""

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


@dataclass
class Verified:
    """What :func:`verify` read: ``damaged`` says for each object that is not as its manifest names it what is wrong."""

    sequence: int
    files: int
    bytes: int
    damaged: list[str] = field(default_factory=list)


def latest_whole_manifest(
    store: Store, run: str, *, sequence: int | None = None, say: Callable[[str], None] = lambda text: None
) -> Manifest | None:
    """Like :func:`latest_manifest`, but only of a set whose every object is in the store with its content.

    With ``sequence`` only that set is looked at. One listing answers most of that. An object is read where the store's
    tags do not tell: in a folder, in a bucket that was copied, for a set that remembers none. Raises
    :class:`BucketError`.
    """
    seen = Listing(store, run)
    for found in manifests(store, run) if sequence is None else [manifest_of(store, run, sequence)]:
        entries = {entry.key: entry for entry in found.files if entry.link is None}
        if not all(map(seen.may_hold, entries.values())):
            continue
        doubtful = [
            entry for entry in entries.values() if not (store.tags_tell_content and seen.has_tag(entry, unknown=False))
        ]
        if doubtful:
            gigabytes = sum(entry.size for entry in doubtful) / 1e9
            say(f"Reading {len(doubtful)} objects ({gigabytes:.1f} GB) of checkpoint {found.sequence} of {run}.")
        if not _read_through(store, found, doubtful):
            return found
    return None


def verify(store: Store, run: str, *, sequence: int | None = None, threads: int = THREADS) -> Verified:
    """Read every object of a checkpoint (default: the newest), and compare it with what the manifest names.

    What is damaged is noted in the bucket, so that no later set is built upon it; a note on a set that is sound goes.
    Raises :class:`CheckpointError` when there is no such checkpoint.
    """
    manifest = latest_manifest(store, run) if sequence is None else manifest_of(store, run, sequence)
    if manifest is None:
        raise CheckpointError(f"Run {run} has no checkpoint in {store.url}.")
    entries = {entry.key: entry for entry in manifest.files if entry.link is None}
    wrong = _read_through(store, manifest, list(entries.values()), threads)
    if not wrong and not any(entry.key == note_key(run, manifest.sequence) for entry in manifest.files):
        with contextlib.suppress(CheckpointError):
            store.delete(note_key(run, manifest.sequence))
    return Verified(manifest.sequence, len(manifest.files), manifest.size, list(wrong.values()))


def verify_all(store: Store, run: str, *, threads: int = THREADS) -> list[Verified]:
    """Do the same with every checkpoint of a run, newest first; an object that several of them have is read once.

    A manifest that cannot be read counts as damaged. Raises :class:`CheckpointError` when there is no checkpoint.
    """
    found: list[Verified] = []
    troubles: dict[tuple[str, int, str], str] = {}
    for sequence in sequences(store, run):
        try:
            manifest = read_manifest(store, run, sequence)
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            found.append(Verified(sequence, 0, 0, [str(error)]))
            continue
        entries = {_identity(entry): entry for entry in manifest.files if entry.link is None}
        unread = [entry for identity, entry in entries.items() if identity not in troubles]
        read = in_parallel(lambda entry: _trouble(store, entry), unread, threads)
        troubles |= dict(zip(map(_identity, unread), read, strict=True))
        wrong = {
            entry.key: f"{entry.path}: {trouble}" for name, entry in entries.items() if (trouble := troubles[name])
        }
        note_damage(store, manifest, wrong)
        found.append(Verified(sequence, len(manifest.files), manifest.size, list(wrong.values())))
    if not found:
        raise CheckpointError(f"Run {run} has no checkpoint in {store.url}.")
    return found


def _identity(entry: FileEntry) -> tuple[str, int, str]:
    return entry.key, entry.size, entry.sha256


def _read_through(
    store: Store, manifest: Manifest, entries: Sequence[FileEntry], threads: int = THREADS
) -> dict[str, str]:
    """Read the objects of ``entries``; return what is wrong, by key, and note it in the bucket."""
    found = zip(entries, in_parallel(lambda entry: _trouble(store, entry), entries, threads), strict=True)
    wrong = {entry.key: f"{entry.path}: {trouble}" for entry, trouble in found if trouble}
    note_damage(store, manifest, wrong)
    return wrong


def _trouble(store: Store, entry: FileEntry) -> str:
    """Read one object; return what is wrong with it, ``""`` when nothing is."""
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in store.chunks(entry.key):
            digest.update(chunk)
            size += len(chunk)
    except MissingObjectError:
        return f"{entry.key} is not in the bucket"
    if size != entry.size:
        return f"{entry.key} has {size} bytes, and should have {entry.size}"
    return "" if digest.hexdigest() == entry.sha256 else f"{entry.key} does not have the content that it should have"


def note_damage(store: Store, manifest: Manifest, keys: Iterable[str]) -> None:
    """Note damaged objects in the bucket. It helps, but a bucket that takes no note is no reason to fail."""
    damaged = list(keys)
    if damaged:
        with contextlib.suppress(CheckpointError):
            write_note(store, manifest, damaged)
