"""``killed_at.py N FOLDER MODULE …``: run a module as a program that kills itself before its N-th change below FOLDER.

SIGKILL, at exactly one write, rename, link or removal: what a random moment would hit once in ten thousand times.
A relative name, as code has it that works with open folders, counts as below FOLDER.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

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


if __name__ == "__main__":
    count, below, module, *rest = sys.argv[1:]
    watch(int(count), below)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
