"""Holds the lock on a box for as long as somebody brings it into shape.

The controller sends this file's source over SSH as ``python3 -c``, before anything of gpuyard is on the box: Python
3.10, standard library, no import of gpuyard. The kernel holds the lock (``flock``), so it ends with this process. This
process ends with the connection: its standard input is closed then, or has been silent for ``silence_s`` seconds.

Two files lie in the folder. ``converge.lock`` is held by one command at a time and says whose it is. ``modules.lock``
is held, shared, by each of gpuyard's modules while it works: where a controller was killed, its last module may still
be at work on the box when the first lock is free already.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import IO

LOCK = "converge.lock"
MODULES_LOCK = "modules.lock"
_POLL_S = 0.3
_TELL_S = 10.0


def hold(folder: str, owner: str, silence_s: float) -> None:
    """Take the lock in ``folder``, say so, and keep it until standard input ends or is silent for too long.

    ``owner`` is a text for whoever waits meanwhile. Answers are JSON lines: ``{"state": "waiting", "for": <owner, ""
    for a module of a killed command>}``, then ``{"state": "held"}``.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOCK).open("a+", encoding="utf-8") as lock:
        if not _take(lock, names_owner=True):
            return
        with (place / MODULES_LOCK).open("a+", encoding="utf-8") as modules:
            if not _take(modules, names_owner=False):
                return
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
        _answer({"state": "held"})
        while _is_there(silence_s):
            pass
        lock.truncate(0)


def _take(file: IO[str], *, names_owner: bool) -> bool:
    """Lock ``file``, and tell now and then for whom this waits; return ``False`` when the caller has left."""
    told_at = -_TELL_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                file.seek(0)
                _answer({"state": "waiting", "for": file.read() if names_owner else ""})
        # Standard input is readable when a sign of life has come, and when it has ended.
        if select.select([0], [], [], _POLL_S)[0] and not os.read(0, 64):
            return False


def _is_there(silence_s: float) -> bool:
    """Wait for the caller's next sign of life; return ``False`` when it has left or was silent for too long."""
    readable = select.select([0], [], [], silence_s)[0]
    return bool(readable and os.read(0, 64))


def _answer(record: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    hold(sys.argv[1], sys.argv[2], float(sys.argv[3]))
