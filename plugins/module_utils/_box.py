# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules share that run on a rented box: standard library only, Python 3.10 or newer.

Private to this collection.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_BLOCK = 1 << 20
# Made by the first command that locks the machine for bringing it into shape, see gpuyard.box.converging.
MODULES_LOCK = Path("/opt/gpuyard/modules.lock")
# What goes on without its module, see `detached`: a folder for each slot.
WORK = Path("/opt/gpuyard/detached")
LIMIT_S = 6 * 3600.0
_FOLLOW_S = 0.1
_END_S = 10.0
_TIMED_OUT = 124  # as timeout(1) says it
# It begins when its process has been noted: one that nobody knows of could not be followed or ended. Full paths, since
# PATH is the command's.
_SUPERVISOR = """
read -r go || exit 1
limit=$1; shift
/usr/bin/timeout --kill-after=30 "$limit" "$@" </dev/null
code=$?
echo $code >"$0/code.part" && /bin/mv "$0/code.part" "$0/code"
exit $code
"""
# The runner holds this lock while it lives, see gpuyard.box.stages.runner, which a box need not have yet.
_RUNNER_LOCK = "runner.lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)


# The same as in gpuyard.box.stages.folders, which a box need not have yet.
_NO_ROOT = re.compile(
    r"(?:/(?:bin|boot|dev|etc|lib(?:x?32|64)?|proc|run|sbin|snap|sys|usr|var)|/opt/gpuyard)(?:/.*)?"  # with all below
    r"|(?:/root|/home/[^/]+)/\.[^/]+(?:/.*)?"  # .ssh, .aws and their like
    r"|/|/home|/home/[^/]+|/lost\+found|/opt|/root|/srv|/tmp"  # but folders in them will do
)


class BoxError(Exception):
    """A failure that a user can act on; the text is one sentence, possibly followed by a program's last lines.

    ``details`` become keys of the module's result.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def guarded(module: AnsibleModule, work: Callable[[AnsibleModule], dict[str, Any]]) -> None:
    """Run ``work``, leave with its result, and turn an expected failure into one sentence."""
    # The programs that are run inherit the standard input, which may be a terminal: one that asks must not wait there.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        with at_work():
            began = time.monotonic()
            result = work(module)
            note_time(module, result, time.monotonic() - began)
    except BoxError as error:
        # What a program said of a full disk decides what becomes of the machine.
        module.fail_json(msg=str(error), **{"disk_full": bool(_FULL.search(str(error))), **error.details})
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=f"{place}{error.strerror or error}.", disk_full=error.errno in _NO_ROOM)
    else:
        module.exit_json(**result)


@contextmanager
def at_work() -> Iterator[None]:
    """Show, by a shared lock, that a module is at work, so that nobody else begins to bring the machine into shape.

    A module outlives its controller when that is killed. Nothing is locked on a machine that nobody has ever locked.
    """
    try:
        handle = MODULES_LOCK.open("rb")
    except OSError:
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def stages_run(settings: Path) -> bool:
    """Tell whether a stage runner lives, by the lock that it holds."""
    try:
        with (settings / _RUNNER_LOCK).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def note_time(module: AnsibleModule, result: Mapping[str, Any], seconds: float) -> None:
    """Note beside the lock how long it took to make what the module was asked for, by its path.

    Whoever has a bundle of it compares that with fetching. The longest time counts: a later change to what is there
    already takes less, and says nothing of making it.
    """
    path = result.get("path") or module.params.get("root")
    if not path or not result.get("changed") or module.check_mode or not MODULES_LOCK.exists():
        return
    file = MODULES_LOCK.with_name("took.json")
    took = read_record(file)
    if seconds > took.get(str(path), 0.0):
        write_record(file, {**took, str(path): round(seconds, 1)})


def check_persistent_root(root: str) -> None:
    """Raise :class:`BoxError` for a folder that the system or gpuyard itself uses."""
    for path in (os.path.normpath("/" + root.lstrip("/")), os.path.realpath(root)):
        if _NO_ROOT.fullmatch(path):
            raise BoxError(
                f"root={root} must not be {path}, which the system or gpuyard itself uses: all that is in it, keys "
                "too, would go to the bucket; name a folder of its own, such as /mnt/persistent."
            )


def tail(text: str, lines: int = 8) -> str:
    """Return the last ``lines`` lines of a program's output."""
    return "\n".join(text.strip().splitlines()[-lines:])


