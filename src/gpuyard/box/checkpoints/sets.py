"""Publishing and restoring checkpoints as whole sets.

A set is a folder of plain files in the store plus a manifest that is written last; nothing without a manifest is ever
restored. The files lie in a folder of their own beside the manifest, so that no file can have a key of ours. Content
that an earlier set already holds is not sent again: the manifest points to the older key. Files are hashed from the
very bytes that are sent, so a file that grows meanwhile is stored as it was at one moment.

What is not in a set: ``.gpuyard/tmp``, sockets, pipes and devices, dangling links, links to folders outside the root,
and empty folders (a bucket has none). A link to something inside the root is kept as a link, a link to a file outside
it is stored as that file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gpuyard.box.checkpoints import brought
from gpuyard.box.checkpoints.beneath import Folder, create, open_plain
from gpuyard.box.checkpoints.claims import Claim, OvertakenError
from gpuyard.box.checkpoints.listing import (
    Listing,
    manifest_key,
    note_key,
    number_of,
    numbers_of,
    read_manifest,
    set_prefix,
    sets_prefix,
    write_note,
)
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES, Store
from gpuyard.box.checkpoints.writers import FileId, Writing, file_id, open_for_writing
from gpuyard.errors import BucketError, CheckpointError, GpuyardError, MissingObjectError, UnreadableManifestError
from gpuyard.files import has_control_characters
from gpuyard.formats.manifest import BROUGHT, FileEntry, Manifest, timestamp
from gpuyard.formats.manifest import SCRATCH as SCRATCH
from gpuyard.formats.manifest import STATE as STATE
from gpuyard.formats.run_record import RunRecord

JOURNAL = f"{STATE}/journal.jsonl"
_INCOMING = f"{SCRATCH}/restore"
THREADS = 8
# So often a set is made anew when its objects vanish while it is made.
TRIES = 3
LOCK_WAIT_S = 300.0
# How long a program's own checkpoint calls leave a bucket alone that has just failed.
BACK_OFF_S = 30.0
# A file changed within this time of being hashed may have changed again within one tick of the file system's clock.
_RACY_NS = 2_000_000_000
_CHUNK = 1024 * 1024
# The stages' own logs, which the runner writes line by line.
_LOGS = f"{STATE}/logs/"
# What is written line by line, by its name: such a file counts as appended to while its writer stands at its end.
_LINES = (".jsonl", ".ndjson", ".log", ".out", ".err")
# The last line of a log may be as long as this (bytes) and still be cut off as not whole.
_LONGEST_LINE = 4 * 1024 * 1024
# So many of the files that are being written to are named; of the others, the number is.
_NAMED = 5

Progress = Callable[[bytes], Mapping[str, Any]]
"""Derives the manifest's ``progress`` from the journal's bytes."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class DamagedSetError(CheckpointError):
    """A set's files do not agree with its manifest. ``keys`` are those of the objects that do not."""

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


@dataclass(frozen=True)
class Retention:
    """Which sets stay: the newest ``keep_last`` (0: all), and every ``keep_every``-th by its number (0: none)."""

    keep_last: int = 0
    keep_every: int = 0

    def keeps(self, sequences: Iterable[int]) -> set[int]:
        """Return those of ``sequences`` that stay."""
        known = sorted(sequences)
        if self.keep_last <= 0:
            return set(known)
        return set(known[-self.keep_last :]) | {n for n in known if self.keep_every > 0 and n % self.keep_every == 0}


@dataclass
class Published:
    """What :func:`publish` did. Sizes are in bytes, ``seconds`` is wall-clock time."""

    sequence: int
    files: int
    bytes_total: int
    files_sent: int = 0
    bytes_sent: int = 0
    removed: int = 0
    unchanged: bool = False
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    """What cannot be in a set, each with the reason."""
    held: list[str] = field(default_factory=list)
    """Paths that are in the set as the last one has them, because a program is writing to them."""
    left_out: list[str] = field(default_factory=list)
    """Paths that no set has yet, because a program is writing to them."""
    warnings: list[str] = field(default_factory=list)

    @property
    def lacks(self) -> str:
        """In words, what the set does not hold as it is on the disk; empty when it holds everything."""
        parts = [f"not in the checkpoint: {path}" for path in self.skipped]
        if self.held:
            parts.append(f"as in the checkpoint before, because a program is writing to them: {_named(self.held)}")
        if self.left_out:
            parts.append(f"not in the checkpoint yet, because a program is writing to them: {_named(self.left_out)}")
        return "; ".join(parts)


def _named(names: list[str]) -> str:
    few = ", ".join(sorted(names)[:_NAMED])
    return few if len(names) <= _NAMED else f"{few} and {len(names) - _NAMED} more"


@dataclass
class Restored:
    """What :func:`restore` did: ``source`` is ``nothing`` (start afresh), ``local`` (go on from here) or ``cloud``."""

    source: str
    sequence: int | None = None
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass
class Verified:
    """What :func:`verify` read: ``damaged`` says for each object that is not as its manifest names it what is wrong."""

    sequence: int
    files: int
    bytes: int
    damaged: list[str] = field(default_factory=list)


# --- reading a bucket ------------------------------------------------------------------------------------------------


def sequences(store: Store, run: str) -> list[int]:
    """Return the numbers of the sets of ``run``, newest first, whether or not each has a manifest."""
    return numbers_of(store.folders(sets_prefix(run)))


