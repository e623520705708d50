"""The hashes of files: while they are read, and remembered for those that have not changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gpuyard.formats.manifest import BLOCK, SCRATCH

CHUNK = 1024 * 1024


# A file changed within this time of being hashed may have changed again within one tick of the file system's clock.
RACY_NS = 2_000_000_000


class HashingReader:
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


class BlockReader(HashingReader):
    """A :class:`HashingReader` that also knows the hash of each :data:`BLOCK` of what it gave out."""

    def __init__(self, source: Any, limit: int) -> None:
        super().__init__(source, limit)
        self._digests: list[str] = []
        self._block = hashlib.sha256()

    def read(self, amount: int = -1) -> bytes:
        """Read at most ``amount`` bytes, and never beyond the end of a block."""
        room = BLOCK - self.size % BLOCK
        data = super().read(room if amount is None or amount < 0 else min(amount, room))
        self._block.update(data)
        if data and self.size % BLOCK == 0:
            self._digests.append(self._block.hexdigest())
            self._block = hashlib.sha256()
        return data

    @property
    def blocks(self) -> list[str]:
        """The hashes of the blocks so far; the last one may be of fewer bytes."""
        return self._digests + ([self._block.hexdigest()] if self.size % BLOCK else [])


class HashCache:
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
        if hashed_ns - max(info.st_mtime_ns, info.st_ctime_ns) < RACY_NS:
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
        self.put(path, info, digest, max(info.st_mtime_ns, info.st_ctime_ns) + RACY_NS)

    def save(self) -> None:
        """Write the cache; it only saves time, so a full disk does not matter here."""
        with contextlib.suppress(OSError):
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(self._seen))
            part.replace(self._file)


def _marks(info: os.stat_result) -> list[int]:
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def hash_of(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
