"""Opening what lies below a folder without ever following a link.

A bucket may be in the wrong hands, and a program may have left links in its own folder. So every path that a manifest
or a listing names is walked part by part from the folder on, and a part that is a link is refused, with its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from gpuyard.errors import CheckpointError
from gpuyard.files import inner_path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """A folder that is there, and what is below it. The path to it may hold links: whoever named it chose them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    @contextlib.contextmanager
    def parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Yield a handle of the folder that ``path`` lies in, and its name there.

        Folders that are missing are made with ``make``, else raise ``FileNotFoundError``. Raises
        :class:`CheckpointError` when something else than a folder is in the way.
        """
        *parts, name = inner_path(path).split("/")
        handle = os.dup(self._handle)
        try:
            for number, part in enumerate(parts, start=1):
                inner = self._open_folder(handle, part, "/".join(parts[:number]), make=make)
                os.close(handle)
                handle = inner
            yield handle, name
        finally:
            os.close(handle)

    def open_file(self, path: str) -> int:
        """Open a plain file for reading and return its handle; whatever else is there is ``FileNotFoundError``."""
        with self.parent(path) as (folder, name):
            return open_plain(folder, name, path)

    def _open_folder(self, handle: int, part: str, path: str, *, make: bool) -> int:
        try:
            try:
                return os.open(part, _FOLDER, dir_fd=handle)
            except FileNotFoundError:
                if not make:
                    raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=handle)
            return os.open(part, _FOLDER, dir_fd=handle)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            found = os.stat(part, dir_fd=handle, follow_symlinks=False)
            what = "a link" if stat.S_ISLNK(found.st_mode) else "not a folder"
            raise CheckpointError(
                f"{self.path / path} is {what}, and nothing is written through it: remove it, or make it a folder."
            ) from error


def open_plain(folder: int, name: str, path: str) -> int:
    """Open the plain file ``name`` of an open folder; anything else (a link, a pipe) is ``FileNotFoundError``."""
    try:
        # Not waiting: opening a pipe would, for a writer.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, "not a plain file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "not a plain file", path)
    return handle


def create(folder: int, name: str, mode: int = 0o600) -> int:
    """Create the file ``name`` in an open folder in place of what was there, and return its handle for writing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=folder)
