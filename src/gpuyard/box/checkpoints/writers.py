"""Which files some process is writing to just now, as ``/proc`` tells: they are not whole, so no checkpoint takes them.

Linux only; elsewhere nothing is found. Processes that end meanwhile, and those of other users that may not be looked
at, are passed over: as root, which the stage runner is on a box, all are seen.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from enum import IntEnum
from pathlib import Path

_PROC = "/proc"
# Lines of /proc/<pid>/maps whose memory is shared and may be written to: what changes there changes the file.
_SHARED = re.compile(rb"^\S+ .w.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)

FileId = tuple[int, int]
"""A file's device and inode."""


def file_id(info: os.stat_result) -> FileId:
    """Return what tells a file from every other on this machine."""
    return info.st_dev, info.st_ino


class Writing(IntEnum):
    """How a file may change under the hands of those who have it open; the worst of them counts."""

    APPENDED = 0
    """Only its end is added to: the kernel allows nothing else."""
    AT_ITS_END = 1
    """Every writer stands at its end just now, as one does that writes it from the start in one go."""
    ANYWHERE = 2


def open_for_writing(names: Collection[str]) -> dict[FileId, Writing]:
    """Return the files called one of ``names`` (without folders) that are open for writing or mapped into memory so.

    A file that is open under another hard link's name is not found.
    """
    found: dict[FileId, Writing] = {}
    for pid in _names(_PROC):
        if pid.isdigit():
            for identity, writing in (*_opened(pid, names), *_mapped(pid, names)):
                found[identity] = max(writing, found.get(identity, writing))
    return found


def _opened(pid: str, names: Collection[str]) -> Iterator[tuple[FileId, Writing]]:
    try:
        folder = os.open(f"{_PROC}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for number in _names(folder):
            with contextlib.suppress(OSError, ValueError, KeyError):
                target = os.readlink(number, dir_fd=folder)
                # By name first: looking at a file on a network disk that is gone could take for ever.
                if target[:1] != "/" or target.rpartition("/")[2] not in names:
                    continue
                # The size first: who writes on meanwhile then still stands at the end.
                info = os.stat(number, dir_fd=folder)
                facts = dict(line.split(b":", 1) for line in _read(f"{_PROC}/{pid}/fdinfo/{number}").splitlines())
                flags = int(facts[b"flags"], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    at_end = int(facts[b"pos"]) >= info.st_size
                    alone = Writing.AT_ITS_END if at_end else Writing.ANYWHERE
                    yield file_id(info), Writing.APPENDED if flags & os.O_APPEND else alone
    except OSError:
        return
    finally:
        os.close(folder)


def _mapped(pid: str, names: Collection[str]) -> Iterator[tuple[FileId, Writing]]:
    try:
        data = _read(f"{_PROC}/{pid}/maps")
    except OSError:
        return
    for line in _SHARED.findall(data):
        path = os.fsdecode(line)
        if path.rpartition("/")[2] in names:
            # The process may live in a root of its own, a container's say.
            for place in (f"{_PROC}/{pid}/root{path}", path):
                with contextlib.suppress(OSError):
                    yield file_id(Path(place).stat()), Writing.ANYWHERE
                    break


def _read(file: str) -> bytes:
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(handle, 1 << 20):
            data += chunk
        return data
    finally:
        os.close(handle)


def _names(folder: str | int) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []
