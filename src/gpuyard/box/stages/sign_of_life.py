"""The runner's sign of life: a small file beside the settings that says when the runner was last seen, and where.

It also keeps where the present attempt began, which a remaining time is reckoned from (:mod:`.expected`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuyard.box.stages.expected import Begun, measure
from gpuyard.box.stages.spec import BoxSpec, Stage
from gpuyard.files import write_whole
from gpuyard.formats.journal import Position
from gpuyard.formats.manifest import timestamp

FILE = "sign-of-life.json"
EVERY_S = 10.0
LATE_S = 60.0
"""A runner that holds its lock and has given no sign for so long hangs, or its machine does."""
_LINES = "lines-counted.json"


class Sign:
    """Writes the file, at most every :data:`EVERY_S` seconds, and never raises: a full disk must not end a run."""

    def __init__(self, spec: BoxSpec) -> None:
        self._spec = spec
        self._next = 0.0
        self._begun: dict[str, Any] = {}

    def begin(self, place: Position, attempt: int, stage: Stage, log: Path, *, resumed: bool) -> None:
        """Say that an attempt begins, and keep what was done before it."""
        size, before = 0, None
        with contextlib.suppress(OSError):
            size = log.stat().st_size
        if stage.progress is not None:
            with contextlib.suppress(OSError):
                before = stage.progress.in_files(self._spec.root, place[0], self._spec.folder / _LINES)
        self._begun = {"attempt": attempt, **asdict(Begun(time.time(), size, before, resumed))}
        self._begun["began"] = self._begun.pop("time")
        self._next = 0.0
        self.give(place, "running")

    def give(self, place: Position, doing: str) -> None:
        """Say that the runner lives, and what it does."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        record = {
            "time": timestamp(),
            "pid": os.getpid(),
            "iteration": place[0],
            "stage": place[1],
            "doing": doing,
            **self._begun,
        }
        with contextlib.suppress(OSError):
            write_whole(self._spec.folder / FILE, json.dumps(record), mode=0o644)


def last(spec: BoxSpec) -> dict[str, Any] | None:
    """Return the last sign, with ``age_s``, the seconds since then; ``None`` where there was none."""
    file = spec.folder / FILE
    try:
        record = json.loads(file.read_bytes())
        return {**record, "age_s": round(max(0.0, time.time() - file.stat().st_mtime), 1)}
    except (OSError, ValueError, TypeError):
        return None


def shown(spec: BoxSpec) -> dict[str, Any] | None:
    """Return what a status says of the last sign: ``time``, ``age_s``, ``doing``."""
    record = last(spec)
    return None if record is None else {name: record.get(name) for name in ("time", "age_s", "doing")}


def progress(spec: BoxSpec, place: Position) -> dict[str, Any] | None:
    """Return how far the stage at ``place`` is, see :func:`.expected.measure`; ``None`` where nothing says so."""
    expected = spec.stage(place[1]).progress
    sign = last(spec)
    if expected is None or sign is None or (sign.get("iteration"), sign.get("stage")) != place:
        return None
    try:
        begun = Begun(float(sign["began"]), int(sign["log_from"]), sign["done_before"], bool(sign["resumed"]))
    except (KeyError, TypeError, ValueError):
        return None
    found = measure(
        expected,
        begun,
        log=spec.log(*place),
        root=spec.root,
        iteration=place[0],
        memory=spec.folder / _LINES,
    )
    return None if found is None else {"iteration": place[0], "stage": place[1], **found}
