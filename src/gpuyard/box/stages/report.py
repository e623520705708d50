"""What people and the controller see of a run: its state, its logs, its progress as it happens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuyard.box import machine
from gpuyard.box.monitor.alerts import open_alerts
from gpuyard.box.stages import findings, session, sign_of_life
from gpuyard.box.stages.runner import is_running, journal_of, progress_of
from gpuyard.box.stages.spec import BoxSpec, Stage
from gpuyard.errors import UsageError
from gpuyard.formats.journal import Progress

STATES = ("not-started", "running", "idle", "waiting", "interrupted", "failed", "finished")
_POLL_S = 0.3
_MEASURED_EVERY_S = 5.0
_TOLD_EVERY_S = 15.0
# More of a log's end than this (bytes) is not read for its last lines: a progress bar may be one endless line.
_MOST_READ = 4 * 1024 * 1024


def state_of(progress: Progress, *, alive: bool) -> str:
    """Return one of :data:`STATES`. A run whose runner is gone without a word is ``interrupted``.

    ``idle``: nothing runs, and what was asked for (one stage only, say) is done, but stages are left. ``waiting``: a
    stage comes next that a box of another pool has to run.

    ``alive`` must have been looked at before the journal was read: a runner that ends in between would otherwise look
    as if it had been cut off.
    """
    if alive:
        return "running"
    if progress.finished:
        return "finished"
    if not progress.begun:
        return "not-started"
    return {"failed": "failed", "done": "idle", "waiting": "waiting"}.get(progress.outcome or "", "interrupted")


def _waits_for(spec: BoxSpec, progress: Progress, state: str) -> str | None:
    """Return the pool for whose box the run waits, ``None`` where it does not wait."""
    return spec.waits_for(progress.current[1]) if state == "waiting" and progress.current else None


def running_stage(spec: BoxSpec) -> Stage | None:
    """Return the stage that runs now, ``None`` when none does."""
    if not is_running(spec):
        return None
    place = progress_of(spec).running
    return next((stage for stage in spec.stages if place and stage.name == place[1]), None)


def status(spec: BoxSpec) -> dict[str, Any]:
    """Return where the run stands, as one JSON-able object.

    ``state`` is one of :data:`STATES`. ``failure`` says of a failed run which stage of which iteration failed, with its
    ``exit_code``, the ``reason`` as a sentence, and the ``last_line`` that the stage itself printed; else it is
    ``None``. ``waits_for`` names the pool for whose box a run waits. ``space_free_gb`` is what the disk of the
    persistent root has left (10^9 bytes). ``links`` are the addresses at which experiment trackers show the run, by the
    trackers' names. ``alerts`` are those that have begun and not ended, each with ``alert``, ``text`` and ``time``.
    ``progress`` says how far the stage is that runs (:func:`.expected.measure`), ``None`` where nothing says so.
    ``sign_of_life`` is the runner's last (``time``, ``age_s``, ``doing``) while a stage runs, else ``None``.
    """
    alive = is_running(spec)
    progress = progress_of(spec)
    state = state_of(progress, alive=alive)
    current = (progress.running if alive else None) or progress.current
    latest = newest_log(spec)
    lines = last_lines(latest, 1) if latest else []
    disk = machine.disk(spec.root)
    return {
        "run": spec.run,
        "node": spec.node,
        "workload": spec.workload,
        "state": state,
        "iteration": current[0] if current else None,
        "iterations": spec.iterations,
        "stage": current[1] if current else None,
        "stages": stage_table(progress),
        "stages_done": len(progress.done),
        "stages_total": len(progress.order),
        "last_line": lines[-1] if lines else "",
        "last_published": progress.last_published,
        "failure": _failure(spec, progress) if state == "failed" else None,
        "waits_for": _waits_for(spec, progress, state),
        "progress": sign_of_life.progress(spec, progress.running) if alive and progress.running else None,
        "sign_of_life": sign_of_life.shown(spec) if alive and progress.running else None,
        "space_free_gb": disk.free_gb if disk else None,
        "links": links(spec),
        "alerts": list(open_alerts(spec.root).values()),
        "tmux": session.exists(spec),
    }


def _failure(spec: BoxSpec, progress: Progress) -> dict[str, Any]:
    place = progress.failed or progress.running
    entry = progress.at(place) if place else None
    reason = progress.reason
    if reason is None and entry is not None:
        reason = f"{entry.reason or f'{entry.stage} ended with exit code {entry.exit_code}'}."
    own = [line for line in last_lines(spec.log(*place), 20) if line and not line.startswith("## ")] if place else []
    return {
        "stage": entry.stage if entry else None,
        "iteration": entry.iteration if entry else None,
        "exit_code": entry.exit_code if entry else None,
        "reason": reason or "no reason is recorded.",
        "last_line": own[-1] if own else "",
    }


def stage_table(progress: Progress) -> list[dict[str, Any]]:
    """Return one row for every stage that has begun or was passed over. ``seconds`` are those of its last attempt."""
    rows = []
    for place in progress.order:
        entry = progress.at(place)
        if entry.attempts or entry.outcome:
            rows.append(
                {
                    "iteration": entry.iteration,
                    "stage": entry.stage,
                    "outcome": entry.outcome,
                    "started": entry.started,
                    "ended": entry.ended,
                    "seconds": entry.seconds,
                    "attempts": entry.attempts,
                    "exit_code": entry.exit_code,
                    "reason": entry.reason,
                }
            )
    return rows


# --- logs ------------------------------------------------------------------------------------------------------------


def newest_log(spec: BoxSpec, stage: str | None = None) -> Path | None:
    """Return the log that was written to last (of ``stage``, when named), or ``None``."""
    if stage is not None:
        spec.stage(stage)
    return next(iter(_logs(spec, stage)), None)


def _logs(spec: BoxSpec, stage: str | None = None) -> list[Path]:
    """Return the logs (of ``stage``, when named), the one that was written to last first."""
    found: list[tuple[int, int, Path]] = []
    for place, (iteration, name) in enumerate(spec.order):
        file = spec.log(iteration, name)
        if stage in (None, name) and file.is_file():
            # The later stage comes first when two were written to within one tick of the clock.
            found.append((file.stat().st_mtime_ns, place, file))
    return [file for _, _, file in sorted(found, reverse=True)]


def find_log(spec: BoxSpec, stage: str | None, iteration: int | None) -> Path:
    """Return the log that was asked for, or raise :class:`UsageError` that says which there are."""
    if stage is not None and iteration is not None:
        spec.stage(stage)
        found: Path | None = spec.log(iteration, stage)
    else:
        found = newest_log(spec, stage)
    if found is None or not found.is_file():
        names = ", ".join(path.stem for path in sorted((spec.root / ".gpuyard" / "logs").glob("*.log"))) or "none"
        raise UsageError(f"{spec.run} has no log of {stage or 'any stage'} yet. Logs (iteration-stage): {names}.")
    return found


def last_lines(file: Path, count: int) -> list[str]:
    """Return the last ``count`` lines of a log, without reading a large one from its start."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            wanted = 4096
            while True:
                start = max(0, size - wanted)
                stream.seek(start)
                data = stream.read(size - start)
                if start == 0 or data.count(b"\n") > count or wanted >= _MOST_READ:
                    break
                wanted *= 4
    except FileNotFoundError:
        return []
    # A progress bar rewrites its line with carriage returns; only its last state is of interest.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in data.decode(errors="replace").split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    return lines[-count:] if count > 0 else []


