"""One command at a time brings a box into shape: the controller's end of the lock that the box holds.

Ansible runs every task in a process of its own, so none of them lives as long as a play. The lock is therefore kept by
a small process beside the play (:func:`main`). It holds one connection to the box, on which
:mod:`gpuyard.box.converging` keeps the lock. It leaves when the play's main process is gone, however that ended, or
when :func:`release` says that the box is in shape.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gpuyard import paths
from gpuyard.box import converging as converging_box
from gpuyard.errors import GpuyardError

SILENCE_S = 60.0  # the box lets go when it has heard nothing from its controller for so long
_SIGN_OF_LIFE_S = 5.0
_POLL_S = 0.2
_LEAVE_S = 5.0


class ConvergeLockError(GpuyardError):
    """The lock on the box is not to be had: the box cannot be reached, or refuses it."""


def owner_text(name: str) -> str:
    """Return in words who holds the lock, for whoever waits: the box's name here, the user, the computer, the time."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{getpass.getuser()} on {socket.gethostname()}, who brings {name} into shape since {now}"


def box_command(folder: str, owner: str, *, python: str = "python3", become: bool = False) -> list[str]:
    """Return the command that holds the lock in ``folder`` of the box where it runs."""
    source = Path(converging_box.__file__).read_text(encoding="utf-8")
    return [*(["sudo", "-n"] if become else []), python, "-c", source, folder, owner, str(SILENCE_S)]


def acquire(command: Sequence[str], name: str, play_pid: int, progress: Callable[[str], None]) -> None:
    """Run ``command`` (see :func:`box_command`) beside the play, and return when the box has given the lock.

    ``name`` tells several boxes of one play apart, ``play_pid`` is the play's main process. ``progress`` is told whom
    this waits for. Raises :class:`ConvergeLockError` when the command ends without the lock.
    """
    mark = _mark(name, play_pid)
    mark.touch(mode=0o600)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "gpuyard.renting.converging", str(play_pid), str(mark), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the play; this process sees it end
    )
    assert keeper.stdout is not None  # asked for above
    why = "it did not say why"
    for line in keeper.stdout:
        answer = json.loads(line)
        if answer["state"] == "held":
            keeper.stdout.close()
            return
        if answer["state"] == "waiting":
            other = answer["for"] or "a command that was killed, whose last step is still at work there"
            progress(f"Waiting for {other}.")
        else:
            why = answer["why"] or why
    release(name, play_pid)
    raise ConvergeLockError(f"{name} cannot be locked for bringing it into shape: {why}.")


def release(name: str, play_pid: int) -> None:
    """Let another command bring the box into shape; nothing happens when the lock is not held."""
    _mark(name, play_pid).unlink(missing_ok=True)


def _mark(name: str, play_pid: int) -> Path:
    """Return the file whose removal tells the keeper to leave."""
    return paths.ensure_private(paths.home() / "locks") / f"converge-{name.replace('/', '_')}-{play_pid}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the lock: ``python -m gpuyard.renting.converging PLAY_PID MARK COMMAND…``.

    The answers of the box pass through.
    """
    parser = argparse.ArgumentParser(prog="python -m gpuyard.renting.converging", description="Keep the lock on a box.")
    parser.add_argument("play_pid", type=int)
    parser.add_argument("mark", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    try:
        play = os.pidfd_open(options.play_pid)
    except ProcessLookupError:
        return 1
    with tempfile.TemporaryFile() as complaints:
        box = subprocess.Popen(
            options.command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints
        )
        try:
            _keep(box, play, options.mark)
        finally:
            _leave(box)
            options.mark.unlink(missing_ok=True)
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    _pass_on(json.dumps({"state": "failed", "why": " ".join(last).rstrip(".")}).encode() + b"\n")
    return 1


def _keep(box: subprocess.Popen[bytes], play: int, mark: Path) -> None:
    """Give signs of life until the play is gone, the mark is removed, or the box has let go."""
    assert box.stdin is not None and box.stdout is not None  # both are pipes
    since_sign_s = 0.0
    while mark.exists():
        answers = box.stdout.fileno()
        readable = select.select([play, answers], [], [], _POLL_S)[0]
        if play in readable:
            return
        if answers in readable:
            answer = box.stdout.readline()
            if not answer:
                return
            # ssh's own words (a banner, say) are no answers.
            if answer.startswith(b"{"):
                _pass_on(answer)
        since_sign_s += _POLL_S
        if since_sign_s >= _SIGN_OF_LIFE_S:
            since_sign_s = 0.0
            try:
                box.stdin.write(b".")
                box.stdin.flush()
            except OSError:
                return


def _leave(box: subprocess.Popen[bytes]) -> None:
    try:
        box.communicate(timeout=_LEAVE_S)
    except (subprocess.TimeoutExpired, OSError):
        box.kill()
        box.wait()


def _pass_on(answer: bytes) -> None:
    """Write to the task that waits; once it has the lock it reads no more, which is right."""
    try:
        os.write(1, answer)
    except OSError:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)


def over_ssh(
    command: Sequence[str], *, host: str, port: int | None, user: str | None, key: str | None, options: Sequence[str]
) -> list[str]:
    """Return ``command`` as it runs on ``host`` over a connection of its own; ``options`` are further ones of ssh."""
    words = ["ssh", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes", *options]
    # Where the other end vanishes without a word, this end must notice too.
    words += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR"]
    for flag, value in (("-i", key), ("-p", port), ("-l", user)):
        if value:
            words += [flag, str(value)]
    return [*words, host, shlex.join(command)]


if __name__ == "__main__":
    sys.exit(main())
