"""The journal: what ran, when, and how it ended. Append-only JSON lines, each on disk before anything builds on it.

Events: ``run-start``, ``stage-start``, ``stage-end``, ``resume``, ``rewind``, ``published``, ``run-end``. A line that
a crash cut off is passed over by the reader, and the next writer begins a new line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard.checkpoints.manifest import timestamp

Position = tuple[int, str]
"""An iteration's number, from 0, and a stage's name."""
Event = Mapping[str, Any]
# How json.dumps writes the kind of the commonest event.
_PUBLISHED = b'"event": "published"'


class Journal:
    """The journal file of one run. Several processes may append to it: a line is one ``write``."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event, wait until it is on disk, and return it as written."""
        record = {"time": timestamp(), "event": event, **fields}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, (b"\n" if cut_off else b"") + json.dumps(record).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        return record

    def read(self) -> list[Event]:
        """Return all events, oldest first."""
        return parse(self._bytes())

    def progress(self, order: Sequence[Position]) -> Progress:
        """Return where the run stands. Of the checkpoints only the last is read: they are most of a long journal."""
        lines = self._bytes().split(b"\n")
        published = [number for number, line in enumerate(lines) if _PUBLISHED in line]
        for number in published[:-1]:
            lines[number] = b""
        return fold(parse(b"\n".join(lines)), order)

    def _bytes(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""


def parse(data: bytes) -> list[Event]:
    """Return the events of a journal's bytes; a line that is not a whole event is passed over."""
    events: list[Event] = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            events.append(record)
    return events


@dataclass
class Attempts:
    """What the journal says of one stage of one iteration. ``outcome`` is ``None`` when no end is recorded."""

    iteration: int
    stage: str
    attempts: int = 0
    outcome: str | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    token: str | None = None

    @property
    def cut_short(self) -> bool:
        """True when there was an attempt that did not get to its end."""
        return self.attempts > 0 and self.outcome not in ("done", "skipped")


@dataclass
class Progress:
    """The journal, folded: where the run stands.

    ``outcome`` is how the last run ended: ``done``, ``failed``, ``interrupted``, or ``None`` when it has not ended (or
    has no recorded end), and ``reason`` says why, where it is not a stage's own exit code. ``begun`` tells whether
    there was a run at all. ``running`` is the stage that has begun and has no recorded end, ``failed`` the one whose
    failure ended the last run.
    """

    order: Sequence[Position]
    stages: dict[Position, Attempts] = field(default_factory=dict)
    begun: bool = False
    outcome: str | None = None
    reason: str | None = None
    running: Position | None = None
    failed: Position | None = None
    last_published: dict[str, Any] | None = None

    @property
    def done(self) -> list[Position]:
        """The stages that need not run (again), in order."""
        return [place for place in self.order if self.at(place).outcome in ("done", "skipped")]

    @property
    def pending(self) -> list[Position]:
        """The stages still to run, in order."""
        return [place for place in self.order if self.at(place).outcome not in ("done", "skipped")]

    @property
    def finished(self) -> bool:
        """True when nothing is left to run."""
        return bool(self.order) and not self.pending

    @property
    def current(self) -> Position | None:
        """The stage that runs, was cut off, failed, or comes next; ``None`` when nothing is left."""
        return next(iter(self.pending), None)

    def at(self, place: Position) -> Attempts:
        """Return what is known of one stage."""
        return self.stages.get(place) or Attempts(*place)


def fold(events: Iterable[Event], order: Sequence[Position]) -> Progress:
    """Fold the journal's events into a :class:`Progress` over the stages of ``order``."""
    progress = Progress(order)
    for event in events:
        kind = event["event"]
        place = (event.get("iteration", 0), event.get("stage", ""))
        if kind == "run-start":
            progress.begun, progress.outcome, progress.reason = True, None, None
            progress.running = progress.failed = None
        elif kind == "run-end":
            progress.outcome, progress.reason = event.get("outcome"), event.get("reason")
        elif kind == "stage-start":
            progress.begun, progress.running, progress.failed = True, place, None
            entry = progress.stages.setdefault(place, Attempts(*place))
            entry.attempts += 1
            entry.started, entry.token = event.get("time"), event.get("token")
            entry.ended = entry.seconds = entry.outcome = entry.exit_code = None
        elif kind == "stage-end":
            entry = progress.stages.setdefault(place, Attempts(*place))
            entry.outcome, entry.ended = event.get("outcome"), event.get("time")
            entry.seconds, entry.exit_code = event.get("seconds"), event.get("exit_code")
            progress.running = None
            progress.failed = place if entry.outcome == "failed" else None
        elif kind == "rewind":
            _rewind(progress, place, only=bool(event.get("only")))
        elif kind == "published":
            progress.last_published = {name: value for name, value in event.items() if name != "event"}
    return progress


def _rewind(progress: Progress, place: Position, *, only: bool) -> None:
    """Forget that the stage at ``place`` is done (with all after it, and pass over all before it, unless ``only``)."""
    if place not in progress.order:
        return
    here = list(progress.order).index(place)
    for number, other in enumerate(progress.order):
        if number == here or (number > here and not only):
            progress.stages.pop(other, None)
        elif number < here and not only and progress.at(other).outcome != "done":
            progress.stages[other] = Attempts(*other, outcome="skipped")


def summary(data: bytes, order: Sequence[Position]) -> dict[str, Any]:
    """Return the ``progress`` of a checkpoint's manifest from the journal's bytes."""
    progress = fold(parse(data), order)
    current = progress.current
    return {
        "iteration": current[0] if current else None,
        "stage": current[1] if current else None,
        "done": [list(place) for place in progress.done],
        "finished": progress.finished,
        "outcome": "done" if progress.finished else progress.outcome,
    }
