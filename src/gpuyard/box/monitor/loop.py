"""The monitor's loop beside a runner: look, tell what has begun and what has ended, wait.

Between its looks it hears whether the machine is taken away (:mod:`gpuyard.box.monitor.notices`), and holds the run
against its lease and its budget. In both cases it tells the runner to stop in good order, and why.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gpuyard.box import machine
from gpuyard.box.monitor import alerts, known_limits, notices, notify, prometheus, pruning, stopping
from gpuyard.box.monitor.checks import CHECKS, DISK, Finding, LogReader, Look, disks_of
from gpuyard.box.monitor.companion import END
from gpuyard.box.monitor.settings import Monitoring
from gpuyard.box.monitor.stopping import Stop
from gpuyard.box.stages.runner import is_running, journal_of, lock_owner, progress_of
from gpuyard.box.stages.spec import DEFAULT_GRACE_S, load_spec
from gpuyard.errors import GpuyardError
from gpuyard.files import write_whole
from gpuyard.formats.journal import Position

TICK_S = 5.0
"""How often it is looked whether a limit is over (seconds)."""
PREEMPTION = "preemption"
SAVING_S = 120.0
"""What a last checkpoint is given, beyond the stage's own grace time, where the end is known so long before."""
_LOOKS_AT_IDLE_GPUS = 5


class Monitor:
    """Looks at a run, and tells each alert once when it begins and once when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = load_spec(folder)
        self._open = alerts.open_alerts(self.spec.root)
        self._since: dict[str, float] = {}  # when each trouble was first seen
        self._reader = LogReader()
        self._matched: dict[str, float] = {}
        self._iteration: tuple[int, float] | None = None  # its number, and how full the disk was (GB)
        self._notice: notices.Notice | None = None
        self._standing = ""  # what the alert of a notice says
        self._stopped = False

    @property
    def monitoring(self) -> Monitoring:
        """What the workload says of monitoring."""
        return self.spec.monitoring

    @property
    def every_s(self) -> float:
        """How often it looks."""
        idle_s = self.monitoring.gpu_idle_s
        return min(self.monitoring.every_s, idle_s / _LOOKS_AT_IDLE_GPUS) if idle_s else self.monitoring.every_s

    def hear(self, notice: notices.Notice, now: float) -> None:
        """Take a notice that this machine goes; ``now`` is in seconds since 1970. The stage first, then people."""
        if notice.at is not None:
            self._notice = notice
            self.hold(now)
        left = "" if notice.at is None else f", in {max(0.0, notice.at - now):.0f} s"
        self._standing = f"{notice.text}{left}"
        with contextlib.suppress(OSError):
            journal_of(self.spec).append("notice", source=notice.source, text=notice.text, at=notice.at)
        if PREEMPTION not in self._open:
            self._open[PREEMPTION] = {"alert": PREEMPTION, "text": self._standing}
            self._tell("begin", PREEMPTION, self._standing, progress_of(self.spec).running)

    def hold(self, now: float) -> None:
        """Tell the runner to stop where the machine goes soon, or where the run is past a limit. It is told once."""
        if not self._stopped and (stop := self._why_stop(now)) and is_running(self.spec):
            runner = lock_owner(self.spec)
            if runner is not None:
                self._stopped = True
                stopping.tell(self.folder, runner, stop)
                _say(f"The stages are told to stop: {stop.why}")

    def _why_stop(self, now: float) -> Stop | None:
        if self._notice is not None and self._notice.at is not None:
            place = progress_of(self.spec).running
            grace_s = self.spec.stage(place[1]).grace_s if place else DEFAULT_GRACE_S
            # Of a notice of an hour most can be worked.
            if self._notice.at - now <= grace_s + SAVING_S:
                return Stop(
                    PREEMPTION,
                    self._notice.text,
                    self._notice.at,
                    f"{self._notice.source}={self._notice.acknowledge}" if self._notice.acknowledge else "",
                )
        if over := known_limits.read(self.folder).over(now):
            return Stop(*over)
        return None

    def look(self) -> None:
        """Look once, with the settings as they are now."""
        # Settings that cannot be read leave what was there before.
        with contextlib.suppress(GpuyardError, OSError):
            self.spec = load_spec(self.folder)
        look = self._see()
        if self._make_room(look):
            look = self._see()
        found = {finding.alert: finding for check in CHECKS for finding in check(look)}
        for finding in found.values():
            self._follow(finding, look)
        for name in [name for name in self._open if name not in found]:
            if name != PREEMPTION or not self._standing:
                self._end(name, look.place)
        self._since = {name: since for name, since in self._since.items() if name in found}
        self._write_prometheus(look)

    def end(self) -> None:
        """End the alerts of a stage that runs no more, and leave no measures that look as if they were of now."""
        for name in [name for name in self._open if not name.startswith(DISK)]:
            if name != PREEMPTION:
                self._end(name, None)
        if self.monitoring.prometheus:
            with contextlib.suppress(OSError):
                Path(self.monitoring.prometheus).unlink()

    def _see(self) -> Look:
        spec = self.spec
        place = progress_of(spec).running
        disk = machine.disk(spec.root)
        growth = None
        if place is not None and disk is not None:
            if self._iteration is None or self._iteration[0] != place[0]:
                self._iteration = place[0], disk.used_gb
            growth = disk.used_gb - self._iteration[1]
        matches = self._reader.read(spec.log(*place) if place else None, self.monitoring.bands)
        if matches is None:
            self._matched = {}
        now = time.time()
        look = Look(spec, self.monitoring, now, place, machine.gpus(), disks_of(spec), matches, self._matched, growth)
        if matches is None:
            self._matched.update({band.name: now for band in self.monitoring.bands})
        return look

    def _make_room(self, look: Look) -> bool:
        """Remove what is safe to remove where the volume's disk is nearly full; tell whether there was anything."""
        full = [one for one in look.disks if one.used_percent >= self.monitoring.disk_alert_percent]
        if not any(one.path == str(self.spec.root) for one in full):
            return False
        freed = pruning.prune(self.spec, look.now)
        if freed.total:
            _say(f"The disk of {self.spec.root} was nearly full; removed: {freed.words}")
            with contextlib.suppress(OSError):
                journal_of(self.spec).append("pruned", bytes=freed.total, text=freed.words)
        return bool(freed.total)

    def _follow(self, finding: Finding, look: Look) -> None:
        if finding.trouble is None:
            return
        if not finding.trouble:
            self._since.pop(finding.alert, None)
            self._end(finding.alert, look.place)
            return
        since = self._since.setdefault(finding.alert, look.now)
        if finding.alert not in self._open and look.now - since >= finding.for_s:
            # First, so that nothing that goes wrong in telling it makes it be told again.
            self._open[finding.alert] = {"alert": finding.alert, "text": finding.trouble}
            self._tell("begin", finding.alert, finding.trouble, look.place)

    def _end(self, name: str, where: Position | None) -> None:
        if (before := self._open.pop(name, None)) is not None:
            self._tell("end", name, f"no more: {before['text']}", where)

    def _tell(self, event: str, name: str, text: str, where: Position | None) -> None:
        spec = self.spec
        place = {"iteration": where[0], "stage": where[1]} if where else {}
        title = f"{spec.run}: {text}"
        _say(f"{'Alert' if event == 'begin' else 'Alert ended'}: {text}")
        record = {"event": event, "alert": name, "text": text, **place}
        try:
            record = alerts.append(spec.root, event, name, text, **place)
        except OSError as error:
            _say(f"Warning: the alert cannot be written: {error.strerror}")
        message = {**record, "run": spec.run, "workload": spec.workload, "node": spec.node, "title": title}
        for channel, why in notify.send_all(self.monitoring.notify, message, spec.secrets()).items():
            _say(f"Warning: {channel} has not got the alert {name}: {why}")
            with contextlib.suppress(OSError):
                alerts.append(spec.root, "unsent", name, f"{channel} has not got it: {why}")

    def _write_prometheus(self, look: Look) -> None:
        if not self.monitoring.prometheus:
            return
        try:
            write_whole(Path(self.monitoring.prometheus), prometheus.text(look, self._open), mode=0o644)
        except OSError as error:
            _say(f"Warning: {self.monitoring.prometheus} cannot be written: {error.strerror}")


