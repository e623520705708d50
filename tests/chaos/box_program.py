"""``box_program.py AHEAD N FOLDER MODULE …``: run a module as a program with another clock, or one that kills itself.

Its clock is AHEAD seconds ahead (a stand-in: what Python says of the time, while the kernel has its own). It kills
itself with SIGKILL exactly before its N-th write, rename, link or removal below FOLDER, what a random moment would hit
once in ten thousand times; never with N = 0. A relative name, as code has it that works with open folders, counts as
below FOLDER.
"""

from __future__ import annotations

import datetime
import os
import runpy
import signal
import sys
import threading
import time

_CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(number: int, folder: str) -> None:
    """Kill this process at its ``number``-th change below ``folder``."""
    left, lock = [number], threading.Lock()

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in _CHANGES:
            return
        path = arguments[0]
        if isinstance(path, (str, bytes)):
            name = os.fsdecode(path)
            if not name.startswith("/") or name.startswith(folder):
                with lock:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def set_clock(ahead_s: int) -> None:
    """Have every module that is imported from now on see a clock that is so many seconds ahead."""
    now, now_ns, ahead = time.time, time.time_ns, datetime.timedelta(seconds=ahead_s)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Later:
            return super().now(tz) + ahead

        @classmethod
        def utcnow(cls) -> Later:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: now() + ahead_s
    time.time_ns = lambda: now_ns() + ahead_s * 1_000_000_000
    datetime.datetime = Later  # type: ignore[misc]


if __name__ == "__main__":
    clock, count, below, module, *rest = sys.argv[1:]
    if int(clock):
        set_clock(int(clock))
    if int(count):
        watch(int(count), below)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
