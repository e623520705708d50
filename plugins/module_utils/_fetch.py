# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules share that bring large files onto a box: verified once, known afterwards, gone on with when cut.

Private to this collection.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

RECORD = ".gpuyard-files.json"
LOCK = ".gpuyard-lock"
LOG = ".gpuyard-log"
OWN = ".gpuyard"
"""What the names of all begin with that gpuyard itself keeps in such a folder."""
_TIME = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d [A-Z]+ *: ")  # before each line of rclone
_BLOCK = 1 << 20
_SPARE_BYTES = 500_000_000  # a disk that is filled to the last byte stops the stages
LIMIT_S = 24 * 3600.0


@dataclass(frozen=True)
class File:
    """A file that is wanted: its path below the folder, its size in bytes (-1: not known), and its checksum.

    ``algorithm`` is ``sha256``, ``md5``, ``sha1``, or ``git`` for what git calls a file; "" where there is no checksum.
    """

    path: str
    size: int
    algorithm: str = ""
    digest: str = ""


def in_words(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def checked(option: str, entry: Any, specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dictionary ``entry`` as Ansible takes such options, with defaults; raise :class:`BoxError` else."""
    if not isinstance(entry, dict):
        raise _box.BoxError(f"{option} must be a dictionary with {', '.join(specification)}, not {entry!r}.")
    found = ArgumentSpecValidator(dict(specification)).validate(entry)
    if found.error_messages:
        raise _box.BoxError(f"{option} has a wrong key or value: {'; '.join(found.error_messages).rstrip('.')}.")
    taken: dict[str, Any] = found.validated_parameters
    return taken


def check_path(path: str, source: str) -> str:
    """Return a relative path that a server has named; raise :class:`BoxError` when it leads out of the folder."""
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        raise _box.BoxError(f"{source} names the file {path!r}, which does not lie in its folder: nothing was fetched.")
    if parts[0].startswith(OWN):
        raise _box.BoxError(f"{source} names the file {path!r}, where gpuyard keeps its own record.")
    return path


def digest(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in hexadecimal, see :class:`File`."""
    if algorithm == "git":
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        found = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


class Folder:
    """A folder of large files, and the record of those that were found to be right.

    The record lies in the folder itself: on a volume it comes along to the next machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = _box.read_record(path / RECORD)

    @property
    def files(self) -> dict[str, Any]:
        """What is recorded of each file, by its path."""
        files = self.record.get("files")
        return files if isinstance(files, dict) else {}

    def is_whole(self, identity: Mapping[str, Any]) -> bool:
        """Tell whether everything that ``identity`` stands for was here and right, and has not changed since."""
        return self.record.get("identity") == identity and all(map(self._is_unchanged, self.files))

    def _is_unchanged(self, path: str) -> bool:
        entry = self.files.get(path)
        try:
            found = (self.path / path).stat()
        except OSError:
            return False
        return isinstance(entry, dict) and (entry.get("size"), entry.get("mtime_ns")) == (
            found.st_size,
            found.st_mtime_ns,
        )

    def is_right(self, file: File) -> bool:
        """Tell whether a file is here with its content. It is read only when the record does not know it."""
        path = self.path / file.path
        if not path.is_file() or (file.size >= 0 and path.stat().st_size != file.size):
            return False
        if not file.digest:
            return True
        known = self.files.get(file.path)
        if known and self._is_unchanged(file.path) and known.get("digest") == file.digest:
            return True
        return digest(path, file.algorithm) == file.digest

    def missing(self, files: Iterable[File]) -> list[File]:
        """Return the files that have to be fetched."""
        return [file for file in files if not self.is_right(file)]

    def free(self) -> int:
        """Return the bytes that are free where the folder is or will be, all but a spare part."""
        place = self.path
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free - _SPARE_BYTES

    def check_space(self, needed: float, what: str, way_out: str) -> None:
        """Raise :class:`BoxError` when the disk has less than ``needed`` bytes left."""
        if needed > self.free():
            raise _box.BoxError(
                f"{what} needs {in_words(needed)} in {self.path}, and {in_words(max(self.free(), 0))} are free there: "
                f"{way_out}."
            )

    def keep(self, identity: Mapping[str, Any], files: Sequence[File]) -> None:
        """Write down that these files are here and right, and remove what an earlier state had besides."""
        wanted = {file.path for file in files}
        for path in self.files:
            if path not in wanted:
                (self.path / check_path(path, str(self.path / RECORD))).unlink(missing_ok=True)
        entries = {}
        for file in files:
            found = (self.path / file.path).stat()
            entries[file.path] = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "digest": file.digest}
        self.record = {"identity": dict(identity), "files": entries}
        _box.write_record(self.path / RECORD, self.record)

    @contextmanager
    def locked(self, key: Any, progress: Progress | None = None) -> Iterator[None]:
        """Have the folder for this process, and follow what a killed one has begun there.

        ``key`` is what is wanted of the folder: work for something else is ended. See :func:`_box.detached`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _box.take_over(self.slot, key, progress)
            self.record = _box.read_record(self.path / RECORD)
            yield

    @property
    def slot(self) -> str:
        """What names the work in this folder that goes on without its module."""
        return f"files {self.path}"

    def run(
        self,
        command: Sequence[str],
        key: Any,
        *,
        purpose: str,
        environment: Mapping[str, str],
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Run a long program on its own, see :func:`_box.detached`, and :meth:`locked` for ``key``.

        Its output goes to the folder's log. Raises :class:`BoxError` that begins with ``purpose`` and ends with its
        last words.
        """
        log = self.path / LOG
        try:
            _box.detached(
                command,
                slot=self.slot,
                key=key,
                purpose=purpose,
                environment=environment,
                folder=folder,
                log=log,
                limit_s=LIMIT_S,
                progress=progress,
            )
        except _box.BoxError as error:
            if code := error.details.get("rc"):
                raise failure(purpose, code, log.read_text(encoding="utf-8", errors="replace")) from error
            raise


def last_line(output: str) -> str:
    """Return the last line of a program's output, which says why it failed, without time and full stop."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("Hint:")]
    return _TIME.sub("", lines[-1]).rstrip(".") if lines else "it said nothing"


def failure(purpose: str, code: int, output: str) -> _box.BoxError:
    """Return the error of a program that has failed."""
    return _box.BoxError(f"{purpose} failed with exit code {code}: {last_line(output)}.", rc=code)


def place(root: str, folder: str, store: str | None) -> Path:
    """Return where the files of ``folder`` below the persistent root lie: there, or in ``store`` on a volume."""
    return Path(store) if store else Path(root, folder)


def is_linked(root: str, folder: str, store: str | None) -> bool:
    """Tell whether ``folder`` below the persistent root is a link to ``store``; always where there is no store."""
    link = Path(root, folder)
    return not store or (link.is_symlink() and os.readlink(link) == store)


def link(root: str, folder: str, store: str) -> None:
    """Make ``folder`` below the persistent root a link to ``store``. A folder with files is never replaced."""
    path = Path(root, folder)
    if path.is_dir() and not path.is_symlink():
        try:
            path.rmdir()
        except OSError as error:
            raise _box.BoxError(
                f"{path} is a folder with files, so it cannot become a link to {store}: move them to {store}, "
                "or leave the key store out."
            ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.gpuyard-link")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(store)
    scratch.replace(path)