def manifest_of(store: Store, run: str, sequence: int) -> Manifest:
    """Return the checkpoint with this number, or raise a :class:`CheckpointError` that says which there are."""
    try:
        return read_manifest(store, run, sequence)
    except MissingObjectError:
        there = [number for number in sequences(store, run) if number != sequence]
        raise CheckpointError(
            f"Run {run} has no checkpoint {sequence} in {store.url}; there {_in_words(there) or 'is none'}."
        ) from None


def manifests(store: Store, run: str) -> Iterator[Manifest]:
    """Yield the complete checkpoints of ``run``, newest first; a set that has no manifest is passed over.

    A manifest that is there and cannot be read raises :class:`UnreadableManifestError`: what it stood for is not
    nothing, so nobody begins afresh over it, or with something older, but by choice.
    """
    left = sequences(store, run)
    while left:
        sequence = left.pop(0)
        try:
            yield read_manifest(store, run, sequence)
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            raise UnreadableManifestError(
                f"{error} Bring that object back, or "
                + (
                    f"take an older checkpoint by choice, with -e restore={left[0]} (there {_in_words(left)})."
                    if left
                    else "name another run: there is no older checkpoint."
                )
            ) from error


def _in_words(numbers: Sequence[int]) -> str:
    """Return the first few numbers in words: ``are 9, 8, 7, …``."""
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"{'is' if len(numbers) == 1 else 'are'} {shown}" if numbers else ""


def latest_manifest(store: Store, run: str) -> Manifest | None:
    """Return the newest complete checkpoint of ``run``, or ``None`` when there is no manifest at all.

    Raises :class:`UnreadableManifestError` when there is one that cannot be read, and :class:`BucketError`.
    """
    return next(manifests(store, run), None)


def list_runs(store: Store) -> list[RunRecord]:
    """Return a record of every run that the store knows, by name. Raises :class:`BucketError`."""
    return _parallel(lambda run: _record(store, run), store.folders())


def _record(store: Store, run: str) -> RunRecord:
    try:
        return RunRecord.from_bytes(run, store.get(f"{run}/run.json"))
    except MissingObjectError:
        return RunRecord(run=run)


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


def _read_through(
    store: Store, manifest: Manifest, entries: Sequence[FileEntry], threads: int = THREADS
) -> dict[str, str]:
    """Read the objects of ``entries``; return what is wrong, by key, and note it in the bucket."""
    found = zip(entries, _parallel(lambda entry: _trouble(store, entry), entries, threads), strict=True)
    wrong = {entry.key: f"{entry.path}: {trouble}" for entry, trouble in found if trouble}
    _note_damage(store, manifest, wrong)
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


def _note_damage(store: Store, manifest: Manifest, keys: Iterable[str]) -> None:
    """Note damaged objects in the bucket. It helps, but a bucket that takes no note is no reason to fail."""
    damaged = list(keys)
    if damaged:
        with contextlib.suppress(CheckpointError):
            write_note(store, manifest, damaged)


def clear_unfinished(store: Store, run: str) -> int:
    """End the uploads that publishers of ``run`` did not finish, and take their claims back; return how many that were.

    For a run whose machines are gone: a publisher that is at work would have to begin again. Raises
    :class:`BucketError`.
    """
    claims = Listing(store, run).claims()
    _parallel(store.delete, claims)
    return store.abort_unfinished(f"{run}/") + len(claims)


def write_record(store: Store, run: str, workload: str, *, outcome: str | None = None) -> RunRecord:
    """Say in the bucket that ``run`` has begun (or goes on), or with ``outcome`` that it ended; return the record.

    The time of creation is that of the first record, so that a resumed run keeps it, and what others have written is
    kept as it is. Raises :class:`CheckpointError` when the record there is of a newer version.
    """
    now, known = timestamp(), _record(store, run)
    if known.problem:
        raise CheckpointError(known.problem)
    record = replace(
        known, workload=workload, created=known.created or now, finished=now if outcome else None, outcome=outcome
    )
    store.put(f"{run}/run.json", record.to_bytes())
    return record


# --- publishing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """One thing below the root that belongs into the set; ``link`` is a target relative to the link's folder."""

    path: str
    info: os.stat_result
    link: str | None = None


class _HashingReader:
    """Reads at most ``limit`` bytes of a file, once and in order, and knows the hash of what it gave out.

    It has no ``seek``, so the S3 transfer reads it exactly once, whatever it repeats afterwards.
    """

    def __init__(self, source: Any, limit: int) -> None:
        self._source = source
        self._left = limit
        self.size = 0
        self.sha256 = hashlib.sha256()

    def read(self, amount: int = -1) -> bytes:
        wanted = self._left if amount is None or amount < 0 else min(amount, self._left)
        data: bytes = self._source.read(wanted) if wanted else b""
        self._left -= len(data)
        self.size += len(data)
        self.sha256.update(data)
        return data


