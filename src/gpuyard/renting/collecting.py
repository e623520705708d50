"""The files of a run brought to this controller: only what differs, each verified before it has its name.

A file is written beside its place and moved there in one step when its hash is right, so that nobody ever sees half of
one. Nothing is removed here, and nothing is written outside of the folder, whatever a box or a bucket says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from gpuyard import ssh
from gpuyard.box import outgoing
from gpuyard.box.checkpoints import Manifest, Store
from gpuyard.box.checkpoints.hashing import hash_of
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.config import SshKey
from gpuyard.errors import CheckpointError, ConnectionLostError, GpuyardError, UsageError
from gpuyard.files import inner_path
from gpuyard.providers.base import Instance, Progress

_PART = ".gpuyard-part"
_TRIES = 3  # for a file that is written to while it is sent
_LIST_S = 120.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a run. ``size`` is in bytes; of a checkpoint's ``sha256`` is known, and ``key``, where it lies."""

    path: str
    size: int
    mode: int
    mtime_ns: int
    link: str | None = None
    sha256: str = ""
    key: str = ""


class Source(Protocol):
    """Where the files of a run are."""

    words: str  # for people
    files: Sequence[Found]
    rules: Rules | None  # of the workload; None: not known there

    def same(self, found: Found, place: Path) -> bool:
        """Tell whether the file at ``place`` is the one that is here."""

    def bring(self, wanted: Sequence[Found], folder: Path, progress: Progress) -> list[str]:
        """Bring the files into ``folder``; return sentences about what could not be brought whole."""


class Checkpoint:
    """A whole checkpoint in the bucket."""

    rules: Rules | None = None

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self.words = f"checkpoint {manifest.sequence} of {manifest.time}"
        self.files: Sequence[Found] = [
            Found(one.path, one.size, one.mode, one.mtime_ns, one.link, one.sha256, one.key) for one in manifest.files
        ]

    def same(self, found: Found, place: Path) -> bool:
        """Tell whether the content at ``place`` has the hash of the manifest."""
        if place.stat().st_size != found.size:
            return False
        with place.open("rb") as stream:
            return hash_of(stream) == found.sha256

    def bring(self, wanted: Sequence[Found], folder: Path, progress: Progress) -> list[str]:
        """Fetch the files, several at a time. Raises :class:`CheckpointError` for one whose hash is another."""

        def fetch(found: Found) -> None:
            with _part(folder, found.path) as part:
                self._store.fetch(found.key, part, found.size)
                with part.open("rb") as stream:
                    if hash_of(stream) != found.sha256:
                        raise CheckpointError(
                            f"{found.path} in {self.words} is damaged: its content is not what the manifest says. It "
                            "was not brought."
                        )
                _place(part, folder, found)

        in_parallel(fetch, wanted)
        return []


