"""Putting restored files in their places; nothing is written through a link, whatever a set holds."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from gpuyard.box.checkpoints.beneath import Folder, create, open_plain
from gpuyard.box.checkpoints.hashing import CHUNK, hash_of
from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import FileEntry


def place_part(incoming: int, entry: FileEntry, folder: int, name: str, *, last: bool) -> None:
    """Put a part in its place in one step: moved there by the ``last`` file that wants it, copied for the others.

    Not a hard link: two restored files that happen to be equal must not write into each other later.
    """
    part = entry.sha256
    if not last:
        part = f"{entry.sha256}.copy"
        _copy_part(incoming, entry.sha256, incoming, part)
    set_attributes(incoming, part, entry)
    try:
        os.replace(part, name, src_dir_fd=incoming, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A file system of its own is mounted inside the folder.
        beside = f".gpuyard-part-{entry.sha256}"
        try:
            _copy_part(incoming, part, folder, beside)
            set_attributes(folder, beside, entry)
            os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)


def _copy_part(source_folder: int, source: str, target_folder: int, target: str) -> None:
    with (
        os.fdopen(open_plain(source_folder, source, source), "rb") as reader,
        os.fdopen(create(target_folder, target), "wb") as writer,
    ):
        shutil.copyfileobj(reader, writer, CHUNK)


def set_attributes(folder: int, name: str, entry: FileEntry) -> None:
    handle = open_plain(folder, name, entry.path)
    try:
        os.fchmod(handle, entry.mode)
        if entry.mtime_ns:
            os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(handle)


def place_link(incoming: int, target: str, folder: int, name: str, path: Path, root: Path) -> None:
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


def is_in_place(base: Folder, entry: FileEntry) -> bool:
    """Tell whether a plain file with the entry's size and hash is in its place."""
    try:
        return _is_content_of(base.open_file(entry.path), entry)
    except (FileNotFoundError, PermissionError):
        return False


def read_beginning(base: Folder, path: str, most: int) -> bytes:
    """Return the beginning of a plain file; nothing when there is none."""
    try:
        with os.fdopen(base.open_file(path), "rb") as stream:
            return stream.read(most)
    except (FileNotFoundError, PermissionError):
        return b""


def sha256_of(base: Folder, path: str) -> str | None:
    try:
        with os.fdopen(base.open_file(path), "rb") as stream:
            return hash_of(stream)
    except (FileNotFoundError, PermissionError):
        return None


def is_whole_part(incoming: int, entry: FileEntry) -> bool:
    try:
        return _is_content_of(open_plain(incoming, entry.sha256, entry.path), entry)
    except (FileNotFoundError, PermissionError):
        return False


def _is_content_of(handle: int, entry: FileEntry) -> bool:
    with os.fdopen(handle, "rb") as stream:
        if os.fstat(handle).st_size != entry.size:
            return False
        return hash_of(stream) == entry.sha256
