"""How much of the network and the processors publishing and restoring may take."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

BACKGROUND_NICE = 10
"""A tenth of what a program gets that competes for the same core. Linux derives the priority of disk access from it."""
_MB = 1_000_000


class Manners:
    """A cap on bytes per second that all threads share, and whether they make way for other programs."""

    def __init__(self, bandwidth_mb_s: float = 0.0, *, background: bool = False) -> None:
        """``bandwidth_mb_s`` is in megabytes a second, 0 for no cap. ``background`` makes way for other programs."""
        self._rate = bandwidth_mb_s * _MB
        self._background = background
        self._hurried = threading.Event()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    @property
    def limits(self) -> bool:
        """Whether there is a cap."""
        return self._rate > 0 and not self._hurried.is_set()

    def take(self, size: int) -> None:
        """Wait until ``size`` more bytes may be on their way, so that the cap holds on the average."""
        if not self.limits:
            return
        with self._lock:
            now = time.monotonic()
            begins = max(now, self._free_at)
            self._free_at = begins + size / self._rate
        self._hurried.wait(begins - now)

    def make_way(self) -> None:
        """Let this thread, and those that it starts, make way for other programs where that is wanted."""
        if self._background and not self._hurried.is_set():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)

    def hurry(self) -> None:
        """Go on without a cap and at the process's own priority, where the kernel lets this user raise it."""
        self._hurried.set()
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        with contextlib.suppress(OSError):
            for thread in (int(entry.name) for entry in Path("/proc/self/task").iterdir()):
                with contextlib.suppress(OSError):
                    if os.getpriority(os.PRIO_PROCESS, thread) == BACKGROUND_NICE:
                        os.setpriority(os.PRIO_PROCESS, thread, usual)
