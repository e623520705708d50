"""The monitor where no stage runs: it ends the rental of a machine that is finished with.

It lives only where there is something to wait for: the run was launched with ``shutdown=true``, the workload has
``monitoring.idle_minutes``, or the run has a lease or a budget. The runner starts it when it ends, and a monitor whose
runner was killed becomes it. It ends when a runner begins, which has a monitor of its own.

Nothing is ended before everything is in the bucket and verified there. Where the cloud gives the machine no key of its
own, the record in the bucket says that it is over, and ``reap.yml`` ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpuyard.box.monitor import alerts, known_limits, notices, notify, own_key, people, stopping
from gpuyard.box.stages.report import state_of
from gpuyard.box.stages.runner import hold_lock, is_running, progress_of, python_module
from gpuyard.box.stages.spec import BoxSpec, load_spec
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.formats.label import FIRST_NODE

ENDED = ("finished", "failed", "idle")
"""How the stages stand when ``shutdown=true`` ends the rental: also when what was asked for is done, or has failed."""
ALERT = "rental"
LOCK = "monitor.lock"
LOG = "monitor.log"
FOLLOWER_S = 60.0
"""Whoever follows the run ends its machine by itself, and is given so long for it (seconds)."""
EVERY_S = 5.0
_PEOPLE_EVERY_S = 30.0
_BEAT_EVERY_S = 600.0
_AGAIN_S = 300.0
_FINISH_S = 3600.0

Finish = Callable[[str, bool], Mapping[str, Any]]
"""Does what :func:`gpuyard.box.monitor.finishing.finish` does; returns ``saved`` as JSON has it."""


def waits(spec: BoxSpec) -> bool:
    """Tell whether a machine on which no stage runs has anything to wait for."""
    ends = bool(spec.rental.get("shutdown")) and state_of(progress_of(spec), alive=False) in ENDED
    stop = stopping.read(spec.folder)
    answers = stop is not None and bool(stop.acknowledge)
    return ends or answers or spec.monitoring.idle_s > 0 or known_limits.read(spec.folder).any


def start(spec: BoxSpec) -> None:
    """Start it in a process of its own, where there is something to wait for; whatever goes wrong stops nobody."""
    with contextlib.suppress(Exception):
        if not waits(spec):
            return
        with (spec.folder / LOG).open("ab") as log:
            subprocess.Popen(
                python_module("gpuyard.box.monitor", "stay", "--settings", str(spec.folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )


def stay(folder: Path, *, follower_s: float = FOLLOWER_S, every_s: float = EVERY_S) -> None:
    """Look every ``every_s`` seconds until there is nothing to wait for, a runner begins, or the machine is gone."""
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # there is one already
        staying = Staying(folder, follower_s=follower_s)
        while staying.step(time.monotonic(), time.time()):
            time.sleep(every_s)


class Staying:
    """What it knows from look to look. ``finish`` and ``somebody`` (who is at the machine) are replaced by tests."""

    def __init__(
        self,
        folder: Path,
        *,
        follower_s: float = FOLLOWER_S,
        finish: Finish | None = None,
        somebody: Callable[[], str] = people.somebody,
    ) -> None:
        self.spec = load_spec(folder)
        self._folder = folder
        self._follower_s = follower_s
        self._finish = finish or self._in_a_process
        self._somebody = somebody
        self._began: float | None = None
        self._alone_since = self._looked_at = self._beat_at = -_BEAT_EVERY_S
        self._not_before = 0.0
        self._told = ""

    def step(self, now: float, date: float) -> bool:
        """Look once, and do what is to be done; tell whether there is anything more to wait for.

        ``now`` are seconds that no change of the clock moves, ``date`` are those since 1970.
        """
        if not (self._folder / "settings.json").exists():
            return False  # the machine was freed
        if self._began is None:
            self._began = self._alone_since = now
            return True  # the runner that has started it may still be ending
        if is_running(self.spec):
            return False
        self.spec = load_spec(self._folder)
        if not waits(self.spec):
            return False
        if (stop := stopping.read(self._folder)) and stop.acknowledge:
            # All that could be saved is: the cloud need not wait for this machine any longer.
            stopping.clear(self._folder)
            source, _, text = stop.acknowledge.partition("=")
            notices.acknowledge(source, text)
        if now - self._beat_at >= _BEAT_EVERY_S:
            self._beat_at = now
            _call(self.spec, "beat")
        if now < self._not_before:
            return True
        found = self._why(now, date)
        if found is None:
            return True
        self._not_before = now + _AGAIN_S
        return self._end(*found)

    def _why(self, now: float, date: float) -> tuple[str, str] | None:
        """Return the reason and a sentence that says why the machine is finished with; ``None`` while it is not."""
        assert self._began is not None  # asked by step
        if now - self._began < self._follower_s:
            return None
        if over := known_limits.read(self._folder).over(date):
            # Somebody may have prolonged it meanwhile.
            _call(self.spec, "beat")
            over = known_limits.read(self._folder).over(date)
        if over:
            return over
        state = state_of(progress_of(self.spec), alive=False)
        if self.spec.rental.get("shutdown") and state in ENDED:
            return "shutdown", f"its stages have ended ({state}), and shutdown=true was asked for"
        idle_s = self.spec.monitoring.idle_s
        if idle_s and now - self._looked_at >= min(_PEOPLE_EVERY_S, idle_s / 2):
            self._looked_at = now
            if self._somebody():
                self._alone_since = now
            elif now - self._alone_since >= idle_s:
                return "idle", f"no stage has run and nobody was logged in for {idle_s / 60:g} minutes"
        return None

    def _end(self, reason: str, why: str) -> bool:
        """Have everything saved and verified, and end the rental; tell whether to try again later."""
        spec = self.spec
        own = own_key.find(spec.instance, str(spec.rental.get("api") or ""))
        self._tell(f"this machine is finished with: {why}")
        try:
            saved = self._finish(reason, own is not None)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            saved = {"state": False, "why": f"It is not known whether everything is saved: {type(error).__name__}."}
        if saved.get("state") is not True:
            self._tell(f"this machine is kept, and bills, though {why}: {saved.get('why')}")
            return True
        if own is None:
            self._tell(f"{saved.get('why')} This machine cannot end its own rental, so reap.yml has to")
            return False
        try:
            with hold_lock(spec):  # no runner begins now
                _say(f"ending the rental: {why}. {saved.get('why')}")
                own.end()
                # The cloud ends this process, too. Where it lives on, the cloud is asked again.
                time.sleep(_AGAIN_S)
        except UsageError:
            return False  # a runner has begun
        except GpuyardError as error:
            self._tell(f"this machine is kept, and bills, though {why}: {error}")
        return True

    def _tell(self, text: str) -> None:
        """Tell it once: in the alerts, where no checkpoint is behind by it, and to whom the workload names."""
        if text == self._told:
            return
        self._told = text
        spec = self.spec
        _say(text)
        record: dict[str, Any] = {"event": "begin", "alert": ALERT, "text": text}
        if ALERT not in alerts.open_alerts(spec.root):
            with contextlib.suppress(OSError):
                record = alerts.append(spec.root, "begin", ALERT, text)
        message = {**record, "run": spec.run, "workload": spec.workload, "node": spec.node or FIRST_NODE}
        secrets: Mapping[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            secrets = spec.secrets()
        failed = notify.send_all(spec.monitoring.notify, {**message, "title": f"{spec.run}: {text}"}, secrets)
        for channel, reason in failed.items():
            _say(f"Warning: {channel} has not got this: {reason}")

    def _in_a_process(self, reason: str, ends_itself: bool) -> Mapping[str, Any]:
        done = _call(self.spec, "finish", reason, *(["--ends-itself"] if ends_itself else []))
        found = json.loads(done)
        return found if isinstance(found, dict) else {}


def _call(spec: BoxSpec, *words: str) -> bytes:
    """Run one of the monitor's own commands in a process of its own, and return what it printed."""
    command = python_module("gpuyard.box.monitor", *words, "--settings", str(spec.folder))
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", check=False, timeout=_FINISH_S
    )
    return done.stdout


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
