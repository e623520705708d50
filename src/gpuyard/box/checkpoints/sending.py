"""Bringing single files into a store, each whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuyard.box.checkpoints.blocks import ChangedError, UnsentReader, blocks_in_store, pieces_of
from gpuyard.box.checkpoints.hashing import CHUNK, BlockReader, HashCache, HashingReader
from gpuyard.box.checkpoints.manners import Manners
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.box.checkpoints.scanning import Found
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES, Store
from gpuyard.box.checkpoints.writers import FileId, Writing, file_id, open_for_writing
from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import STATE, FileEntry, Manifest

# The stages' own logs, which the runner writes line by line.
_LOGS = f"{STATE}/logs/"


# What is written line by line, by its name: such a file counts as appended to while its writer stands at its end.
_LINES = (".jsonl", ".ndjson", ".log", ".out", ".err")


# The last line of a log may be as long as this (bytes) and still be cut off as not whole.
_LONGEST_LINE = 4 * 1024 * 1024

# Of each, some pieces are held in memory.
_LARGE_AT_ONCE = 4


class Paced:
    """Reads on when the cap lets it."""

    def __init__(self, source: Any, manners: Manners) -> None:
        self._source = source
        self._manners = manners

    def read(self, amount: int = -1) -> bytes:
        data: bytes = self._source.read(amount)
        self._manners.take(len(data))
        return data


class Sender:
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
        cache: HashCache,
        previous: Manifest | None,
        rules: Rules,
        manners: Manners,
        sent: Sequence[FileEntry] = (),
    ) -> None:
        self._store = store
        self._key = key
        self._root = root
        self._known = known
        self._cache = cache
        self._rules = rules
        self._manners = manners
        self._large = threading.Semaphore(_LARGE_AT_ONCE)
        files = previous.files if previous else ()
        self._before = {entry.path: entry for entry in files}
        self._blocks = {entry.sha256: entry.blocks for entry in (*files, *sent)}
        # Of two objects with one content, only the known one is certainly there.
        self._blocks_there = blocks_in_store(entry for entry in files if known.get(entry.sha256) == entry.key)
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

    def send_all(self, found: list[Found], threads: int) -> list[FileEntry]:
        """Store what the store does not have, and return the entries of the set (the journal apart)."""
        unread = [item for item in found if item.link is None and self._cached(item) is None]
        self._writers = open_for_writing({_name(item.path) for item in unread}) if unread else {}
        # Small ones first: they are in the bucket before a large one takes its time.
        ordered = sorted(found, key=lambda item: item.info.st_size)
        sent = in_parallel(self.send, ordered, threads, self._manners.make_way)
        entries = [entry for entry in sent if entry is not None]
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
            self._manners.take(len(data))
            self._store.put(key, data)
            self._sent[path] = len(data)
        return FileEntry(path, len(data), digest, mode, key, mtime_ns)

    def send(self, found: Found) -> FileEntry | None:
        """Store one file unless the store has its content; ``None`` when the set does not have it."""
        if found.link is not None:
            digest = hashlib.sha256(found.link.encode()).hexdigest()
            return FileEntry(found.path, 0, digest, 0o777, "", link=found.link)
        cached = self._cached(found)
        if cached is not None:
            info = found.info
            return FileEntry(
                found.path,
                info.st_size,
                cached,
                info.st_mode & 0o777,
                self._known[cached],
                info.st_mtime_ns,
                blocks=self._blocks[cached],
            )
        for last in (False, True):
            try:
                return self._send_content(found.path)
            except FileNotFoundError:
                return None
            except PermissionError as error:
                self.skipped.append(f"{found.path} ({error.strerror})")
                return None
            except ChangedError:
                # A program that saves by renaming is whole again at once; one that goes on writing is not.
                if last:
                    break
        return self._hold(found.path)

    def _cached(self, found: Found) -> str | None:
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
                    raise ChangedError

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
            with self._large:
                return self._send_large(path, stream, size, info, check)
        data = stream.read(size)
        check()
        if len(data) != size:
            raise ChangedError
        return self.send_bytes(path, data, mode, info.st_mtime_ns)

    def _send_large(
        self, path: str, stream: Any, size: int, info: os.stat_result, check: Callable[[], None]
    ) -> FileEntry:
        """Hash first, because reading is cheaper than sending; then send what the store does not have."""
        first = BlockReader(stream, size)
        while first.read(CHUNK):
            pass
        check()
        digest = first.sha256.hexdigest()
        entry = FileEntry(
            path, first.size, digest, info.st_mode & 0o777, "", info.st_mtime_ns, blocks="".join(first.blocks)
        )
        if digest in self._known:
            return replace(entry, key=self._known[digest])
        entry = replace(entry, key=self._key(path))
        if not self._send_blocks(entry, stream, first.blocks):
            self._send_whole(entry, stream)
        return entry

    def _send_blocks(self, entry: FileEntry, stream: Any, blocks: list[str]) -> bool:
        """Store a file of which the store has blocks already, and send the others; ``False`` when that cannot be."""
        pieces = pieces_of(blocks, entry.size, self._blocks_there)
        unsent: Any = Paced(UnsentReader(stream, pieces, blocks), self._manners)
        if not pieces or not self._store.compose(entry.key, pieces, unsent):
            return False
        self._sent[entry.path] = sum(piece.size for piece in pieces if not piece.key)
        return True

    def _send_whole(self, entry: FileEntry, stream: Any) -> None:
        """Send a file, and believe the hash of what was sent."""
        stream.seek(0)
        second = HashingReader(stream, entry.size)
        paced: Any = Paced(second, self._manners)
        self._store.put_stream(entry.key, paced)
        self._sent[entry.path] = second.size
        if second.sha256.hexdigest() != entry.sha256:
            self._take_back(entry.path)
            raise ChangedError

    def _appends(self, path: str, info: os.stat_result, stream: Any) -> bool:
        """Tell whether the file grows at its end only, ``False`` when nobody writes to it.

        Raises :class:`ChangedError` when somebody writes to it in any other way.
        """
        writing = self._writers.get(file_id(info))
        if writing is None:
            return False
        if writing is not Writing.APPENDED and not path.startswith(_LOGS):
            if writing is Writing.ANYWHERE or not (path.endswith(_LINES) or self._rules.is_log(path)):
                raise ChangedError
            # It may also be written anew from the start, and then holds less than the last set does.
            before = self._before.get(path)
            if before is not None and not begins_with(stream, before):
                raise ChangedError
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
                if not begins_with(stream, entry):
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


def begins_with(stream: Any, entry: FileEntry) -> bool:
    """Tell whether a file, from where it is read now, begins with the content of ``entry``."""
    content = HashingReader(stream, entry.size)
    while content.read(CHUNK):
        pass
    return content.sha256.hexdigest() == entry.sha256


def _whole_lines(stream: Any, size: int) -> int:
    """Return the length of a file up to the end of its last whole line; :class:`ChangedError` when it has none.

    The stream is left at its start.
    """
    end = size
    while end > max(0, size - _LONGEST_LINE):
        start = max(0, end - CHUNK)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            stream.seek(0)
            return int(start + newline + 1)
        end = start
    if size:
        raise ChangedError
    stream.seek(0)
    return 0