def execute(
    module: AnsibleModule,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> tuple[int, str, str]:
    """Run a program in ``folder`` and return its exit code, standard output and standard error.

    ``environment`` is added to the module's own. Nothing in ``command`` is expanded. Raises :class:`OSError` with the
    program's name when it cannot be run.
    """
    try:
        done: tuple[int, str, str] = module.run_command(
            list(command),
            environ_update=dict(environment or {}),
            cwd=str(folder) if folder else None,
            ignore_invalid_cwd=False,
            expand_user_and_vars=False,
            errors="replace",
            handle_exceptions=False,
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, command[0]) from error
    return done


def run(
    module: AnsibleModule,
    command: Sequence[str],
    *,
    purpose: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program in ``folder`` and return its standard output.

    ``environment`` is added to the module's own. Raises :class:`BoxError` that begins with ``purpose`` ("Installing …")
    and ends with the program's last lines.
    """
    try:
        code, output, errors = execute(module, command, environment=environment, folder=folder)
    except OSError as error:
        raise BoxError(f"{purpose} failed: {command[0]}: {error.strerror}.") from error
    if code:
        said = tail(f"{output}\n{errors}")
        raise BoxError(f"{purpose} failed with exit code {code}:\n{said}", rc=code)
    return output


def detached(
    command: Sequence[str],
    *,
    slot: str,
    key: Any,
    purpose: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    log: Path | None = None,
    limit_s: float = LIMIT_S,
    may_be_ended: bool = True,
    wait: bool = True,
    progress: Progress | None = None,
) -> str:
    """Run a long command in a session of its own, which goes on when module, connection or controller ends.

    ``slot`` names what the command works on, such as ``rust /opt/gpuyard/rust``: one command at a time works there.
    ``key`` (any JSON-able value) says what it does to it. The next call with the same slot and key finds it running
    and follows it, or finds it ended well and takes that, once; after any other end the command runs anew. A call with
    another key ends it first, or waits for its end where it must not be ended (``may_be_ended=False``).

    ``environment`` is added to the module's own and written nowhere. The output goes to ``log``, by default a file of
    the slot, and is returned. Raises :class:`BoxError` as :func:`run` does, also after ``limit_s`` seconds, which end
    the command. Without ``wait`` it is only begun, and nothing is returned. ``progress``, of work that has other parts,
    too, is what the play shows meanwhile; by default that is ``purpose`` with the last line of the output.
    """
    variables = {**os.environ, **(environment or {})}
    if not shutil.which(command[0], path=variables.get("PATH")):
        raise BoxError(f"{purpose} failed: {command[0]}: {os.strerror(errno.ENOENT)}.")
    work = _Work(WORK / _digest(slot)[:16])
    place = log or work.folder / "log"
    with nullcontext(progress) if progress else Progress(purpose, log=place) as shown, work.locked():
        if work.taken_over(key, shown):
            return place.read_text(encoding="utf-8", errors="replace") if place.exists() else ""
        process = work.start(command, key, variables, folder, place, limit_s, may_be_ended)
        if not wait:
            return ""
        code = work.follow(shown, process)
        work.forget()
        output = place.read_text(encoding="utf-8", errors="replace")
    if code == 0:
        return output
    if code == _TIMED_OUT:
        how = f"was ended after {limit_s / 3600:g} h, which is its limit"
    else:
        how = f"failed with exit code {code}" if code is not None else "was ended from outside"
    raise BoxError(f"{purpose} {how}:\n{tail(output)}", rc=code)


def take_over(slot: str, key: Any, progress: Progress | None = None) -> bool:
    """Follow what an earlier module has begun in ``slot``, see :func:`detached`, before looking at the machine's state.

    Returns whether that did what ``key`` says and has ended well. With another key it is ended. ``progress`` is what
    the play shows meanwhile, as in :func:`detached`.
    """
    work = _Work(WORK / _digest(slot)[:16])
    if not work.folder.is_dir():
        return False
    with nullcontext(progress) if progress else _earlier(work) as shown, work.locked():
        return work.taken_over(key, shown)


def end_detached() -> None:
    """End what is still at work in any slot, or wait for it where it must not be ended, and forget all of them."""
    for folder in WORK.iterdir() if WORK.is_dir() else []:
        work = _Work(folder)
        with _earlier(work) as progress, work.locked():
            work.taken_over(None, progress)
        shutil.rmtree(folder)


def _earlier(work: _Work) -> Progress:
    return Progress("what an earlier command has begun", log=work.folder / "log")


class _Work:
    """One slot: the process that is at work there, how it ended, and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other modules off the slot."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @property
    def record(self) -> dict[str, Any]:
        return read_record(self.folder / "record.json")

    @property
    def code(self) -> int | None:
        """The command's exit code; ``None`` while it runs, and when it was ended with all that watched it."""
        try:
            return int((self.folder / "code").read_text())
        except (OSError, ValueError):
            return None

    def start(
        self,
        command: Sequence[str],
        key: Any,
        variables: Mapping[str, str],
        folder: Path | None,
        log: Path,
        limit_s: float,
        may_be_ended: bool,
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            log.chmod(0o600)
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                ["/bin/sh", "-c", _SUPERVISOR, str(self.folder), str(limit_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                cwd=folder,
                start_new_session=True,
            )
        record = {"key": _digest(key), "process": _process(process.pid), "may_be_ended": may_be_ended}
        write_record(self.folder / "record.json", {**record, "pid": process.pid})
        if process.stdin:  # asked for above
            process.stdin.write(b"go\n")
            process.stdin.close()
        return process

    def runs(self) -> bool:
        """Return whether the noted process lives: the number alone may be another one's by now."""
        record = self.record
        return bool(record.get("process")) and _process(record["pid"]) == record["process"]

    def follow(self, progress: Progress, process: subprocess.Popen[bytes] | None = None) -> int | None:
        """Wait for the end and return the exit code; leave the program when nobody waits for its answer any more."""
        while self.runs():
            progress.tick()
            if _caller_has_left():
                sys.exit(1)  # pylint: disable=ansible-bad-function
            try:
                if process:
                    process.wait(_FOLLOW_S)
                else:
                    time.sleep(_FOLLOW_S)
            except subprocess.TimeoutExpired:
                continue
        code = self.code
        if process and process.wait() > 0 and code is None:
            return process.returncode  # a full disk may have kept the file from being written
        return code

    def taken_over(self, key: Any, progress: Progress) -> bool:
        record = self.record
        same = record.get("key") == _digest(key)
        if not same and record.get("may_be_ended"):
            self.end()
        ended_well = self.follow(progress) == 0
        if not ended_well:
            self.end()  # what the process that watched has left behind
        self.forget()
        return same and ended_well

    def end(self) -> None:
        """End everything of the noted process's session; nothing happens when there is none."""
        record = self.record
        if not record or (_process(record["pid"]) not in ("", record["process"])):
            return
        for kind in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _END_S
            while (members := _session(record["pid"])) and time.monotonic() < deadline:
                for pid in members:
                    with suppress(ProcessLookupError):
                        os.kill(pid, kind)
                time.sleep(_FOLLOW_S)

    def forget(self) -> None:
        """Take the result away; the log stays for people."""
        for name in ("record.json", "code"):
            (self.folder / name).unlink(missing_ok=True)


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _stat(pid: int | str) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on; none for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def _process(pid: int) -> str:
    """Return what tells a process from any other one that had or will have its number; ``""`` for an ended one."""
    fields = _stat(pid)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{pid} {fields[19]} {boot}" if fields else ""


def _session(pid: int) -> list[int]:
    """Return the living processes of the session that ``pid`` has begun."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        fields = _stat(place.name)
        if fields and fields[3] == str(pid):
            found.append(int(place.name))
    return found


def _caller_has_left() -> bool:
    """Return whether the other end of the standard output is closed: the connection or the controller is gone."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _file, events in poll.poll(0))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        Path(scratch).chmod(mode)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def has_program(path: Path, text: str) -> bool:
    """Return whether ``path`` is a program of exactly this text."""
    try:
        return path.read_text(encoding="utf-8") == text and path.stat().st_mode & 0o111 == 0o111
    except (OSError, ValueError):
        return False


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; ``{}`` when none can be read, so that the work is done again."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON, see :func:`write_file`."""
    write_file(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def note_brought(root: Path, found: Mapping[str, str]) -> None:
    """Note below the persistent root what the repository has brought there: SHA-256 by path.

    gpuyard.box.checkpoints goes by it when it restores a set, to tell what the run has changed.
    """
    place = root / ".gpuyard/brought.json"
    record = read_record(place)
    if any(record.get(name) != digest for name, digest in found.items()):
        write_record(place, {**record, **found})


def version_tuple(text: str) -> tuple[int, ...]:
    """Return ``1.96.0`` as ``(1, 96, 0)``; what follows the numbers is ignored."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
