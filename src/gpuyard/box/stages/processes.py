"""Ending a stage's processes so that each of them can save its work.

Programs disagree about the signal that means "save and leave": many provers and trainers listen for SIGINT only (a
bare SIGTERM kills them before they have flushed), others for SIGTERM only. So every process of the stage is sent a
signal that it listens to, as ``/proc`` tells: a handler for SIGTERM is always deliberate, one for SIGINT may be
Python's default. A process that listens to neither (``tee``, a shell's ``sleep``) is left alone while a listener may
still need it, and then ended. A listener to both gets the other signal at half of the grace time, and whatever is left
at its end gets SIGKILL.

The processes are found by a token in their environment, so that those are found, too, that changed their process group
or outlived the runner. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOKEN = "GPUYARD_STAGE_TOKEN"
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """A process that is alive: its id, its program's name, and whether it has handlers for the two signals."""

    pid: int
    name: str
    hears_int: bool
    hears_term: bool

    @property
    def listens(self) -> bool:
        """True for a program with work to save. A shell's SIGINT handler only serves its own waiting."""
        return self.hears_term or (self.hears_int and self.name not in _SHELLS)


def members(token: str) -> list[Process]:
    """Return the processes that carry ``token`` in their environment, without zombies and without this process."""
    mark = f"{TOKEN}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            # Gone meanwhile, or another user's: neither is ours to end.
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    process = _inspect(folder)
                    if process is not None:
                        found.append(process)
    return found


def end(token: str, grace_s: float, *, tick: Callable[[], object] = lambda: None) -> bool:
    """End every process that carries ``token``; return whether all left before the grace time (seconds) was over.

    ``tick`` is called while waiting, some twenty times a second.
    """
    began = time.monotonic()
    late_since: float | None = None
    told: dict[int, set[int]] = {}
    while processes := members(token):
        now = time.monotonic()
        if late_since is None and now - began >= grace_s / 2:
            late_since = now
        # The time counts from the second round of signals, so that nobody has less of it when this process was held up.
        overdue = -1.0 if late_since is None else now - late_since - grace_s / 2
        if overdue >= 0:
            for process in processes:
                _send(process.pid, signal.SIGKILL)
            if overdue >= 5:
                return False  # in the kernel's hands (a stuck disk, say); nothing more can be done from here
        else:
            listeners = [process for process in processes if process.listens]
            for process in processes:
                sent = told.setdefault(process.pid, set())
                for number in _signals(process, bool(listeners), late=late_since is not None):
                    if number not in sent:
                        sent.add(number)
                        _send(process.pid, number)
        tick()
        time.sleep(_POLL_S)
    return time.monotonic() - began < grace_s


def _signals(process: Process, has_listeners: bool, *, late: bool) -> list[signal.Signals]:
    if process.listens:
        first = signal.SIGTERM if process.hears_term else signal.SIGINT
        return [first, signal.SIGINT] if late and process.hears_int and process.hears_term else [first]
    if has_listeners:
        # The runner's own shell then waits for the listener and leaves, instead of beginning its next command.
        return [signal.SIGINT] if process.name in _SHELLS and process.hears_int else []
    if process.name in _SHELLS and process.hears_int:
        # Perhaps a script with a trap of its own for SIGINT: SIGTERM would end it before the trap.
        return [signal.SIGINT, signal.SIGTERM] if late else [signal.SIGINT]
    return [signal.SIGTERM]


def _inspect(folder: Path) -> Process | None:
    fields = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    if fields["State"].startswith("Z"):
        return None
    caught = int(fields["SigCgt"], 16)
    return Process(
        pid=int(folder.name),
        name=fields["Name"],
        hears_int=bool(caught >> (signal.SIGINT - 1) & 1),
        hears_term=bool(caught >> (signal.SIGTERM - 1) & 1),
    )


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