class _HashCache:
    """Remembers the hash of each file, so that an unchanged 15 GB model is read once.

    A file is known by what changes when it does. Size and modification time are not enough: ``cp -p`` and ``rsync -t``
    bring the time along. The time of the inode's own change cannot be set by a program, and a file that was replaced
    has another inode.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / SCRATCH / "hashes.json"
        self._known: dict[str, list[Any]] = {}
        self._seen: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(self._file.read_bytes())
            self._known = loaded if isinstance(loaded, dict) else {}

    def get(self, path: str, info: os.stat_result) -> str | None:
        known = self._known.get(path)
        # What an older version wrote has another shape, and is not matched.
        if not isinstance(known, list) or len(known) != 6 or known[:4] != _marks(info):
            return None
        digest, hashed_ns = known[4:]
        if hashed_ns - max(info.st_mtime_ns, info.st_ctime_ns) < _RACY_NS:
            return None
        self._seen[path] = known
        return str(digest)

    def put(self, path: str, info: os.stat_result, digest: str, hashed_ns: int) -> None:
        self._seen[path] = [*_marks(info), digest, hashed_ns]

    def forget(self, path: str) -> None:
        """Do not believe the hash of a file after all."""
        self._seen.pop(path, None)

    def put_restored(self, path: str, info: os.stat_result, digest: str) -> None:
        """Remember a file that was put there this moment, when nothing runs that could change it in the same moment."""
        self.put(path, info, digest, max(info.st_mtime_ns, info.st_ctime_ns) + _RACY_NS)

    def save(self) -> None:
        """Write the cache; it only saves time, so a full disk does not matter here."""
        with contextlib.suppress(OSError):
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(self._seen))
            part.replace(self._file)


def _marks(info: os.stat_result) -> list[int]:
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def publish(
    store: Store,
    run: str,
    root: Path,
    *,
    retention: Retention | None = None,
    progress: Progress | None = None,
    force: bool = False,
    threads: int = THREADS,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Published:
    """Publish everything below ``root`` as the next checkpoint of ``run``, then apply ``retention``.

    A second publisher on the same machine waits up to ``lock_wait_s`` seconds for the first; one on another machine
    takes another number, and while it is at work nothing is removed. When nothing but the journal's own bookkeeping
    changed since the newest set, no set is made unless ``force`` is true. Raises :class:`BucketError` when the bucket
    fails, :class:`CheckpointError` when the lock is not to be had or the set's objects do not stay in the bucket,
    ``OSError`` when a file cannot be read; a set that was begun by then stays invisible and is cleared away by a later
    one.
    """
    began = time.monotonic()
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    with _locked(root / SCRATCH / "publish.lock", lock_wait_s):
        claim = Claim(store, run, root)
        attempt = _Attempt(store, run, root, claim, retention or Retention(), progress, force, threads)
        published: Published | None = None
        try:
            tries = 0
            while published is None and tries < TRIES:
                # Being overtaken is no failed try: from then on the claim stands, and cannot be overtaken any more.
                with contextlib.suppress(OvertakenError):
                    published = attempt.make()
                    tries += 1
        except BucketError:
            raise  # It need not be asked for more: the next publisher of this folder clears up.
        except BaseException:
            with contextlib.suppress(GpuyardError):
                claim.release()
            raise
    if published is None:
        raise CheckpointError(
            f"Objects of run {run} vanish from {store.url} while they are being published, as {TRIES} tries have shown."
        )
    published.seconds = time.monotonic() - began
    return published


@dataclass
class _Attempt:
    """What it takes to make one set, several times over if need be."""

    store: Store
    run: str
    root: Path
    claim: Claim
    retention: Retention
    progress: Progress | None
    force: bool
    threads: int

    def make(self) -> Published | None:
        """Make the set from what the claim's listing shows; ``None`` when it did not stay whole.

        Raises :class:`OvertakenError` when that listing was out of date by the time that the number was claimed.
        """
        seen, run = self.claim.seen, self.run
        # The journal comes first: whatever it calls done is then certainly in the files that are read after it.
        journal = _read_journal(self.root)
        previous, warnings = _newest(self.store, seen)
        # Only content that is there as it was sent need not be sent again.
        known = {
            entry.sha256: entry.key
            for entry in (previous.files if previous else ())
            if entry.link is None and seen.holds(entry)
        }
        cache = _HashCache(self.root)
        found, skipped = _scan(self.root)
        sender = _Sender(self.store, self.claim.key, self.root, known, cache, previous)
        entries = sender.send_all(found, self.threads)
        skipped += sender.skipped
        described = dict(self.progress(journal or b"")) if self.progress else {}
        # While the newest manifest cannot be read, only another set makes the run one that can be restored.
        sound = previous is not None and all(map(seen.holds, previous.files))
        if previous is not None and sound and not self.force and not sender.files_sent and not warnings:
            before = {entry.content for entry in previous.files if entry.path != JOURNAL}
            if before == {entry.content for entry in entries} and dict(previous.progress) == described:
                self.claim.release()
                self.claim.clear()
                cache.save()
                return Published(
                    previous.sequence,
                    len(previous.files),
                    previous.size,
                    unchanged=True,
                    skipped=skipped,
                    held=sender.held,
                    left_out=sender.left_out,
                )
        if journal is not None:
            entries.append(sender.send_bytes(JOURNAL, journal))
        entries.sort(key=lambda entry: entry.path)
        sequence = self.claim.take()
        tags = {entry.key: entry.tag for entry in (previous.files if previous else ())}
        # The store says itself how it lists what it has just got; the answer to a put may be worded otherwise.
        tags |= {item.key: item.tag for item in self.store.objects(set_prefix(run, sequence))}
        entries = [replace(entry, tag=tags.get(entry.key, "")) for entry in entries]
        manifest = Manifest(run, sequence, timestamp(), tuple(entries), described)
        written = self.store.put_new(manifest_key(run, sequence), manifest.to_bytes())
        after = self.claim.look()
        if not written or not all(map(after.holds, manifest.files)):
            if written:
                self.store.delete(manifest_key(run, sequence))
            self.claim.release()
            return None
        with contextlib.suppress(BucketError):  # the set is there all the same
            self.claim.release()
        cache.save()
        removed, trouble = self._prune(after, manifest)
        return Published(
            sequence=sequence,
            files=len(entries),
            bytes_total=manifest.size,
            files_sent=sender.files_sent,
            bytes_sent=sender.bytes_sent,
            removed=removed,
            skipped=skipped,
            held=sender.held,
            left_out=sender.left_out,
            warnings=list(dict.fromkeys(warnings + trouble)),
        )

    def _prune(self, seen: Listing, manifest: Manifest) -> tuple[int, list[str]]:
        """Do :func:`_prune`, unless another publisher may rely on what would go. The set is there, whatever fails."""
        at_work = seen.open_claims(self.claim.publisher)

        def spare(key: str) -> bool:
            # Our own uploads have ended, and whoever has begun since that listing has a higher number.
            number = number_of(self.run, key)
            return number in at_work or not 0 < number < manifest.sequence

        with contextlib.suppress(CheckpointError):  # a key that may not look for them
            self.store.abort_unfinished(sets_prefix(self.run), spare)
        if at_work:
            return 0, [
                f"Another machine has begun a checkpoint of {self.run} within the last hour: no older one is removed."
            ]
        try:
            return _prune(self.store, self.retention, seen, manifest)
        except BucketError as error:
            return 0, [f"Older checkpoints could not be removed: {error}"]


def publish_or_warn(
    store: Callable[[], Store],
    run: str,
    root: Path,
    *,
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    patient: bool = True,
    **options: Any,
) -> Published | None:
    """Like :func:`publish`, but a failure becomes one warning and ``None``: training never ends because of a bucket.

    ``patient=False`` is for calls that a program makes as it goes: for ``BACK_OFF_S`` seconds after a failure they
    return at once instead of waiting for the same dead bucket again. ``options`` are those of :func:`publish`.
    """
    mark = root / SCRATCH / "bucket-failed"
    if not patient:
        with contextlib.suppress(OSError):
            if time.time() - mark.stat().st_mtime < BACK_OFF_S:
                warn("Warning: no checkpoint was published: the bucket has just failed. Everything stays on this box.")
                return None
    try:
        published = publish(store(), run, root, **options)
    except (GpuyardError, OSError) as error:
        warn(f"Warning: no checkpoint was published: {error} Everything stays on this box.")
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return None
    with contextlib.suppress(OSError):
        mark.unlink(missing_ok=True)
    if published.lacks and _is_news(root, published):
        warn(f"Warning: {published.lacks}")
    for text in published.warnings:
        warn(f"Warning: {text}")
    return published


def _is_news(root: Path, published: Published) -> bool:
    """Tell whether other files are concerned than at the last publish: what is so every minute is said once.

    Files that no set has yet count as one: most are temporary, with another name each time.
    """
    news = json.dumps([sorted(published.skipped), sorted(published.held), bool(published.left_out)])
    file = root / SCRATCH / "said"
    with contextlib.suppress(OSError, ValueError):
        if file.read_text() == news:
            return False
    with contextlib.suppress(OSError):
        file.write_text(news)
    return True


class _ChangedError(Exception):
    """A file changed while it was read, so what was read may never have been its content."""


class _Sender:
    """Brings single files into the store. Several threads use one sender; appending to a list needs no lock.

    A file that some process is writing to, or that changes while it is read, is not whole: the set has it as the last
    one does, or not at all. A file that is only appended to is taken up to its last whole line.
    """

    def __init__(
        self,
        store: Store,
        key: Callable[[str], str],
        root: Path,
        known: Mapping[str, str],
        cache: _HashCache,
        previous: Manifest | None,
    ) -> None:
        self._store = store
        self._key = key
        self._root = root
        self._known = known
        self._cache = cache
        self._before = {entry.path: entry for entry in (previous.files if previous else ())}
        self._writers: dict[FileId, Writing] = {}
        self._read: dict[str, os.stat_result] = {}
        self._sent: dict[str, int] = {}
        self.skipped: list[str] = []
        self.held: list[str] = []
        self.left_out: list[str] = []

    @property
    def files_sent(self) -> int:
        return len(self._sent)

    @property
    def bytes_sent(self) -> int:
        return sum(self._sent.values())

    def send_all(self, found: list[_Found], threads: int) -> list[FileEntry]:
        """Store what the store does not have, and return the entries of the set (the journal apart)."""
        unread = [item for item in found if item.link is None and self._cached(item) is None]
        self._writers = open_for_writing({_name(item.path) for item in unread}) if unread else {}
        entries = [entry for entry in _parallel(self.send, found, threads) if entry is not None]
        if not self._read:
            return entries
        # Whoever began to write after the look above was not seen by it, and may have been half-way when it was read.
        self._writers = open_for_writing({_name(path) for path in self._read})
        checked = (self._still_whole(entry) for entry in entries)
        return [entry for entry in checked if entry is not None]

    def send_bytes(self, path: str, data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> FileEntry:
        """Store ``data`` unless the store has it, and describe it."""
        digest = hashlib.sha256(data).hexdigest()
        key = self._known.get(digest)
        if key is None:
            key = self._key(path)
            self._store.put(key, data)
            self._sent[path] = len(data)
        return FileEntry(path, len(data), digest, mode, key, mtime_ns)

    def send(self, found: _Found) -> FileEntry | None:
        """Store one file unless the store has its content; ``None`` when the set does not have it."""
        if found.link is not None:
            digest = hashlib.sha256(found.link.encode()).hexdigest()
            return FileEntry(found.path, 0, digest, 0o777, "", link=found.link)
        cached = self._cached(found)
        if cached is not None:
            info, mode = found.info, found.info.st_mode & 0o777
            return FileEntry(found.path, info.st_size, cached, mode, self._known[cached], info.st_mtime_ns)
        for last in (False, True):
            try:
                return self._send_content(found.path)
            except FileNotFoundError:
                return None
            except PermissionError as error:
                self.skipped.append(f"{found.path} ({error.strerror})")
                return None
            except _ChangedError:
                # A program that saves by renaming is whole again at once; one that goes on writing is not.
                if last:
                    break
        return self._hold(found.path)

    def _cached(self, found: _Found) -> str | None:
        digest = self._cache.get(found.path, found.info)
        return digest if digest in self._known else None

    def _send_content(self, path: str) -> FileEntry:
        source = self._root / path
        with source.open("rb") as stream:
            info = os.fstat(stream.fileno())
            opened_ns = time.time_ns()
            appends = self._appends(path, info, stream)
            size = _whole_lines(stream, info.st_size) if appends else info.st_size

            def check() -> None:
                # One that has grown is looked at again when all is sent.
                now = os.fstat(stream.fileno())
                grown = now.st_size > info.st_size
                if not (_is_same(now, info) or grown) or file_id(source.stat()) != file_id(info):
                    raise _ChangedError

            entry = self._send_stream(path, stream, size, info, check)
        if not appends:
            self._read[path] = info
        if entry.size == info.st_size:
            self._cache.put(path, info, entry.sha256, opened_ns)
        return entry

    def _send_stream(
        self, path: str, stream: Any, size: int, info: os.stat_result, check: Callable[[], None]
    ) -> FileEntry:
        mode = info.st_mode & 0o777
        if size > SINGLE_REQUEST_BYTES:
            return self._send_large(path, stream, size, info, check)
        data = stream.read(size)
        check()
        if len(data) != size:
            raise _ChangedError
        return self.send_bytes(path, data, mode, info.st_mtime_ns)

    def _send_large(
        self, path: str, stream: Any, size: int, info: os.stat_result, check: Callable[[], None]
    ) -> FileEntry:
        """Hash first, because reading is cheaper than sending; then send, and believe the hash of what was sent."""
        mode = info.st_mode & 0o777
        first = _HashingReader(stream, size)
        while first.read(_CHUNK):
            pass
        check()
        digest = first.sha256.hexdigest()
        if digest in self._known:
            return FileEntry(path, first.size, digest, mode, self._known[digest], info.st_mtime_ns)
        stream.seek(0)
        second: Any = _HashingReader(stream, size)
        key = self._key(path)
        self._store.put_stream(key, second)
        self._sent[path] = second.size
        if second.sha256.digest() != first.sha256.digest():
            self._take_back(path)
            raise _ChangedError
        return FileEntry(path, second.size, digest, mode, key, info.st_mtime_ns)

    def _appends(self, path: str, info: os.stat_result, stream: Any) -> bool:
        """Tell whether the file grows at its end only, ``False`` when nobody writes to it.

        Raises :class:`_ChangedError` when somebody writes to it in any other way.
        """
        writing = self._writers.get(file_id(info))
        if writing is None:
            return False
        if writing is not Writing.APPENDED and not path.startswith(_LOGS):
            if writing is Writing.ANYWHERE or not path.endswith(_LINES):
                raise _ChangedError
            # It may also be written anew from the start, and then holds less than the last set does.
            before = self._before.get(path)
            if before is not None and not _begins_with(stream, before):
                raise _ChangedError
        return True

    def _still_whole(self, entry: FileEntry) -> FileEntry | None:
        """Return the entry of a file that was read, unless somebody has begun to write to that very file meanwhile."""
        info = self._read.get(entry.path)
        if info is None:
            return entry
        try:
            now = (self._root / entry.path).stat()
        except OSError:
            return entry  # it was whole, and is gone
        if file_id(now) != file_id(info):
            return entry  # replaced by another file: what was read was whole, and the next set has the new one
        writing = self._writers.get(file_id(info))
        if writing is None and _is_same(now, info):
            return entry
        # A program may append by opening the file anew each time.
        if writing is not Writing.ANYWHERE and now.st_size >= info.st_size and self._is_begun_with(entry):
            return entry
        self._cache.forget(entry.path)
        self._take_back(entry.path)
        return self._hold(entry.path)

    def _is_begun_with(self, entry: FileEntry) -> bool:
        """Tell whether a file still begins with what was read of it, and that ended with a whole line."""
        try:
            with (self._root / entry.path).open("rb") as stream:
                if not _begins_with(stream, entry):
                    return False
                stream.seek(max(0, entry.size - 1))
                return stream.read(1) == b"\n" or entry.size == 0
        except OSError:
            return False

    def _take_back(self, path: str) -> None:
        if self._sent.pop(path, None) is not None:
            with contextlib.suppress(CheckpointError):
                self._store.delete(self._key(path))

    def _hold(self, path: str) -> FileEntry | None:
        """Return the entry that the last set has for a file, where the store still has its content."""
        before = self._before.get(path)
        if before is not None and before.link is None and before.sha256 in self._known:
            self.held.append(path)
            return replace(before, key=self._known[before.sha256])
        self.left_out.append(path)
        return None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _is_same(now: os.stat_result, before: os.stat_result) -> bool:
    """Tell whether a file was not written to in between."""
    return (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _begins_with(stream: Any, entry: FileEntry) -> bool:
    """Tell whether a file, from where it is read now, begins with the content of ``entry``."""
    content = _HashingReader(stream, entry.size)
    while content.read(_CHUNK):
        pass
    return content.sha256.hexdigest() == entry.sha256


def _whole_lines(stream: Any, size: int) -> int:
    """Return the length of a file up to the end of its last whole line; :class:`_ChangedError` when it has none.

    The stream is left at its start.
    """
    end = size
    while end > max(0, size - _LONGEST_LINE):
        start = max(0, end - _CHUNK)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            stream.seek(0)
            return int(start + newline + 1)
        end = start
    if size:
        raise _ChangedError
    stream.seek(0)
    return 0


def _scan(root: Path) -> tuple[list[_Found], list[str]]:
    """Return what belongs into a set (the journal apart), and the names of what had to be left out."""
    found: list[_Found] = []
    skipped: list[str] = []
    resolved_root = root.resolve()
    for folder, folders, files in os.walk(root):
        base = Path(folder).relative_to(root).as_posix()
        below = "" if base == "." else f"{base}/"
        if below == f"{STATE}/":
            folders[:] = [name for name in folders if f"{STATE}/{name}" != SCRATCH]
        for name in sorted([*files, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            path = below + name
            if path == JOURNAL:
                continue
            try:
                path.encode()
                if has_control_characters(path):
                    skipped.append(f"{path!r} (its name holds control characters)")
                    continue
                item = _describe(Path(folder) / name, path, resolved_root)
            except UnicodeEncodeError:
                skipped.append(f"{path!r} (its name is not UTF-8)")
                continue
            except OSError:
                continue  # gone since it was listed, or a link into nowhere
            if isinstance(item, str):
                skipped.append(item)
            elif item is not None:
                found.append(item)
    return found, skipped


def _describe(place: Path, path: str, root: Path) -> _Found | str | None:
    info = place.stat()
    if place.is_symlink():
        target = place.resolve(strict=True)
        if root in target.parents:
            return _Found(path, place.lstat(), os.path.relpath(target, place.parent.resolve()))
        if stat.S_ISDIR(info.st_mode):
            return f"{path} (a link to a folder outside the persistent root)"
    return _Found(path, info) if stat.S_ISREG(info.st_mode) else None


def _read_journal(root: Path) -> bytes | None:
    try:
        return (root / JOURNAL).read_bytes()
    except FileNotFoundError:
        return None


def _newest(store: Store, seen: Listing) -> tuple[Manifest | None, list[str]]:
    """Return the newest manifest that can be read, and a warning for each newer one that cannot."""
    warnings: list[str] = []
    for sequence in seen.complete:
        try:
            return read_manifest(store, seen.run, sequence), warnings
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            warnings.append(_kept_for(error))
    return None, warnings


def _if_there(store: Store, run: str, sequence: int) -> Manifest | None:
    try:
        return read_manifest(store, run, sequence)
    except MissingObjectError:
        return None


def _kept_for(error: UnreadableManifestError) -> str:
    return f"{error} No older checkpoint is removed while it is there."


def _prune(store: Store, retention: Retention, seen: Listing, newest: Manifest) -> tuple[int, list[str]]:
    """Remove what no kept set needs; return how many objects went, and why none went.

    ``newest`` has just been published and seen to be whole; it stays, and so does whatever came after it. A dropped set
    loses its manifest before its files, so it is never taken for complete. Nothing is removed when any manifest cannot
    be read, because nobody knows what that set needs, or whether it will be wanted. Sets that never got a manifest go
    too.
    """
    run = newest.run
    kept = retention.keeps(seen.complete) | {number for number in seen.numbers if number >= newest.sequence}
    doomed = {key for number in seen.numbers if number not in kept for key in seen.keys(number)}
    if not doomed:
        return 0, []
    needed = {entry.key for entry in newest.files}
    others = [number for number in seen.complete if number != newest.sequence]
    try:
        found = _parallel(lambda number: _if_there(store, run, number), others)
    except UnreadableManifestError as error:
        return 0, [_kept_for(error)]
    for other in found:
        if other is not None and other.sequence in kept:
            needed |= {entry.key for entry in other.files}
    # A note stays as long as anything that it speaks of.
    needed |= {
        note_key(run, number)
        for number, damaged in seen.notes.items()
        if any(key in seen.objects and (key in needed or key not in doomed) for key in damaged)
    }
    gone = doomed - needed
    first = {key for number in seen.complete if (key := manifest_key(run, number)) in gone}
    _parallel(store.delete, first)
    _parallel(store.delete, gone - first)
    return len(gone), []


# --- restoring -------------------------------------------------------------------------------------------------------


def restore(
    store: Callable[[], Store] | None,
    run: str,
    root: Path,
    *,
    has_local: Callable[[Path], bool] | None = None,
    threads: int = THREADS,
    sequence: int | None = None,
) -> Restored:
    """Bring ``root`` to the newest complete checkpoint of ``run``, unless there is local work already.

    With ``sequence`` it is exactly that checkpoint, or an error.

    The four cases: nothing anywhere → ``nothing``; local work (default: a journal that is not empty), with or without
    a bucket → ``local``, and the bucket is not even asked; bucket only → ``cloud``. Every file is verified before the
    first one is put in its place, and the journal comes last: a restore that was cut off is begun again, and what it
    had fetched is used. A damaged set gives way to the next older one. Raises :class:`BucketError` when the bucket
    does not answer, :class:`CheckpointError` when it has sets and none of them is whole, or the newest manifest cannot
    be read.
    """
    began = time.monotonic()
    if (has_local or _has_journal)(root):
        unused = f"restore={sequence} was not used: this box has work of its own, in {root}."
        return Restored("local", warnings=[] if sequence is None else [unused])
    if store is None:
        if sequence is not None:
            raise CheckpointError(f"restore={sequence} needs a bucket, and run {run} has none.")
        return Restored("nothing")
    opened = store()
    warnings: list[str] = []
    for manifest in manifests(opened, run) if sequence is None else [manifest_of(opened, run, sequence)]:
        try:
            changed = _fetch_set(opened, manifest, root, threads)
        except (DamagedSetError, MissingObjectError) as error:
            if isinstance(error, DamagedSetError):
                _note_damage(opened, manifest, error.keys)
            if sequence is not None:
                raise CheckpointError(f"Checkpoint {sequence} of {run} is damaged ({error}).") from error
            warnings.append(f"Checkpoint {manifest.sequence} of {run} is damaged ({error}), so an older one is tried.")
            continue
        if changed:
            warnings.append(
                f"The repository has another version of {_named(changed)} than this machine got: the run had changed "
                f"what was brought before, so what checkpoint {manifest.sequence} has was restored."
            )
        return Restored(
            "cloud",
            manifest.sequence,
            len(manifest.files),
            manifest.size,
            time.monotonic() - began,
            warnings,
        )
    if warnings:
        raise CheckpointError(f"No checkpoint of {run} in {opened.url} is whole: {' '.join(warnings)}")
    return Restored("nothing")


def _has_journal(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return (root / JOURNAL).stat().st_size > 0
    return False


def brought_in(store: Store, manifest: Manifest) -> dict[str, str]:
    """Return what the set's own record says that the repository has brought: SHA-256 by path, of files of the set.

    A set of an older gpuyard has no such record. Raises :class:`CheckpointError` when it is damaged or gone.
    """
    files = {entry.path: entry for entry in manifest.files}
    entry = files.get(BROUGHT)
    if entry is None or entry.link is not None or entry.size > brought.MOST_BYTES:
        return {}
    data = b""
    for chunk in store.chunks(entry.key):
        data += chunk
        if len(data) > entry.size:
            break
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedSetError(f"{entry.key} does not have the content that its manifest names", [entry.key])
    return {path: digest for path, digest in brought.parse(data).items() if path in files}


def _fetch_set(store: Store, manifest: Manifest, root: Path, threads: int) -> list[str]:
    """Fetch a set and put its files in their places; nothing is written through a link, whatever the set holds.

    Temporary files have names of digests, which the manifest's reader has checked. A file that the repository has just
    brought stays where the run had left alone what was brought before. Returns the paths of those that it had changed.
    """
    before = brought_in(store, manifest)
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        base = closing.enter_context(Folder(root))
        incoming, _ = closing.enter_context(base.parent(f"{_INCOMING}/any", make=True))
        here = brought.parse(_read(base, BROUGHT, brought.MOST_BYTES + 1))
        left_alone, changed = brought.compare(manifest.files, before, here)
        newer = {path for path in left_alone if _sha256(base, path) == here[path]}
        files = [entry for entry in manifest.files if entry.path != BROUGHT and entry.path not in newer]
        pending = [entry for entry in files if entry.link is None and not _is_content(base, entry)]
        uses = Counter(entry.sha256 for entry in pending)
        wanted = {entry.sha256: entry for entry in pending}
        missing = [entry for entry in wanted.values() if not _is_whole_part(incoming, entry)]
        free = shutil.disk_usage(root).free
        if sum(entry.size for entry in missing) > free:
            gigabytes = sum(entry.size for entry in missing) / 1e9
            raise CheckpointError(
                f"Checkpoint {manifest.sequence} of {manifest.run} needs {gigabytes:.1f} GB below {root}, "
                f"where {free / 1e9:.1f} GB are free."
            )

        def fetch(entry: FileEntry) -> None:
            os.close(create(incoming, entry.sha256))
            store.fetch(entry.key, root / _INCOMING / entry.sha256, entry.size)
            if not _is_whole_part(incoming, entry):
                os.unlink(entry.sha256, dir_fd=incoming)
                raise DamagedSetError(f"{entry.key} does not have the content that its manifest names", [entry.key])

        _parallel(fetch, missing, threads)
        cache = _HashCache(root)
        placed = set(pending)
        record = brought.merge(manifest.files, before, here, newer)
        if record != here:
            _write_record(base, incoming, record)
        for entry in sorted(files, key=lambda entry: entry.path == JOURNAL):
            with base.parent(entry.path, make=True) as (folder, name):
                try:
                    if entry.link is not None:
                        _place_link(incoming, entry.link, folder, name, root / entry.path, root)
                        continue
                    if entry in placed:
                        uses[entry.sha256] -= 1
                        _place(incoming, entry, folder, name, last=not uses[entry.sha256])
                    else:
                        _set_attributes(folder, name, entry)
                except IsADirectoryError as error:
                    raise CheckpointError(f"{root / entry.path} is a folder, where {entry.path} is to be.") from error
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                cache.put_restored(entry.path, info, entry.sha256)
        cache.save()
    shutil.rmtree(root / _INCOMING, ignore_errors=True)
    return changed


def _write_record(base: Folder, incoming: int, record: Mapping[str, str]) -> None:
    with os.fdopen(create(incoming, "brought", 0o644), "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=1, sort_keys=True)
    with base.parent(BROUGHT, make=True) as (folder, name):
        try:
            os.replace("brought", name, src_dir_fd=incoming, dst_dir_fd=folder)
        except IsADirectoryError as error:
            raise CheckpointError(f"{base.path / BROUGHT} is a folder, where {BROUGHT} is to be.") from error


def _place(incoming: int, entry: FileEntry, folder: int, name: str, *, last: bool) -> None:
    """Put a part in its place in one step: moved there by the ``last`` file that wants it, copied for the others.

    Not a hard link: two restored files that happen to be equal must not write into each other later.
    """
    part = entry.sha256
    if not last:
        part = f"{entry.sha256}.copy"
        _copy_part(incoming, entry.sha256, incoming, part)
    _set_attributes(incoming, part, entry)
    try:
        os.replace(part, name, src_dir_fd=incoming, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A file system of its own is mounted inside the folder.
        beside = f".gpuyard-part-{entry.sha256}"
        try:
            _copy_part(incoming, part, folder, beside)
            _set_attributes(folder, beside, entry)
            os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)


def _copy_part(source_folder: int, source: str, target_folder: int, target: str) -> None:
    with (
        os.fdopen(open_plain(source_folder, source, source), "rb") as reader,
        os.fdopen(create(target_folder, target), "wb") as writer,
    ):
        shutil.copyfileobj(reader, writer, _CHUNK)


def _set_attributes(folder: int, name: str, entry: FileEntry) -> None:
    handle = open_plain(folder, name, entry.path)
    try:
        os.fchmod(handle, entry.mode)
        if entry.mtime_ns:
            os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(handle)


def _place_link(incoming: int, target: str, folder: int, name: str, path: Path, root: Path) -> None:
    # The manifest's reader has followed it through the set; links that lie here already may lead it elsewhere.
    leads_to, inside = Path(os.path.realpath(path.parent / target)), Path(os.path.realpath(root))
    if leads_to != inside and inside not in leads_to.parents:
        raise CheckpointError(f"{path} would be a link to {leads_to}, which is outside of {root}.")
    with contextlib.suppress(FileNotFoundError):
        os.unlink("link", dir_fd=incoming)
    os.symlink(target, "link", dir_fd=incoming)
    try:
        os.replace("link", name, src_dir_fd=incoming, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        os.symlink(target, name, dir_fd=folder)


def _is_content(base: Folder, entry: FileEntry) -> bool:
    """Tell whether a plain file with the entry's size and hash is in its place."""
    try:
        return _is_content_of(base.open_file(entry.path), entry)
    except (FileNotFoundError, PermissionError):
        return False


