"""The tmux session of a run: named after the workload, with four windows, outliving the SSH connection that began it.

Window 0 is the iteration (the runner), 1 the GPU, 2 the tail of the newest log, 3 the disk, unless the workload names
its own windows after the first. No command line of the session holds a secret, and the tmux server gets a small
environment of its own: the runner reads the secret file itself.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gpuyard.box.stages.choice import Choice
from gpuyard.box.stages.runner import is_running, lock_owner, progress_of, python_module
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.errors import GpuyardError, UsageError

WINDOWS = ("gpu", "log", "disk")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "USER", "SHELL", "PYTHONPATH", "TMUX_TMPDIR")
_START_WAIT_S = 60.0
_WINDOWS_WAIT_S = 1.0
# A tmux server exits after its last session. A call that reaches it meanwhile is answered so, and is not carried out.
_LEAVING = ("server exited", "lost server")


class SessionError(GpuyardError):
    """The session cannot be started or does not end."""


def exists(spec: BoxSpec) -> bool:
    """Tell whether the session is there, with or without a living runner in it."""
    return shutil.which("tmux") is not None and _tmux("has-session", "-t", f"={spec.workload}").returncode == 0


def start(spec: BoxSpec, choice: Choice | None = None) -> None:
    """Start the session with its runner, and return when the runner has taken up its work.

    A session of that name that has no runner any more is replaced. Raises :class:`SessionError` when the runner ends
    at once, with what it said.
    """
    if shutil.which("tmux") is None:
        raise SessionError("tmux is not installed on this box.")
    if not spec.repository.is_dir():
        raise UsageError(f"The repository {spec.repository} is not on this box.")
    (spec.root / ".gpuyard" / "logs").mkdir(parents=True, exist_ok=True)
    # Before the first window opens: the disk's shows the folders that it finds, and looks again only half a minute on.
    spec.make_directories()
    if exists(spec):
        _tmux("kill-session", "-t", f"={spec.workload}")
    settings = ("--settings", str(spec.folder))
    runner = python_module("gpuyard.box.stages", "run", *settings, *_arguments(choice or Choice()))
    first = ["new-session", "-d", "-s", spec.workload, "-n", "iteration", "-x", "200", "-y", "50", "-c", str(spec.root)]
    # A dead window stays to be read. The option must be there before its command can end, hence the one command line.
    first += [shlex.join(runner), ";", "set-option", "-w", "remain-on-exit", "on"]
    deadline = time.monotonic() + _START_WAIT_S
    while _is_leaving(started := _tmux(*first, own_scope=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if started.returncode != 0:
        raise SessionError(f"tmux cannot start the session {spec.workload}: {started.stderr.strip()}")
    # The other windows do not take the processor from a runner that begins; a late one does not keep them waiting.
    _wait_for_runner(spec, _WINDOWS_WAIT_S)
    own = [(name, shlex.join(python_module("gpuyard.box.stages", "pane", name, *settings))) for name in WINDOWS]
    for name, command in spec.windows or own:
        _tmux("new-window", "-d", "-t", f"={spec.workload}:", "-n", name, "-c", str(spec.repository), command)
    if not _wait_for_runner(spec, _START_WAIT_S):
        raise SessionError(f"The runner in the tmux session {spec.workload} does not begin: {_screen(spec)}")


def _wait_for_runner(spec: BoxSpec, seconds: float) -> bool:
    """Return whether the runner has taken up its work, waiting so long at most.

    It may have had little to do and have ended again: its outcome is in the journal, which the caller reports.
    """
    deadline = time.monotonic() + seconds
    while not is_running(spec) and not _pane_is_dead(spec):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stop(spec: BoxSpec, wait_s: float, *, tick: Callable[[], None] = lambda: None) -> bool:
    """Ask the runner to end in good order and wait for it, then remove the session; return whether there was anything.

    ``tick`` is called while waiting. Raises :class:`SessionError` when it has not ended after ``wait_s`` seconds (it
    goes on ending all the same).
    """
    running = is_running(spec)
    told: int | None = None
    deadline = time.monotonic() + wait_s
    while is_running(spec):
        # A runner that has this moment begun holds its lock, and has not written yet who it is.
        owner = lock_owner(spec)
        if owner is not None and owner != told:
            told = owner
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner, signal.SIGTERM)
        if time.monotonic() > deadline:
            place = progress_of(spec).running
            doing = f"{place[1]} is still saving its work" if place else "its last checkpoint is still being published"
            raise SessionError(f"{spec.run} was told to stop and has not ended after {wait_s:.0f} s: {doing}.")
        tick()
        time.sleep(0.1)
    present = exists(spec)
    if present:
        _tmux("kill-session", "-t", f"={spec.workload}")
    return running or present


def _arguments(choice: Choice) -> list[str]:
    arguments = []
    for option, value in (
        ("--from", choice.from_stage),
        ("--only", choice.only),
        ("--until", choice.until),
        ("--iteration", choice.iteration),
    ):
        if value is not None:
            arguments += [option, str(value)]
    return arguments


def _is_leaving(answer: subprocess.CompletedProcess[str]) -> bool:
    return answer.returncode != 0 and any(words in answer.stderr for words in _LEAVING)


def _pane_is_dead(spec: BoxSpec) -> bool:
    answer = _tmux("list-panes", "-t", f"={spec.workload}:0", "-F", "#{pane_dead}")
    return answer.returncode != 0 or answer.stdout.strip() == "1"


def _screen(spec: BoxSpec) -> str:
    lines = _tmux("capture-pane", "-p", "-t", f"={spec.workload}:0").stdout.strip().splitlines()
    return " / ".join(lines[-5:]) or "its window is empty."


def _tmux(*arguments: str, own_scope: bool = False) -> subprocess.CompletedProcess[str]:
    """Run tmux with an environment that holds no secret of the caller.

    ``own_scope``: where systemd runs the box, the server begins in a scope of its own, outside the SSH session's, so
    that it survives the end of that session whatever ``KillUserProcesses`` says.
    """
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= {"LANG": "C.UTF-8", "TERM": "xterm-256color"}
    command = ["tmux", "-u", *arguments]
    if own_scope and os.geteuid() == 0 and Path("/run/systemd/system").is_dir() and shutil.which("systemd-run"):
        scope = ["systemd-run", "--quiet", "--scope", "--collect", "--slice=system.slice", "--"]
        answer = _call([*scope, *command], environment)
        if answer.returncode == 0 or _is_leaving(answer):
            return answer
        # A systemd that cannot be talked to (no bus, say) is no reason not to train.
    return _call(command, environment)


def _call(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