class OnBox:
    """The persistent root of a machine."""

    def __init__(self, instance: Instance, key: SshKey) -> None:
        self._instance, self._key = instance, key
        self.words = f"{instance.provider} {instance.id}"
        with self._ask({"do": "list"}) as process:
            try:
                said, complaint = process.communicate(timeout=_LIST_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ConnectionLostError(f"{self.words} has not listed its files within {_LIST_S:.0f} s.") from None
        if process.returncode:
            raise self._lost(complaint)
        try:
            answer = json.loads(said)
            self.rules: Rules | None = Rules.from_workload(answer["rules"])
            self.files: Sequence[Found] = [
                Found(inner_path(one["path"]), int(one["size"]), int(one["mode"]), int(one["mtime_ns"]), one["link"])
                for one in answer["files"]
            ]
        except (ValueError, LookupError, TypeError) as error:
            raise GpuyardError(f"{self.words} has not listed its files as expected: {error}.") from None

    def same(self, found: Found, place: Path) -> bool:
        """Tell whether the file at ``place`` has the size and the time of the one on the machine."""
        seen = place.stat()
        return (seen.st_size, seen.st_mtime_ns) == (found.size, found.mtime_ns)

    def bring(self, wanted: Sequence[Found], folder: Path, progress: Progress) -> list[str]:
        """Have the files sent in one stream; one that is written to meanwhile is sent again, three times in all."""
        left = {one.path: one for one in wanted}
        for number in range(_TRIES):
            if number:
                progress(f"{len(left)} files were written to while they were sent, and are sent again.")
            for path in self._receive(list(left.values()), folder):
                del left[path]
            if not left:
                break
        return [f"{path} is written to all the time, or is gone, so it was not brought." for path in left]

    def _receive(self, wanted: Sequence[Found], folder: Path) -> list[str]:
        """Receive the files, and return the paths of those that have come whole."""
        came = []
        with self._ask({"do": "send", "paths": [one.path for one in wanted]}) as process:
            assert process.stdout is not None and process.stderr is not None  # asked for in _ask
            try:
                for found in wanted:
                    size = int(self._line(process.stdout)["size"])
                    if size < 0:
                        continue
                    with _part(folder, found.path) as part:
                        digest = _copy(process.stdout, part, size)
                        end = self._line(process.stdout)
                        if not end["whole"]:
                            continue
                        if digest != end["sha256"]:
                            raise GpuyardError(f"{found.path} has not come from {self.words} as it was sent.")
                        mode, mtime_ns = int(end["mode"]), int(end["mtime_ns"])
                        _place(part, folder, Found(found.path, size, mode, mtime_ns))
                    came.append(found.path)
            except (EOFError, ValueError, KeyError):
                process.kill()
                raise self._lost(process.stderr.read()) from None
        return came

    def _line(self, stream: IO[bytes]) -> dict[str, Any]:
        line = stream.readline()
        if not line:
            raise EOFError
        found: dict[str, Any] = json.loads(line)
        return found

    def _ask(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start the program on the machine that answers ``request``."""
        program = Path(outgoing.__file__).read_text()
        words = ["python3", "-c", program]
        process = subprocess.Popen(
            [*_ssh(self._instance, self._key), _quoted(words, as_root=self._instance.ssh_user != "root")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None  # asked for above
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
        process.stdin = None  # communicate() would write to it
        return process

    def _lost(self, complaint: bytes) -> GpuyardError:
        said = complaint.decode(errors="replace").strip().splitlines()
        return ConnectionLostError(
            f"{self.words} has not sent its files: {said[-1] if said else 'the connection broke'}."
        )


def bring(source: Source, wanted: Sequence[Found], folder: Path, progress: Progress) -> list[str]:
    """Bring ``wanted`` into ``folder``, which is made; return sentences about what could not be brought whole.

    Raises :class:`UsageError` where the disk has no room or the folder cannot be written, and before anything is
    written for a link that leads out of it.
    """
    size = sum(one.size for one in wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = os.statvfs(folder)
        if free.f_bavail * free.f_frsize < size:
            raise UsageError(
                f"{folder} has {free.f_bavail * free.f_frsize / 1e9:.2f} GB free, and {size / 1e9:.2f} GB are to come: "
                "nothing was brought."
            )
        problems = source.bring([one for one in wanted if one.link is None], folder, progress)
        for one in wanted:
            if one.link is not None:
                _link(folder, one.path, one.link)
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be written: {error.strerror}.") from None
    return problems


def differing(source: Source, wanted: Iterable[Found], folder: Path) -> list[Found]:
    """Return those of ``wanted`` that are not in ``folder`` as they are at the source."""

    def differs(one: Found) -> bool:
        place = folder / one.path
        if one.link is not None:
            return not (place.is_symlink() and str(place.readlink()) == one.link)
        return place.is_symlink() or not place.is_file() or not source.same(one, place)

    found = list(wanted)
    return [one for one, new in zip(found, in_parallel(differs, found), strict=True) if new]


def _ssh(instance: Instance, key: SshKey) -> list[str]:
    if not instance.ssh_host:
        raise ConnectionLostError(f"{instance.provider} {instance.id} has no address yet.", silent=True)
    alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    return ["ssh", *alive, "-o", "ControlMaster=no", "-o", "ControlPath=none", *ssh.ssh_args(instance, key)]


def _quoted(words: list[str], *, as_root: bool) -> str:
    return shlex.join(["sudo", "-n", *words] if as_root else words)


@contextlib.contextmanager
def _part(folder: Path, path: str) -> Iterator[Path]:
    """Give a file beside the place of ``path`` to write to; it is gone afterwards, moved into its place or not."""
    place = folder / inner_path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _refuse_outside(folder, place.parent, path)
    part = place.parent / f".{place.name[:200]}{_PART}"
    part.unlink(missing_ok=True)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _copy(stream: IO[bytes], part: Path, size: int) -> str:
    """Write ``size`` bytes of ``stream`` to a file, and return their SHA-256; raises :class:`EOFError`."""
    digest = hashlib.sha256()
    with part.open("xb") as file:
        while size:
            data = stream.read(min(outgoing.CHUNK, size))
            if not data:
                raise EOFError
            size -= len(data)
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _place(part: Path, folder: Path, found: Found) -> None:
    place = folder / found.path
    if place.is_dir() and not place.is_symlink():
        raise UsageError(f"{place} is a folder here, and a file there: move it away. It was not brought.")
    part.chmod(found.mode | 0o600)
    if found.mtime_ns:
        os.utime(part, ns=(found.mtime_ns, found.mtime_ns))
    part.replace(place)


def _link(folder: Path, path: str, target: str) -> None:
    place = folder / inner_path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    _refuse_outside(folder, place.parent, path)
    _refuse_outside(folder, place.parent / target, path)
    with _part(folder, path) as part:
        part.symlink_to(target)
        part.replace(place)


def _refuse_outside(folder: Path, place: Path, path: str) -> None:
    inside, leads_to = folder.resolve(), place.resolve()
    if leads_to != inside and inside not in leads_to.parents:
        raise UsageError(f"{path} would lead to {leads_to}, which is outside of {folder}: it was not brought.")
