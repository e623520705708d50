"""How far a stage is: a bar and an honest remaining time, from what its log says or from files that grow.

Nothing is measured by the runner but where an attempt began. Whoever asks (``status``, ``progress --follow``, a
window) measures at that moment, in a process of its own: a pattern that takes for ever holds up no stage.
Of a log only the end is read, of files whose lines count only what was added.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuyard.files import write_whole

_LOG_BYTES = 256 * 1024
_LINE_CHARACTERS = 500  # a longer line is no progress message, and a pattern might take long over it
_LEAST_S = 10.0
_LEAST_SHARE = 0.01
_BAR = 24
_CHUNK = 1 << 20
UNITS = ("total_bytes", "total_lines", "total_files")


@dataclass(frozen=True)
class Expected:
    """What says how far a stage is: ``pattern`` over its log, or ``file`` below the persistent root.

    The pattern's group ``done`` (or its only group) is how much is done, ``total`` of how much. ``file`` is a path or
    pattern of files, whose ``unit`` (of :data:`UNITS`) counts. ``total`` may be missing only where the pattern has it.
    """

    pattern: str | None = None
    file: str | None = None
    unit: str | None = None
    total: float | None = None

    @classmethod
    def from_workload(cls, item: Mapping[str, Any] | None) -> Expected | None:
        """Return what a stage's ``progress`` says, ``None`` where it says nothing."""
        if not item:
            return None
        unit = next((name for name in UNITS if item.get(name) is not None), None)
        total = item.get(unit or "total")
        return cls(item.get("pattern") or None, item.get("file") or None, unit, None if total is None else float(total))

    def in_log(self, log: Path, begin: int, *, first: bool = False) -> tuple[float, float | None] | None:
        """Return what is done and the total, as the log says it last since byte ``begin`` (or ``first`` of all)."""
        if self.pattern is None:
            return None
        pattern = re.compile(self.pattern)
        with contextlib.suppress(OSError):
            with log.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(begin if first else max(begin, size - _LOG_BYTES))
                text = stream.read(_LOG_BYTES).decode(errors="replace")
            # A bar rewrites its line with carriage returns.
            lines = re.split(r"[\r\n]+", text)
            for line in lines if first else reversed(lines):
                if len(line) <= _LINE_CHARACTERS and (found := pattern.search(line)):
                    with contextlib.suppress(ValueError, TypeError):
                        groups = found.groupdict()
                        done = _number(groups["done"] if "done" in groups else found[1])
                        return done, _number(groups["total"]) if groups.get("total") else self.total
        return None

    def in_files(self, root: Path, iteration: int, memory: Path | None = None) -> float | None:
        """Return how many bytes, lines or files there are; ``memory`` is a file that remembers lines counted before."""
        if self.file is None:
            return None
        pattern = self.file.replace("${ITERATION}", str(iteration)).replace("$ITERATION", str(iteration))
        names = glob.iglob(pattern, root_dir=root, recursive=True)  # noqa: PTH207
        files = [path for path in (root / name for name in names) if path.is_file()]
        if self.unit == "total_files":
            return float(len(files))
        if self.unit == "total_lines":
            return float(_lines(files, memory))
        sizes = 0
        for path in files:
            with contextlib.suppress(OSError):
                sizes += path.stat().st_size
        return float(sizes)


@dataclass(frozen=True)
class Begun:
    """Where an attempt began: ``time`` (seconds since 1970), ``log_from`` (bytes of its log), ``done_before``.

    ``resumed`` tells whether it goes on where an earlier attempt was: then the first number in the log is what was done
    before.
    """

    time: float
    log_from: int = 0
    done_before: float | None = None
    resumed: bool = False


def measure(
    expected: Expected,
    begun: Begun,
    *,
    log: Path,
    root: Path,
    iteration: int,
    memory: Path | None = None,
    now: float | None = None,
) -> dict[str, Any] | None:
    """Return how far the stage is, ``None`` while nothing says so.

    The object has ``done``, ``total``, ``percent`` (0 to 100), ``unit`` (``bytes``, ``lines``, ``files`` or empty) and
    ``remaining_s``: seconds, from the rate since this attempt began; ``None`` until it has done one percent of the
    whole and taken ten seconds.
    """
    before = begun.done_before
    if expected.pattern is not None:
        found = expected.in_log(log, begun.log_from)
        if found is None:
            return None
        done, total = found
        if before is None:
            first = expected.in_log(log, begun.log_from, first=True) if begun.resumed else None
            before = first[0] if first else 0.0
    else:
        counted = expected.in_files(root, iteration, memory)
        if counted is None:
            return None
        done, total = counted, expected.total
    if total is None or total <= 0:
        return None
    unit = (expected.unit or "").removeprefix("total_")
    elapsed = (time.time() if now is None else now) - begun.time
    gained = done - (before or 0.0)
    remaining = None
    if done >= total:
        remaining = 0.0
    elif elapsed >= _LEAST_S and gained >= _LEAST_SHARE * total:
        remaining = round((total - done) * elapsed / gained, 1)
    return {
        "done": done,
        "total": total,
        "percent": round(min(100.0, max(0.0, 100 * done / total)), 1),
        "unit": unit,
        "remaining_s": remaining,
    }


def bar(progress: Mapping[str, Any]) -> str:
    """Return what :func:`measure` found as a line: ``[######------] 50 % (500 of 1000 lines), about 12 min left``."""
    filled = round(_BAR * float(progress["percent"]) / 100)
    unit = str(progress.get("unit") or "")
    done, total = (_amount(float(progress[name]), unit) for name in ("done", "total"))
    counted = f"{done} of {total}" + (f" {unit}" if unit in ("lines", "files") else "")
    remaining = progress.get("remaining_s")
    left = "" if remaining is None else f", about {_duration(float(remaining))} left"
    return f"[{'#' * filled}{'-' * (_BAR - filled)}] {float(progress['percent']):.0f} % ({counted}){left}"


def _amount(number: float, unit: str) -> str:
    if unit == "bytes":
        return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
    return f"{number:.0f}" if number == int(number) else f"{number:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("_", ""))


def _lines(files: list[Path], memory: Path | None) -> int:
    """Return how many lines the files have. Of one that has grown only what was added is read."""
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_bytes()) if memory else {}
    counted: dict[str, list[int]] = {}
    for path in files:
        with contextlib.suppress(OSError, ValueError, TypeError):
            with path.open("rb") as stream:
                inode, size = os.fstat(stream.fileno()).st_ino, os.fstat(stream.fileno()).st_size
                place, lines = 0, 0
                if (last := known.get(str(path))) and last[0] == inode and last[1] <= size:
                    place, lines = last[1], last[2]
                stream.seek(place)
                while chunk := stream.read(_CHUNK):
                    place += len(chunk)
                    lines += chunk.count(b"\n")
            counted[str(path)] = [inode, place, lines]
    if memory and counted != known:
        with contextlib.suppress(OSError):
            write_whole(memory, json.dumps(counted), mode=0o644)
    return sum(entry[2] for entry in counted.values())