def error_lines(file: Path, count: int) -> list[str]:
    """Return the last errors and warnings of a log, see :func:`gpuyard.box.stages.findings.last_errors`."""
    with file.open(errors="replace") as stream:
        return findings.last_errors(stream, count)


def links(spec: BoxSpec) -> dict[str, str]:
    """Return where experiment trackers show the run, as its logs say it, by the trackers' names."""
    return findings.links(_logs(spec))


def follow_log(spec: BoxSpec, stage: str | None, iteration: int | None, lines: int) -> Iterator[str]:
    """Yield a log's last ``lines`` lines and then what is added to it, until the run ends.

    Without a stage it goes on to the next stage's log when that begins.
    """
    file = find_log(spec, stage, iteration)
    position = file.stat().st_size
    yield from (f"{line}\n" for line in last_lines(file, lines))
    while True:
        # Looked at before reading: what a runner or a stage wrote before its end is then not missed.
        alive, newest = is_running(spec), newest_log(spec)
        with file.open("rb") as stream:
            stream.seek(position)
            added = stream.read()
        if added:
            position += len(added)
            yield added.decode(errors="replace")
        elif stage is None and newest is not None and newest != file:
            file, position = newest, 0
        elif not alive:
            return
        else:
            time.sleep(_POLL_S)


# --- progress --------------------------------------------------------------------------------------------------------


def progress_events(spec: BoxSpec, *, since: int = 0, follow: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what happened after the journal's first ``since`` events, then (``follow``) what happens, until the run
    ends.

    Journal events carry ``n``, their number from 1, so that a reader whose connection was cut off can go on from
    there. In between come ``{"event": "output", …, "line": …}`` with the newest line of the stage that runs, at most
    one a second, and ``{"event": "progress", …}`` with how far it is (:func:`.expected.measure`), when that is another
    whole percent, at most every 15 s. The last is ``{"event": "end", "state": …}``.
    """
    shown = since
    last_output = ("", "")
    last_time = 0.0
    last_percent: tuple[Any, ...] = ()
    measured_at = told_at = -_TOLD_EVERY_S
    while True:
        # Look whether it lives before reading: what a runner wrote before it died is then not missed.
        alive = is_running(spec)
        events = journal_of(spec).read()
        for number, event in enumerate(events[shown:], start=shown + 1):
            yield {"n": number, **{name: value for name, value in event.items() if name != "token"}}
        shown = max(shown, len(events))
        progress = progress_of(spec)
        current = progress.running or progress.current
        if current and time.monotonic() - last_time >= 1:
            iteration, stage = current
            file = spec.log(iteration, stage)
            newest = (str(file), next(iter(last_lines(file, 1)), ""))
            if newest[1] and newest != last_output and not newest[1].startswith("## "):
                last_output, last_time = newest, time.monotonic()
                yield {"event": "output", "iteration": iteration, "stage": stage, "line": newest[1]}
        if alive and progress.running and time.monotonic() >= max(measured_at + _MEASURED_EVERY_S, told_at):
            measured_at = time.monotonic()
            found = sign_of_life.progress(spec, progress.running)
            if found and (percent := (progress.running, int(found["percent"]))) != last_percent:
                last_percent, told_at = percent, measured_at + _TOLD_EVERY_S
                yield {"event": "progress", **found}
        if not alive or not follow:
            state = state_of(progress, alive=alive)
            yield {"event": "end", "n": shown, "state": state, "waits_for": _waits_for(spec, progress, state)}
            return
        time.sleep(_POLL_S)
