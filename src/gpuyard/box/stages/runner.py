"""The stage runner: runs a workload's stages in order, journals them, and ends them well when it is told to.

It holds a lock while it lives, so that "is it running?" is answered by the kernel. Whatever ends it, the next runner
goes on from the journal: what is done is skipped, what was cut off is resumed or run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from gpuyard.box.checkpoints import Published, Restored, answer_soon, publish_or_warn, restore, write_record
from gpuyard.box.monitor.companion import Companion
from gpuyard.box.stages import choice as choosing
from gpuyard.box.stages import processes, surroundings
from gpuyard.box.stages.choice import Choice
from gpuyard.box.stages.spec import DEFAULT_GRACE_S, BoxSpec, Stage
from gpuyard.box.stages.taking_up import take_up
from gpuyard.errors import BucketError, GpuyardError, MissingObjectError, UsageError
from gpuyard.formats.journal import (
    BEGIN,
    NEARLY_FULL_BYTES,
    Attempts,
    Journal,
    Position,
    Progress,
    is_full,
    space_free,
    summary,
)
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.manifest import JOURNAL, STATE, timestamp

LOCK = "runner.lock"
_LOCK_WAIT_S = 2.0
_LOOKERS_WAIT_S = 60.0
_BUCKET_AGAIN_S = 3.0
_POLL_S = 0.1
# bash waits for the program in the foreground and then leaves, so that a stopped stage begins no further command.
_PREAMBLE = "trap 'exit 130' INT\n"

EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 3, "waiting": 4}


def journal_of(spec: BoxSpec) -> Journal:
    """Return the run's journal."""
    return Journal(spec.root / JOURNAL)


def progress_of(spec: BoxSpec) -> Progress:
    """Return where the run stands, from its journal."""
    return journal_of(spec).progress(spec.order)


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of gpuyard's modules with the Python (and isolation) of this process."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", module, *arguments]


def bucket_refusal(spec: BoxSpec) -> str | None:
    """Return a sentence that says why the bucket cannot be used now, ``None`` when it answers."""
    try:
        answer_soon(lambda: spec.store().folders(f"{spec.place}/"), spec.bucket)
    except Exception as error:  # also what a damaged settings file or a missing boto3 raises
        return str(error)
    return None


def publish_checkpoint(
    spec: BoxSpec, *, warn: Callable[[str], None], patient: bool, force: bool = False
) -> Published | None:
    """Publish a checkpoint of the run and journal it. Without a bucket, or when it fails, warn at most; never raise.

    Returns what was published (or found unchanged), ``None`` when the bucket does not hold the present state.
    """
    if not spec.bucket:
        return None
    published = publish_or_warn(
        spec.store,
        spec.place,
        spec.root,
        warn=warn,
        patient=patient,
        retention=spec.retention,
        rules=spec.rules,
        progress=lambda data: {**summary(data, spec.order), **({} if spec.node == FIRST_NODE else {"node": spec.node})},
        force=force,
    )
    if published is not None and not published.unchanged:
        try:
            journal_of(spec).append(
                "published",
                sequence=published.sequence,
                files=published.files,
                bytes_total=published.bytes_total,
                bytes_sent=published.bytes_sent,
                seconds=round(published.seconds, 2),
            )
        except OSError as error:
            warn(f"Warning: checkpoint {published.sequence} is in the bucket, and the journal does not say so: {error}")
    return published


def restore_checkpoint(spec: BoxSpec, sequence: int | None = None, expected: int | None = None) -> Restored:
    """Bring back the newest checkpoint, or exactly that one; a node that has none of its own begins with the run's.

    ``expected`` is the newest one that the controller has seen in the node's place. A bucket that does not answer is
    asked once more, after a few seconds.
    """
    try:
        return _restore(spec, sequence, expected)
    except MissingObjectError:
        raise
    except BucketError:
        # A name that is not found for a moment must not end a launch whose machine bills already.
        time.sleep(_BUCKET_AGAIN_S)
        return _restore(spec, sequence, expected)


