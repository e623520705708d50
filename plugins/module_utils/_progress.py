# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far long work on a box is, in a file that the controller looks into: standard library only, Python 3.10 or newer.

Private to this collection. The action plugin ``watched`` shows it in the play.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = Path("/opt/gpuyard/progress.json")
_EVERY_S = 1.0  # shorter work writes nothing
_SHARE = 20  # of the time at most one part in so many goes into counting
_SPAN_S = 10.0  # the speed is that of the last seconds
_MOST_LOG_BYTES = 4096
_MOST_LINE = 120
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


class Progress:
    """One piece of work: whoever does it calls :meth:`tick` as often as it likes, from any thread.

    ``what`` names it. ``log`` is the file that the program writes, whose last line is shown. ``count`` returns the
    bytes that are done, ``total`` is how many there will be, 0 where that is not known. None of it ever fails.
    """

    def __init__(
        self, what: str, *, log: Path | None = None, count: Callable[[], int] | None = None, total: int = 0
    ) -> None:
        self.what, self.log, self.count, self.total = what, log, count, total
        self._began = time.monotonic()
        self._next = self._began + _EVERY_S
        self._samples: deque[tuple[float, int]] = deque()
        self._is_shown = False
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown:
            with suppress(OSError):
                FILE.unlink()

    def tick(self) -> None:
        """Write down how far the work is, once a second; less often where it takes long to count."""
        now = time.monotonic()
        if now < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            with suppress(OSError):
                _write(self._record(now))
                self._is_shown = True
            took_s = time.monotonic() - now
            self._next = now + max(_EVERY_S, _SHARE * took_s)
        finally:
            self._lock.release()

    def _record(self, now: float) -> dict[str, Any]:
        record: dict[str, Any] = {"what": self.what, "seconds": round(now - self._began, 1), "at": time.time()}
        if self.log:
            record["line"] = last_line(self.log)
        if self.count:
            self._samples.append((now, self.count()))
            while now - self._samples[0][0] > _SPAN_S:
                self._samples.popleft()
            (first, before), (last, done) = self._samples[0], self._samples[-1]
            speed = (done - before) / (last - first) if last > first else 0.0
            record |= {"done": done, "total": self.total, "bytes_per_s": round(max(speed, 0.0))}
        return record


def last_line(log: Path) -> str:
    """Return the last line of what a program has written so far, as a terminal would show it; "" for none.

    Colours, and names and passwords in addresses, are left out.
    """
    with log.open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - _MOST_LOG_BYTES, 0))
        text = stream.read().decode(errors="replace")
    for line in reversed(re.split(r"[\r\n]", text)):
        plain = _PASSWORD.sub("", _STYLE.sub("", line))
        if shown := "".join(letter for letter in plain if letter.isprintable()).strip():
            return shown[:_MOST_LINE]
    return ""


def _write(record: dict[str, Any]) -> None:
    """Write the file in one step; only its owner may read what programs say."""
    scratch = FILE.with_suffix(".part")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(record, stream)
    scratch.replace(FILE)