def _read(base: Folder, path: str, most: int) -> bytes:
    """Return the beginning of a plain file; nothing when there is none."""
    try:
        with os.fdopen(base.open_file(path), "rb") as stream:
            return stream.read(most)
    except (FileNotFoundError, PermissionError):
        return b""


def _sha256(base: Folder, path: str) -> str | None:
    try:
        with os.fdopen(base.open_file(path), "rb") as stream:
            return _hash_of(stream)
    except (FileNotFoundError, PermissionError):
        return None


def _is_whole_part(incoming: int, entry: FileEntry) -> bool:
    try:
        return _is_content_of(open_plain(incoming, entry.sha256, entry.path), entry)
    except (FileNotFoundError, PermissionError):
        return False


def _is_content_of(handle: int, entry: FileEntry) -> bool:
    with os.fdopen(handle, "rb") as stream:
        if os.fstat(handle).st_size != entry.size:
            return False
        return _hash_of(stream) == entry.sha256


def _hash_of(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


# --- shared ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(file: Path, wait_s: float) -> Iterator[None]:
    """Hold an exclusive lock on ``file``; the kernel lets go of it when this process dies, however it dies."""
    with file.open("a") as handle:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise CheckpointError(
                        f"Another checkpoint has been under way for more than {wait_s:.0f} s on this machine."
                    ) from error
                time.sleep(0.05)
        yield


def _parallel(work: Callable[[_T], _R], items: Iterable[_T], threads: int = THREADS) -> list[_R]:
    """Apply ``work`` to every item with several threads, in order; the first failure cancels what has not begun."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    pool = ThreadPoolExecutor(max_workers=min(threads, len(todo)), thread_name_prefix="checkpoint")
    try:
        return list(pool.map(work, todo))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
