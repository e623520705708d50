"""Publishing and restoring checkpoints as whole sets.

A set is a folder of plain files in the store plus a manifest that is written last; nothing without a manifest is ever
restored. Content that an earlier set already holds is not sent again: the manifest points to the older key. Files
are hashed from the very bytes that are sent, so a file that grows meanwhile is stored as it was at one moment.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gpuyard.checkpoints.beneath import Folder, create, has_control_characters, open_plain
from gpuyard.checkpoints.manifest import SCRATCH as SCRATCH
from gpuyard.checkpoints.manifest import STATE as STATE
from gpuyard.checkpoints.manifest import FileEntry, Manifest, RunRecord, timestamp
from gpuyard.checkpoints.stores import SINGLE_REQUEST_BYTES, BucketError, CheckpointError, MissingObjectError, Store
from gpuyard.checkpoints.writers import FileId, file_id, open_for_writing
from gpuyard.errors import GpuyardError

JOURNAL = f"{STATE}/journal.jsonl"
_INCOMING = f"{SCRATCH}/restore"
MANIFEST = "manifest.json"
THREADS = 8
LOCK_WAIT_S = 300.0
# How long a program's own checkpoint calls leave a bucket alone that has just failed.
BACK_OFF_S = 30.0
# A file changed within this time of being hashed may have changed again within one tick of the file system's clock.
_RACY_NS = 2_000_000_000
_CHUNK = 1024 * 1024
# The stages' own logs, which the runner writes line by line.
_LOGS = f"{STATE}/logs/"
# The last line of a log may be as long as this (bytes) and still be cut off as not whole.
_LONGEST_LINE = 4 * 1024 * 1024
# So many of the files that are being written to are named; of the others, the number is.
_NAMED = 5

Progress = Callable[[bytes], Mapping[str, Any]]
"""Derives the manifest's ``progress`` from the journal's bytes."""
_T = TypeVar("_T")
_R = TypeVar("_R")


class DamagedSetError(CheckpointError):
    """A set's files do not agree with its manifest."""


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

    @property
    def lacks(self) -> str:
        """In words, what the set does not hold as it is on the disk; empty when it holds everything."""
        parts = [f"not in the checkpoint: {path}" for path in self.skipped]
        if self.held:
            parts.append(f"as in the checkpoint before, because a program is writing to them: {_some(self.held)}")
        if self.left_out:
            parts.append(f"not in the checkpoint yet, because a program is writing to them: {_some(self.left_out)}")
        return "; ".join(parts)


def _some(names: list[str]) -> str:
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


# --- reading a bucket ------------------------------------------------------------------------------------------------


def _set_prefix(run: str, sequence: int) -> str:
    return f"{run}/checkpoints/{sequence:06d}/"


def _sequences(names: Iterable[str]) -> list[int]:
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _manifest(store: Store, run: str, sequence: int) -> Manifest:
    key = _set_prefix(run, sequence) + MANIFEST
    return Manifest.from_bytes(store.get(key), where=f"{store.url}/{key}", run=run)


def manifests(store: Store, run: str) -> Iterator[Manifest]:
    """Yield the complete checkpoints of ``run``, newest first; a set without a readable manifest is passed over."""
    for sequence in _sequences(store.folders(f"{run}/checkpoints/")):
        try:
            yield _manifest(store, run, sequence)
        except MissingObjectError:
            continue
        except BucketError:
            raise
        except CheckpointError:
            continue


def latest_manifest(store: Store, run: str) -> Manifest | None:
    """Return the newest complete checkpoint of ``run``, or ``None``. Raises :class:`BucketError`."""
    return next(manifests(store, run), None)


def list_runs(store: Store) -> list[RunRecord]:
    """Return a record of every run that the store knows, by name. Raises :class:`BucketError`."""
    return _parallel(lambda run: _record(store, run), store.folders())


def _record(store: Store, run: str) -> RunRecord:
    try:
        return RunRecord.from_bytes(run, store.get(f"{run}/run.json"))
    except MissingObjectError:
        return RunRecord(run=run)


def latest_whole_manifest(store: Store, run: str) -> Manifest | None:
    """Like :func:`latest_manifest`, but only of a set whose every object is in the store, at its size.

    One listing answers that, and no object is read. Raises :class:`BucketError`.
    """
    sizes = {item.key: item.size for item in store.objects(f"{run}/checkpoints/")}
    return next((found for found in manifests(store, run) if _is_whole(found, sizes)), None)


def _is_whole(manifest: Manifest, sizes: Mapping[str, int]) -> bool:
    return all(entry.link is not None or sizes.get(entry.key) == entry.size for entry in manifest.files)