def _restore(spec: BoxSpec, sequence: int | None, expected: int | None) -> Restored:
    store = spec.store if spec.bucket else None
    restored = restore(store, spec.place, spec.root, sequence=sequence, expected=expected)
    if restored.source == "nothing" and spec.place != spec.run:
        restored = restore(store, spec.run, spec.root)
    return restored


@contextlib.contextmanager
def hold_lock(spec: BoxSpec) -> Iterator[None]:
    """Be the one runner of this box, or raise :class:`UsageError` that names the one there is."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a full disk must not keep the lock from being held, nor from being let go.
    with (spec.folder / LOCK).open("a+b", buffering=0) as handle:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # A runner keeps the lock; a status call that looks at it lets go, however slow its machine is.
                late = time.monotonic() - deadline
                if late >= _LOOKERS_WAIT_S or (late >= 0 and is_running(spec)):
                    raise UsageError(f"{spec.run} is running already (process {lock_owner(spec)}).") from error
                time.sleep(0.05)
        handle.truncate(0)
        with contextlib.suppress(OSError):
            handle.write(json.dumps({"pid": os.getpid(), "run": spec.run, "started": timestamp()}).encode())
        yield
        handle.truncate(0)


def is_running(spec: BoxSpec) -> bool:
    """Tell whether a runner lives, by its lock: a killed runner holds none, whatever it left behind."""
    try:
        with (spec.folder / LOCK).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def lock_owner(spec: BoxSpec) -> int | None:
    """Return the process id of the runner that holds (or held) the lock."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((spec.folder / LOCK).read_bytes())["pid"])
    # It could not write who it is: the disk is full. The kernel knows.
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = (spec.folder / LOCK).stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[3] == "WRITE" and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
                return int(fields[4])
    return None


def end_leftovers(
    spec: BoxSpec, *, say: Callable[[str], None] = lambda text: None, tick: Callable[[], None] = lambda: None
) -> bool:
    """End what a killed runner left running, so that no stage ever runs twice at a time; return whether there was any.

    ``tick`` is called while waiting.
    """
    found = False
    grace = {stage.name: stage.grace_s for stage in spec.stages}
    for (_, name), entry in progress_of(spec).stages.items():
        if entry.token and entry.outcome is None and processes.members(entry.token):
            say(f"ending {name}, which has outlived its runner")
            processes.end(entry.token, grace.get(name, DEFAULT_GRACE_S), tick=tick)
            found = True
    return found


def _written_ns(root: Path) -> Iterator[int]:
    """Yield when each file below ``root`` but gpuyard's own was written, in nanoseconds since 1970.

    Restoring gives files the times that they had, so this holds on another box, too.
    """
    for folder, folders, files in os.walk(root):
        if Path(folder) == root and STATE in folders:
            folders.remove(STATE)
        for name in files:
            with contextlib.suppress(OSError):
                yield (Path(folder) / name).lstat().st_mtime_ns


def _begins_ns(root: Path) -> int:
    """Return a time after which whatever a stage that begins now saves was written.

    That is when the newest file was written, not the present time: a clock that is ahead now may be put right before
    the stage saves anything.
    """
    return min(time.time_ns(), max(_written_ns(root), default=1))


def _overdue(stage: Stage, seconds: float, silence: float) -> str | None:
    """Return why a stage has to end now, ``None`` while it may go on."""
    if stage.timeout is not None and seconds >= stage.timeout:
        return f"{stage.name} was ended after {stage.timeout:g} s, its timeout"
    if stage.silent is not None and silence >= stage.silent:
        return f"{stage.name} was ended because it had printed nothing for {stage.silent:g} s"
    return None


