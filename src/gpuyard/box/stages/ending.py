"""Ending a run so that nothing is lost without a word: stop the stages, publish, and say whether all is saved.

``python -m gpuyard.box.stages stop [--wait SECONDS] [--progress]`` prints JSON, one object a line. With ``--progress``
a line comes at once and then every :data:`TOLD_EVERY_S` seconds::

    {"event": "waiting", "stage": "search", "seconds": 12, "of": 540, "doing": "saving"}

``stage`` is the stage that is being ended, ``null`` when none runs; ``seconds`` have passed of at most ``of``;
``doing`` is ``saving`` while the stage's own processes end, then ``publishing``. **The last line is the result**,
always, also when something went wrong::

    {"changed": true, "session": {…}, "restored": null, "ended": true,
     "saved": {"state": true, "sequence": 42, "why": "The bucket holds everything …, as checkpoint 42."}}

``session`` is what ``status --json`` prints (``{}`` when that cannot be told), ``ended`` whether nothing runs any more.
``saved.state`` is true only when the bucket holds all that is on the box now, or when nothing ever began here. ``why``
is one or more whole sentences for people; ``sequence`` is the newest checkpoint, where it is known. The exit code is
0 when nothing runs any more, whatever ``saved`` says, and 1 otherwise, with the reason also on standard error.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpuyard.box.stages import at_work, report, session
from gpuyard.box.stages.runner import bucket_refusal, end_leftovers, journal_of, publish_checkpoint, python_module
from gpuyard.box.stages.spec import DEFAULT_GRACE_S, BoxSpec, load_spec
from gpuyard.errors import GpuyardError

PUBLISH_ALLOWANCE_S = 300.0
"""What stopping allows, beyond the stage's own ``grace_s``, for the last checkpoint (seconds)."""
TOLD_EVERY_S = 3.0
# A runner that ended at the last moment still leaves this long to find out whether all is saved.
_LEAST_PUBLISH_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Saved:
    """Whether the bucket holds everything that is on this box: ``why`` says it in words, ``sequence`` as which set."""

    state: bool
    sequence: int | None
    why: str


def wait_limit(spec: BoxSpec) -> float:
    """Return how long the run may take to end (seconds): the running stage's own grace time, and publishing."""
    stage = report.running_stage(spec)
    return (stage.grace_s if stage else DEFAULT_GRACE_S) + PUBLISH_ALLOWANCE_S


def end(
    folder: Path, wait_s: float | None = None, *, tell: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Stop the run of a settings folder, publish what is not in the bucket yet, and return the result.

    The result is what this module's text describes. ``wait_s`` is in seconds, by default :func:`wait_limit`. ``tell``
    gets the lines that say what is waited for. Never raises: what goes wrong becomes ``saved.state = false`` with its
    reason.
    """
    began = time.monotonic()
    result: dict[str, Any] = {"changed": False, "session": {}, "restored": None, "ended": False}
    try:
        if not (folder / "settings.json").exists():
            saved = Saved(True, None, "This box has not been told what to run, so there is nothing to save.")
            return {**result, "ended": True, "saved": asdict(saved)}
        # First of all: a machine that goes down meanwhile must not begin again with what somebody has ended.
        at_work.forget(folder)
        spec = load_spec(folder)
        limit = wait_limit(spec) if wait_s is None else wait_s
        clock = _Clock(spec, began, limit, tell)
        try:
            stopped = session.stop(spec, limit, tick=clock.tick)
            # A runner that was killed leaves its stage at work: what that writes now would be in no checkpoint.
            result["changed"] = end_leftovers(spec, tick=clock.tick) or stopped
            result["ended"] = True
        except GpuyardError as error:
            saved = Saved(False, None, str(error))
        if result["ended"]:
            saved = save(spec, max(_LEAST_PUBLISH_S, began + limit - time.monotonic()), tick=clock.tick)
        result["session"] = report.status(spec)
    except Exception as error:  # whatever it is: a caller that gets no answer may destroy what is not saved
        saved = Saved(False, None, f"It is not known whether everything is saved: {_sentence(error)}")
    return {**result, "saved": asdict(saved)}


def save(spec: BoxSpec, limit_s: float, *, tick: Callable[[], None] = lambda: None) -> Saved:
    """Publish what is not in the bucket yet, within ``limit_s`` seconds, and tell whether it holds everything now.

    That is done by a process of its own, which is ended when it takes too long: a set that was begun by then stays
    invisible. ``tick`` is called while waiting.
    """
    if not journal_of(spec).read():
        return Saved(True, None, "Nothing has begun on this box, so there is nothing to save.")
    if not spec.bucket:
        return Saved(False, None, f"No bucket is set for {spec.run}, so its files are on this box only.")
    refusal = _while_ticking(lambda: bucket_refusal(spec), tick)
    if refusal is not None:
        return Saved(False, None, f"{refusal} What is not in the newest checkpoint is on this box only.")
    command = python_module("gpuyard.box.checkpoints", "publish", "--json", "--settings", str(spec.folder))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + limit_s
    try:
        while True:
            try:
                output, complaint = process.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                tick()
                if time.monotonic() > deadline:
                    return Saved(False, None, f"The last checkpoint was not published within {limit_s:.0f} s.")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    try:
        return Saved(**json.loads(output))
    except (ValueError, TypeError):
        said = complaint.decode(errors="replace").strip().splitlines()
        return Saved(
            False, None, f"The last checkpoint could not be published: {said[-1] if said else 'no reason given'}"
        )


def publish_and_tell(spec: BoxSpec) -> Saved:
    """Publish a checkpoint if anything has changed, in this process, and tell whether the bucket holds everything."""
    if not spec.bucket:
        return Saved(False, None, f"No bucket is set for {spec.run}, so its files are on this box only.")
    said: list[str] = []
    published = publish_checkpoint(spec, warn=said.append, patient=True)
    if published is None:
        return Saved(False, None, _sentences(said) or "No checkpoint was published.")
    if published.lacks:
        return Saved(False, published.sequence, f"{published.lacks[:1].upper()}{published.lacks[1:]}.")
    what = (
        "everything that persist.rules publish of this box"
        if spec.rules.leaves_out
        else "everything that is on this box"
    )
    why = f"The bucket holds {what}, as checkpoint {published.sequence}."
    return Saved(True, published.sequence, why)


class _Clock:
    """Tells, now and then, what is waited for."""

    def __init__(
        self, spec: BoxSpec, began: float, limit: float, tell: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self._spec, self._began, self._limit, self._tell = spec, began, limit, tell
        self._next = began

    def tick(self) -> None:
        now = time.monotonic()
        if self._tell is None or now < self._next:
            return
        self._next = now + TOLD_EVERY_S
        stage = report.running_stage(self._spec)
        self._tell(
            {
                "event": "waiting",
                "stage": stage.name if stage else None,
                "seconds": round(now - self._began),
                "of": round(self._limit),
                "doing": "saving" if stage else "publishing",
            }
        )


def _while_ticking(work: Callable[[], str | None], tick: Callable[[], None]) -> str | None:
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(work()), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        tick()
    return answer[0] if answer else "The bucket could not be asked."


def _sentences(warnings: list[str]) -> str:
    texts = [text.removeprefix("Warning: ") for text in warnings]
    return " ".join(text[:1].upper() + text[1:] for text in texts)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
