"""The journal: what ran, when, and how it ended. Append-only JSON lines, each on disk before anything builds on it.

Events: ``run-start``, ``stage-start``, ``stage-end``, ``resume``, ``rewind``, ``published``, ``run-end``. A line that
a crash cut off is passed over by the reader, and the next writer begins a new line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import TIME_FORMAT, timestamp
from gpuyard.formats.versions import mark, why_too_new

Position = tuple[int, str]
"""An iteration's number, from 0, and a stage's name."""
Event = Mapping[str, Any]
VERSION = 1
BEGIN = "run-start"
"""The event with which each runner begins; it says of which version the lines are."""
# How json.dumps writes the kind of the commonest event.
_PUBLISHED = b'"event": "published"'


RESERVE_BYTES = 256 * 1024
NEARLY_FULL_BYTES = 1024 * 1024
"""A disk with less room than this counts as full: what a program could not write was hardly smaller."""
_GIVEN_UP_AT_ONCE = 32 * 1024


def is_full(error: OSError) -> bool:
    """Tell whether an error says that the disk (or the user's share of it) is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def space_free(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Journal:
    """The journal file of one run. Several processes may append to it: a line is one ``write``.

    It keeps a reserve beside it, a file of :data:`RESERVE_BYTES` that no checkpoint holds. On a full disk that is given
    up piece by piece for what has to be written, and made anew when there is room: a full disk is what one most wants
    to read of afterwards.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reserve = file.parent / "tmp" / "reserve"

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event, wait until it is on disk, and return it as written. ``OSError`` when that cannot be done."""
        begins = mark(VERSION) if event == BEGIN else {}
        record = {"time": timestamp(), "event": event, **begins, **fields}
        line = json.dumps(record).encode() + b"\n"
        while True:
            try:
                self._write(line)
                break
            except OSError as error:
                if not is_full(error) or not self._give_up_some():
                    raise
        self._keep_reserve()
        return record

    def _write(self, line: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = (b"\n" if cut_off else b"") + line
            if os.write(handle, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            os.fsync(handle)
        finally:
            os.close(handle)

    def _give_up_some(self) -> bool:
        # Not all at once: whoever has filled the disk may be quicker to take what becomes free.
        try:
            size = self.reserve.stat().st_size
            if size:
                os.truncate(self.reserve, max(0, size - _GIVEN_UP_AT_ONCE))
        except OSError:
            return False
        return size > 0

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):
            if self.reserve.exists() and self.reserve.stat().st_size >= RESERVE_BYTES:
                return
            if space_free(self.file.parent) < NEARLY_FULL_BYTES:
                return
            self.reserve.parent.mkdir(parents=True, exist_ok=True)
            with self.reserve.open("ab") as stream:
                os.posix_fallocate(stream.fileno(), 0, RESERVE_BYTES)

    def read(self) -> list[Event]:
        """Return all events, oldest first."""
        return parse(self._bytes())

    def progress(self, order: Sequence[Position]) -> Progress:
        """Return where the run stands. Of the checkpoints only the last is read: they are most of a long journal."""
        lines = self._bytes().split(b"\n")
        published = [number for number, line in enumerate(lines) if _PUBLISHED in line]
        while published and not parse(lines[published[-1]]):
            published.pop()  # a crash cut it off
        for number in published[:-1]:
            lines[number] = b""
        return fold(parse(b"\n".join(lines)), order)

    def _bytes(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""


def parse(data: bytes) -> list[Event]:
    """Return the events of a journal's bytes; a line that is not a whole event is passed over.

    Raises :class:`CheckpointError` when a newer gpuyard wrote it: what is passed over then might have been done.
    """
    events: list[Event] = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            with contextlib.suppress(ValueError):  # a version that is none says nothing
                if record["event"] == BEGIN and (refusal := why_too_new(record, VERSION, "The journal of this run")):
                    raise CheckpointError(refusal)
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
    reason: str | None = None
    """Why it was ended, where it did not end by itself."""
    token: str | None = None
    began_ns: int | None = None
    """When its first attempt began, or the newest file before was written (ns since 1970): what it saved is newer."""

    @property
    def cut_short(self) -> bool:
        """True when there was an attempt that did not get to its end."""
        return self.attempts > 0 and self.outcome not in ("done", "skipped")


@dataclass
class Progress:
    """The journal, folded: where the run stands.

    ``outcome`` is how the last run ended: ``done``, ``failed``, ``interrupted``, ``waiting`` (for a box of another
    pool), or ``None`` when it has not ended (or has no recorded end), and ``reason`` says why, where it is not a
    stage's own exit code. ``begun`` tells whether there was a run at all. ``running`` is the stage that has begun and
    has no recorded end, ``failed`` the one whose failure ended the last run.
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
        if kind == BEGIN:
            progress.begun, progress.outcome, progress.reason = True, None, None
            progress.running = progress.failed = None
        elif kind == "run-end":
            progress.begun = True
            progress.outcome, progress.reason = event.get("outcome"), event.get("reason")
        elif kind == "stage-start":
            progress.begun, progress.running, progress.failed = True, place, None
            entry = progress.stages.setdefault(place, Attempts(*place))
            entry.attempts += 1
            entry.began_ns = entry.began_ns or _began_ns(event)
            entry.started, entry.token = event.get("time"), event.get("token")
            entry.ended = entry.seconds = entry.outcome = entry.exit_code = entry.reason = None
        elif kind == "stage-end":
            entry = progress.stages.setdefault(place, Attempts(*place))
            entry.outcome, entry.ended = event.get("outcome"), event.get("time")
            entry.seconds, entry.exit_code = event.get("seconds"), event.get("exit_code")
            entry.reason = event.get("reason")
            progress.running = None
            progress.failed = place if entry.outcome == "failed" else None
        elif kind == "rewind":
            _rewind(progress, place, only=bool(event.get("only")), keeps=event.get("keeps") or ())
        elif kind == "published":
            progress.last_published = {name: value for name, value in event.items() if name != "event"}
    return progress


def _began_ns(event: Event) -> int | None:
    """Return when a stage began; where an older journal has only the second, the end of that second."""
    if isinstance(event.get("began_ns"), int):
        return int(event["began_ns"])
    try:
        second = datetime.strptime(str(event.get("time")), TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return (int(second.timestamp()) + 1) * 1_000_000_000


def _rewind(progress: Progress, place: Position, *, only: bool, keeps: Collection[str]) -> None:
    """Forget that the stage at ``place`` is done (with all after it, and pass over all before it, unless ``only``).

    The stages of ``keeps``, which run once in a run, stay as they are: done, or still to run.
    """
    if place not in progress.order:
        return
    here = list(progress.order).index(place)
    for number, other in enumerate(progress.order):
        if number != here and other[1] in keeps:
            continue
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