class Runner:
    """One execution of :meth:`run`, in the foreground of this process."""

    def __init__(self, spec: BoxSpec, *, screen: IO[bytes] | None = None) -> None:
        self.spec = spec
        self.journal = journal_of(spec)
        self._screen = screen or sys.stdout.buffer
        self._stop = threading.Event()
        self._publisher = threading.Thread(target=self._publish_now_and_then, name="publisher", daemon=True)
        self._wake = threading.Event()
        self._closing = threading.Event()
        monitor = python_module("gpuyard.box.monitor", "--settings", str(spec.folder))
        self._monitor = Companion(monitor, spec.monitoring.every_s)
        # The stage that runs: the token of its processes, and its grace time.
        self._token: tuple[str, float] | None = None

    def run(self, choice: Choice | None = None) -> str:
        """Run what is left of the workload (or what ``choice`` says); return ``done``, ``failed`` or ``interrupted``.

        ``waiting`` is returned where a stage comes next that a box of another pool has to run.

        SIGTERM, SIGINT and SIGHUP end it in good order. Raises :class:`UsageError` when there is nothing sensible to
        run, or when another runner is alive.
        """
        # Before the lock says who is to be told to stop: a signal that comes at once must not find Python's defaults.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop.set())
        with hold_lock(self.spec):
            reason = None
            try:
                outcome = self._run_all(choice or Choice())
            except UsageError:
                raise
            except Exception as error:  # whatever it is: a run that ends without a record seems to run for ever
                outcome, reason = "failed", self._reason(error)
                if self._token is not None:
                    processes.end(*self._token)
            self._finish(outcome, reason)
            return outcome

    def _run_all(self, choice: Choice) -> str:
        todo = self._todo(choice)
        end_leftovers(self.spec, say=self._say)
        self.journal.append(BEGIN, run=self.spec.run, workload=self.spec.workload, pid=os.getpid())
        self.spec.make_directories()
        self._publisher.start()
        self._monitor.start()
        outcome = "done"
        for place in todo:
            if self.spec.waits_for(place[1]) is not None:
                outcome = "waiting"
                break
            outcome = self._run_stage(place)
            if outcome != "done":
                break
            if place != todo[-1]:
                self._wake.set()  # publish while the next stage runs; the last one's set is made at the end
        if self._stop.is_set() and outcome == "done" and progress_of(self.spec).pending:
            outcome = "interrupted"
        return outcome

    def _reason(self, error: Exception) -> str:
        """Return a sentence for the journal."""
        if isinstance(error, OSError) and is_full(error):
            return self._full_disk()
        said = str(error) if isinstance(error, (GpuyardError, OSError)) else repr(error)
        return f"the runner could not go on: {said}"

    def _full_disk(self) -> str:
        return f"no space left on the disk of {self.spec.root}"

    # --- what to run ---

    def _todo(self, choice: Choice) -> list[Position]:
        progress = progress_of(self.spec)
        fields = choosing.rewind(choice, self.spec, progress)
        if fields is not None:
            self.journal.append("rewind", **fields)
            progress = progress_of(self.spec)
        return choosing.what_runs(choice, self.spec, progress)

    # --- one stage ---

    def _run_stage(self, place: Position) -> str:
        stage = self.spec.stage(place[1])
        for attempt in range(stage.retries + 1):
            if self._stop.is_set():
                return "interrupted"
            self.spec = take_up(self.spec, self._say)
            stage = self.spec.stage(place[1])
            outcome = self._attempt(place, stage)
            if outcome != "failed" or attempt == stage.retries:
                return outcome
            self._say(f"{stage.name} failed; attempt {attempt + 2} of {stage.retries + 1} follows.")
        return "failed"

    def _attempt(self, place: Position, stage: Stage) -> str:
        iteration, name = place
        before = progress_of(self.spec).at(place)
        resumed = stage.resumable and before.cut_short
        # What a resume command goes on from may not be there: the stage was lost before it had saved anything.
        afresh = self._why_afresh(stage, before) if resumed and stage.resume_command else None
        resumed = resumed and afresh is None
        command = stage.command_in(iteration, resumed=resumed)
        if stage.overrides and self.spec.overrides:
            command = f"{command.rstrip()} {shlex.join(self.spec.overrides)}"
        attempt, token = before.attempts + 1, uuid.uuid4().hex
        if resumed:
            self.journal.append("resume", iteration=iteration, stage=name, attempt=attempt)
        self.journal.append(
            "stage-start",
            iteration=iteration,
            stage=name,
            attempt=attempt,
            token=token,
            began_ns=_begins_ns(self.spec.root),
            **({"afresh": afresh} if afresh else {}),
        )
        began = time.monotonic()
        with self._open_log(place) as log:
            how = "resumed" if resumed else f"started afresh ({afresh})" if afresh else "started"
            note = f"iteration {iteration}, {name}: {how}, attempt {attempt}"
            self._note(log, note)
            self._token = token, stage.grace_s
            exit_code, reason = self._execute(command, place, token, stage, log)
            self._token = None
            outcome = "done" if exit_code == 0 and reason is None else "failed"
            if self._stop.is_set():
                # Whatever it says of itself: it was told to stop, so its work may not be complete.
                outcome = "interrupted"
                reason = None
            seconds = round(time.monotonic() - began, 2)
            note = f"iteration {iteration}, {name}: {outcome} after {seconds} s, exit code {exit_code}"
            self._note(log, f"{note}: {reason}" if reason else note)
        self.journal.append(
            "stage-end",
            iteration=iteration,
            stage=name,
            attempt=attempt,
            exit_code=exit_code,
            outcome=outcome,
            seconds=seconds,
            **({"reason": reason} if reason else {}),
        )
        return outcome

    def _open_log(self, place: Position) -> IO[bytes]:
        """Open the log of a stage. One that cannot be written is no reason not to run the stage."""
        file = self.spec.log(*place)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.open("ab", buffering=0)
        except OSError as error:
            self._say(f"Warning: the log {file} cannot be written: {error.strerror}")
            return Path(os.devnull).open("ab", buffering=0)

    def _note(self, log: IO[bytes], note: str) -> None:
        self._say(note)
        with contextlib.suppress(OSError):
            log.write(f"## {timestamp()} {note}\n".encode())

    def _why_afresh(self, stage: Stage, before: Attempts) -> str | None:
        """Return why a stage that was cut short has nothing to go on from, ``None`` when it has."""
        if stage.resume_if is not None:
            pattern = stage.resume_if.replace("${ITERATION}", str(before.iteration))
            pattern = pattern.replace("$ITERATION", str(before.iteration))
            # pathlib's own refuses some patterns with an exception, which ones depends on the version.
            found = glob.iglob(pattern, root_dir=self.spec.root, recursive=True)  # noqa: PTH207
            return None if any(found) else f"nothing is there that matches resume_if: {pattern}"
        since_ns = before.began_ns
        saved = since_ns is None or any(written > since_ns for written in _written_ns(self.spec.root))
        return None if saved else "nothing of it was saved"

    def _execute(
        self, command: str, place: Position, token: str, stage: Stage, log: IO[bytes]
    ) -> tuple[int, str | None]:
        """Run one command to its end; return its exit code, and why it was ended where that was the runner's doing."""
        grace_s = stage.grace_s
        # The stage writes to its log itself, so that the death of this process does not break a pipe under its hands.
        with Path(str(log.name)).open("rb") as shown:
            shown.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    ["bash", "-eo", "pipefail", "-c", _PREAMBLE + command],
                    cwd=self.spec.repository,
                    env=self._environment(place, token),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._note(log, f"The stage cannot be started: {error}")
                return 127, None

            def tick() -> None:
                process.poll()
                self._copy(shown)

            began = heard = time.monotonic()
            reason = None
            while process.poll() is None and not self._stop.is_set() and reason is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                if self._copy(shown):
                    heard = time.monotonic()
                if process.poll() is None:
                    # A log that cannot be written tells nothing about what the stage prints.
                    silence = 0.0 if log.name == os.devnull else time.monotonic() - heard
                    reason = _overdue(stage, time.monotonic() - began, silence)
            if reason is not None:
                self._note(log, f"{reason}; it has {grace_s:g} s to save its work")
            if self._stop.is_set() and process.poll() is None:
                self._say(f"told to stop: {place[1]} has {grace_s:g} s to save its work")
            # After a normal end this ends what a stage left in the background: the GPU belongs to the next stage now.
            processes.end(token, grace_s, tick=tick)
            exit_code = process.wait()
            self._copy(shown)
            return exit_code, reason

    def _environment(self, place: Position, token: str) -> dict[str, str]:
        spec = self.spec
        checkpoint = python_module("gpuyard.box.checkpoints", "publish", "--impatient", "--settings", str(spec.folder))
        users = {**spec.environment, **spec.stage(place[1]).environment_in(place[0]), **spec.secrets()}
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **surroundings.defaults(spec, users),
            **users,
            "ITERATION": str(place[0]),
            "STAGE": place[1],
            "RUN": spec.run,
            **surroundings.facts(spec),
            "GPUYARD_PERSIST": str(spec.root),
            "GPUYARD_CHECKPOINT_COMMAND": shlex.join(checkpoint),
            processes.TOKEN: token,
        }
        path = environment.get("PATH") or os.defpath
        environment["PATH"] = os.pathsep.join([*spec.path, path])
        return environment

    # --- checkpoints ---

    def _publish_now_and_then(self) -> None:
        self._record(None)
        last = time.monotonic()
        while not self._closing.is_set():
            every_s = self.spec.every_s
            wait_s = max(0.0, last + every_s - time.monotonic()) if every_s > 0 else None
            ended_a_stage = self._wake.wait(wait_s)
            self._wake.clear()
            if self._closing.is_set():
                return
            publish_checkpoint(self.spec, warn=self._say, patient=ended_a_stage)
            last = time.monotonic()

    def _finish(self, outcome: str, reason: str | None) -> None:
        progress = progress_of(self.spec)
        complete = progress.finished
        if reason is None and outcome == "failed" and progress.failed and self._disk_is_full():
            entry = progress.at(progress.failed)
            reason = f"{self._full_disk()}, and {entry.stage} ended with exit code {entry.exit_code}"
        if outcome == "waiting" and progress.current:
            stage = progress.current[1]
            reason = f"{stage} comes next, which a box of pool {self.spec.waits_for(stage)} has to run"
        # The end goes into the journal before the last set is made, so that a restored run knows how it stood.
        try:
            why = {"reason": f"{reason}."} if reason else {}
            self.journal.append("run-end", outcome=outcome, complete=complete, **why)
        except OSError as error:
            self._say(f"Warning: the journal cannot be written: {error}")
        # It writes into what the last checkpoint holds.
        self._monitor.close()
        said = {"done": "all done" if complete else "done", "failed": "the run has failed"}.get(outcome, outcome)
        self._say(f"{said}: {reason}" if reason else said)
        self._closing.set()
        self._wake.set()
        # Somebody waits for a run that was told to stop, and a dead bucket must not hold that up for minutes.
        refusal = bucket_refusal(self.spec) if self.spec.bucket and self._stop.is_set() else None
        if refusal is not None:
            self._say(f"Warning: no checkpoint was published: {refusal} Everything stays on this box.")
            return
        publish_checkpoint(self.spec, warn=self._say, patient=True, force=True)
        # A run that waits has not ended.
        if complete or outcome not in ("done", "waiting"):
            self._record(outcome)

    def _disk_is_full(self) -> bool:
        with contextlib.suppress(OSError):
            return space_free(self.spec.root) < NEARLY_FULL_BYTES
        return False

    def _record(self, outcome: str | None) -> None:
        if self.spec.bucket:
            try:
                store = self.spec.store()
                write_record(store, self.spec.place, self.spec.workload, outcome=outcome)
                if outcome is None and self.spec.place != self.spec.run:
                    # The run goes on, whatever its record said before; how it ends is said by all its nodes.
                    write_record(store, self.spec.run, self.spec.workload)
            except (GpuyardError, OSError) as error:
                self._say(f"Warning: the bucket has no record of this run: {error}")

    # --- the screen ---

    def _say(self, text: str) -> None:
        self._show(f"== {text}\n".encode())

    def _copy(self, log: IO[bytes]) -> bool:
        """Show what has come into the log since the last look; tell whether it was anything."""
        came = False
        while chunk := log.read(65536):
            self._show(chunk)
            came = True
        return came

    def _show(self, data: bytes) -> None:
        """Write to the tmux pane. It may be gone, which must not matter to a stage."""
        with contextlib.suppress(OSError, ValueError):
            self._screen.write(data)
            self._screen.flush()
