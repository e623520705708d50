"""A folder as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from gpuyard.box.checkpoints.stores import Piece, Store, StoredObject
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError

_CHUNK = 1024 * 1024
_PART_PREFIX = ".gpuyard-part-"


class _OtherSourceError(Exception):
    """A file of which a part was to be copied is gone, or is another one by now."""


def _tag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}"


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        data = source.read(min(size, _CHUNK))
        if not data:
            raise _OtherSourceError
        target.write(data)
        size -= len(data)


class LocalStore(Store):
    """A folder as a store: for tests, for a network file system, and for people without a bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.as_uri()

    def get(self, key: str) -> bytes:
        with self._failures(key):
            return self._path(key).read_bytes()

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._failures(key), self._path(key).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def put(self, key: str, data: bytes) -> None:
        with self._failures(key), self._replacing(key) as part:
            part.write(data)

    def put_new(self, key: str, data: bytes) -> bool:
        with self._failures(key):
            try:
                with self._replacing(key, new=True) as part:
                    part.write(data)
            except FileExistsError:
                return self._path(key).read_bytes() == data
            return True

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        with self._failures(key), self._replacing(key) as part:
            shutil.copyfileobj(stream, part, _CHUNK)

    def compose(self, key: str, pieces: Sequence[Piece], stream: BinaryIO) -> bool:
        with self._failures(key):
            try:
                with self._replacing(key) as part:
                    for piece in pieces:
                        self._add(part, piece, stream)
            except _OtherSourceError:
                return False
            return True

    def _add(self, part: BinaryIO, piece: Piece, stream: BinaryIO) -> None:
        """Add one piece to the end of a file; a file system that can share its blocks with the other file does so."""
        if not piece.key:
            _copy(stream, part, piece.size)
            return
        try:
            source = self._path(piece.key).open("rb")
        except FileNotFoundError:
            raise _OtherSourceError from None
        with source:
            info = os.fstat(source.fileno())
            if piece.tag != _tag(info) or info.st_size < piece.offset + piece.size:
                raise _OtherSourceError
            part.flush()
            done = 0
            try:
                while done < piece.size:
                    copied = os.copy_file_range(
                        source.fileno(), part.fileno(), piece.size - done, piece.offset + done, None
                    )
                    if not copied:
                        raise _OtherSourceError
                    done += copied
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                source.seek(piece.offset + done)
                _copy(source, part, piece.size - done)

    def fetch(self, key: str, target: Path, size: int) -> None:
        with self._failures(key):
            shutil.copyfile(self._path(key), target)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        # Only whole folders are ever asked for, so the walk can begin at the prefix's last slash.
        waiting = [prefix.rpartition("/")[0]]
        while waiting:
            for entry in self._entries(waiting.pop()):
                key = Path(entry.path).relative_to(self.folder).as_posix()
                if entry.is_dir():
                    waiting.append(key)
                elif key.startswith(prefix) and not entry.name.startswith(_PART_PREFIX):
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat()
                        yield StoredObject(key, info.st_size, _tag(info), info.st_mtime)

    def folders(self, prefix: str = "") -> list[str]:
        return [entry.name for entry in self._entries(prefix) if entry.is_dir()]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what lies in a folder, by name; nothing when it does not exist (yet)."""
        with self._failures(folder):
            try:
                with os.scandir(self.folder / folder) as found:
                    return sorted(found, key=lambda entry: entry.name)
            except FileNotFoundError:
                return []

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._failures(key):
            path.unlink(missing_ok=True)
            # A bucket has no empty folders, so a folder that stands in for one has none either.
            for folder in path.parents:
                if folder == self.folder:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        folder = self._path(prefix)
        with self._failures(prefix):
            parts = [part.relative_to(self.folder).as_posix() for part in folder.rglob(f"{_PART_PREFIX}*")]
        unwanted = [key for key in parts if not spare(key)]
        for key in unwanted:
            self.delete(key)
        return len(unwanted)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise CheckpointError(f"The key {key!r} leads out of the folder {self.folder}.")
        return self.folder / key

    @contextlib.contextmanager
    def _replacing(self, key: str, *, new: bool = False) -> Iterator[BinaryIO]:
        path = self._path(key)
        handle, name = self._part_beside(path)
        try:
            with os.fdopen(handle, "wb") as part:
                yield part
                part.flush()
                os.fsync(part.fileno())
            if new:
                self._link(Path(name), path)
            else:
                Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _part_beside(self, path: Path) -> tuple[int, str]:
        """Open a new file in the folder of ``path``; whoever removes that folder as empty just now is outlasted."""
        for _ in range(20):
            with contextlib.suppress(FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
                return tempfile.mkstemp(prefix=_PART_PREFIX, dir=path.parent)
        raise BucketError(f"The checkpoint folder {self.folder} cannot be used: {path.parent} does not last.")

    @staticmethod
    def _link(part: Path, path: Path) -> None:
        """Give ``part`` the name ``path``, or raise ``FileExistsError``. Some file systems have no hard links."""
        try:
            os.link(part, path)
            part.unlink()
        except FileExistsError:
            raise
        except OSError:
            if path.exists():
                raise FileExistsError from None
            part.replace(path)

    @contextlib.contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"{self.url} holds no {key}.") from error
        except OSError as error:
            raise BucketError(
                f"The checkpoint folder {self.folder} cannot be used: {error.strerror or error}."
            ) from error