def write_record(store: Store, run: str, workload: str, *, outcome: str | None = None) -> RunRecord:
    """Say in the bucket that ``run`` has begun (or goes on), or with ``outcome`` that it ended; return the record.

    The time of creation is that of the first record, so that a resumed run keeps it.
    """
    now = timestamp()
    record = RunRecord(
        run=run,
        workload=workload,
        created=_record(store, run).created or now,
        finished=now if outcome else None,
        outcome=outcome,
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

    A second publisher on the same machine waits up to ``lock_wait_s`` seconds for the first. When nothing but the
    journal's own bookkeeping changed since the newest set, no set is made unless ``force`` is true. Raises
    :class:`BucketError` when the bucket fails, :class:`CheckpointError` when the lock is not to be had, ``OSError``
    when a file cannot be read; a set that was begun by then stays invisible and is cleared away by a later one.
    """
    began = time.monotonic()
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    with _locked(root / SCRATCH / "publish.lock", lock_wait_s):
        # The journal comes first: whatever it calls done is then certainly in the files that are read after it.
        journal = _read_journal(root)
        stored = {item.key: item.size for item in store.objects(f"{run}/checkpoints/")}
        taken = {int(key.split("/")[2]) for key in stored if key.split("/")[2].isdigit()}
        sequence = max(taken, default=0) + 1
        previous = _newest(store, run, stored)
        # Only content that is really there, with the size that it should have, need not be sent.
        known = {
            entry.sha256: entry.key
            for entry in (previous.files if previous else ())
            if entry.link is None and stored.get(entry.key) == entry.size
        }
        cache = _HashCache(root)
        found, skipped = _scan(root)
        sender = _Sender(store, _set_prefix(run, sequence), root, known, cache, previous)
        entries = sender.send_all(found, threads)
        skipped += sender.skipped
        described = dict(progress(journal or b"")) if progress else {}
        if previous is not None and not force and not sender.files_sent:
            before = {entry.content for entry in previous.files if entry.path != JOURNAL}
            if before == {entry.content for entry in entries} and dict(previous.progress) == described:
                cache.save()
                return Published(
                    sequence=previous.sequence,
                    files=len(previous.files),
                    bytes_total=previous.size,
                    unchanged=True,
                    seconds=time.monotonic() - began,
                    skipped=skipped,
                    held=sender.held,
                    left_out=sender.left_out,
                )
        if journal is not None:
            entries.append(sender.send_bytes(JOURNAL, journal))
        entries.sort(key=lambda entry: entry.path)
        manifest = Manifest(run, sequence, timestamp(), tuple(entries), described)
        store.put(_set_prefix(run, sequence) + MANIFEST, manifest.to_bytes())
        cache.save()
        removed = _prune(store, run, retention or Retention(), stored, manifest)
    return Published(
        sequence=sequence,
        files=len(entries),
        bytes_total=manifest.size,
        files_sent=sender.files_sent,
        bytes_sent=sender.bytes_sent,
        removed=removed,
        seconds=time.monotonic() - began,
        skipped=skipped,
        held=sender.held,
        left_out=sender.left_out,
    )


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
        prefix: str,
        root: Path,
        known: Mapping[str, str],
        cache: _HashCache,
        previous: Manifest | None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._root = root
        self._known = known
        self._cache = cache
        self._before = {entry.path: entry for entry in (previous.files if previous else ())}
        self._writers: dict[FileId, bool] = {}
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
            key = self._prefix + path
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
            appends = self._appends(path, info)
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
        key = self._prefix + path
        self._store.put_stream(key, second)
        self._sent[path] = second.size
        if second.sha256.digest() != first.sha256.digest():
            self._take_back(path)
            raise _ChangedError
        return FileEntry(path, second.size, digest, mode, key, info.st_mtime_ns)

    def _appends(self, path: str, info: os.stat_result) -> bool:
        """Tell whether the file grows at its end only, ``False`` when nobody writes to it.

        Raises :class:`_ChangedError` when somebody writes to it in any other way.
        """
        appends = self._writers.get(file_id(info))
        if appends is False and not path.startswith(_LOGS):
            raise _ChangedError
        return appends is not None

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
        appends = self._writers.get(file_id(info))
        if appends is None and _is_same(now, info):
            return entry
        # A program may append by opening the file anew each time.
        if appends is not False and now.st_size >= info.st_size and self._begins_with(entry):
            return entry
        self._cache.forget(entry.path)
        self._take_back(entry.path)
        return self._hold(entry.path)

    def _begins_with(self, entry: FileEntry) -> bool:
        """Tell whether a file still begins with what was read of it, and that ended with a whole line."""
        last = b"\n"
        try:
            with (self._root / entry.path).open("rb") as stream:
                again = _HashingReader(stream, entry.size)
                while data := again.read(_CHUNK):
                    last = data[-1:]
        except OSError:
            return False
        return last == b"\n" and again.sha256.hexdigest() == entry.sha256

    def _take_back(self, path: str) -> None:
        if self._sent.pop(path, None) is not None:
            with contextlib.suppress(CheckpointError):
                self._store.delete(self._prefix + path)

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


def _newest(store: Store, run: str, stored: Mapping[str, int]) -> Manifest | None:
    """Like :func:`latest_manifest`, from a listing that is already here."""
    for sequence in _sequences(key.split("/")[2] for key in stored if key.endswith(f"/{MANIFEST}")):
        if _set_prefix(run, sequence) + MANIFEST in stored:
            try:
                return _manifest(store, run, sequence)
            except BucketError:
                raise
            except CheckpointError:
                continue
    return None


def _prune(store: Store, run: str, retention: Retention, stored: Mapping[str, int], newest: Manifest) -> int:
    """Remove what no kept set needs, and return how many objects went.

    A dropped set loses its manifest before its files, so it is never taken for complete. Nothing is removed when a
    kept manifest cannot be read, because then nobody knows what it needs. Sets that never got a manifest go too.
    """
    complete = {newest.sequence}
    for key in stored:
        parts = key.split("/")
        if len(parts) == 4 and parts[3] == MANIFEST and parts[2].isdigit():
            complete.add(int(parts[2]))
    kept = retention.keeps(complete)
    doomed = [key for key in stored if _in_doomed_set(key, kept, newest.sequence)]
    if not doomed:
        return 0
    needed = {entry.key for entry in newest.files}
    try:
        for sequence in kept - {newest.sequence}:
            needed |= {entry.key for entry in _manifest(store, run, sequence).files}
    except CheckpointError:
        return 0
    gone = [key for key in doomed if key not in needed]
    first = [key for key in gone if key.split("/")[3:] == [MANIFEST]]
    _parallel(store.delete, first)
    _parallel(store.delete, [key for key in gone if key not in set(first)])
    return len(gone)


def _in_doomed_set(key: str, kept: set[int], newest: int) -> bool:
    number = key.split("/")[2]
    return number.isdigit() and int(number) < newest and int(number) not in kept


# --- restoring -------------------------------------------------------------------------------------------------------


def restore(
    store: Callable[[], Store] | None,
    run: str,
    root: Path,
    *,
    has_local: Callable[[Path], bool] | None = None,
    threads: int = THREADS,
) -> Restored:
    """Bring ``root`` to the newest complete checkpoint of ``run``, unless there is local work already.

    The four cases: nothing anywhere → ``nothing``; local work (default: a journal that is not empty), with or without
    a bucket → ``local``, and the bucket is not even asked; bucket only → ``cloud``. Every file is verified before the
    first one is put in its place, and the journal comes last: a restore that was cut off is begun again, and what it
    had fetched is used. A damaged set gives way to the next older one. Raises :class:`BucketError` when the bucket
    does not answer, :class:`CheckpointError` when it has sets and none of them is whole.
    """
    began = time.monotonic()
    if (has_local or _has_journal)(root):
        return Restored("local")
    if store is None:
        return Restored("nothing")
    opened = store()
    warnings: list[str] = []
    for manifest in manifests(opened, run):
        try:
            _fetch_set(opened, manifest, root, threads)
        except (DamagedSetError, MissingObjectError) as error:
            warnings.append(f"Checkpoint {manifest.sequence} of {run} is damaged ({error}), so an older one is tried.")
            continue
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


def _fetch_set(store: Store, manifest: Manifest, root: Path, threads: int) -> None:
    """Fetch a set and put its files in their places; nothing is written through a link, whatever the set holds.

    Temporary files have names of digests, which the manifest's reader has checked.
    """
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        base = closing.enter_context(Folder(root))
        incoming, _ = closing.enter_context(base.parent(f"{_INCOMING}/any", make=True))
        pending = [entry for entry in manifest.files if entry.link is None and not _is_content(base, entry)]
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
                raise DamagedSetError(f"{entry.key} does not have the content that its manifest names")

        _parallel(fetch, missing, threads)
        cache = _HashCache(root)
        placed = set(pending)
        for entry in sorted(manifest.files, key=lambda entry: entry.path == JOURNAL):
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


def _is_whole_part(incoming: int, entry: FileEntry) -> bool:
    try:
        return _is_content_of(open_plain(incoming, entry.sha256, entry.path), entry)
    except (FileNotFoundError, PermissionError):
        return False


def _is_content_of(handle: int, entry: FileEntry) -> bool:
    with os.fdopen(handle, "rb") as stream:
        if os.fstat(handle).st_size != entry.size:
            return False
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == entry.sha256


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