def watch(folder: Path, told: IO[bytes], *, first_s: float) -> None:
    """Look after ``first_s`` seconds and then as often as the workload says, until ``told`` ends or says :data:`END`.

    ``told`` is a pipe whose other end the runner holds, so that the monitor ends with it however that ends. Where the
    runner was killed and there is something to wait for, it goes on as :mod:`gpuyard.box.monitor.staying`.
    """
    monitor = Monitor(folder)
    heard: queue.SimpleQueue[notices.Notice] = queue.SimpleQueue()
    woken, waker = os.pipe()

    def hear(notice: notices.Notice) -> None:
        heard.put(notice)
        os.write(waker, b"!")

    for source in notices.sources(monitor.monitoring.notice_files):
        notices.Listener(source, hear).start()
    next_look = time.monotonic() + first_s
    while True:
        wait_s = min(TICK_S, max(0.0, next_look - time.monotonic()))
        ready = select.select([told.fileno(), woken], [], [], wait_s)[0]
        if told.fileno() in ready:
            break
        if woken in ready:
            os.read(woken, 64)
        with _complaining("do what a notice asks for"):
            while not heard.empty():
                monitor.hear(heard.get(), time.time())
            monitor.hold(time.time())
        if time.monotonic() >= next_look:
            with _complaining("look"):
                monitor.look()
            next_look = time.monotonic() + monitor.every_s
    if told.readline() == END:
        monitor.end()
    else:
        _stay(folder)


@contextlib.contextmanager
def _complaining(what: str) -> Iterator[None]:
    """Say what goes wrong, whatever it is: the next time may be better."""
    try:
        yield
    except Exception as error:
        _say(f"Warning: the monitor could not {what}: {error if isinstance(error, GpuyardError) else repr(error)}")


def _stay(folder: Path) -> None:
    # Loaded where it is needed, since the monitor beside a runner has to stay small.
    from gpuyard.box.monitor import staying

    if staying.waits(load_spec(folder)):
        staying.stay(folder)


def _say(text: str) -> None:
    """Write into the window of the runner. It may be gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"== {text}\n")
        sys.stdout.flush()
