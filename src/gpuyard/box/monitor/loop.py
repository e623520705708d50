"""The monitor's loop: look, tell what has begun and what has ended, wait."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from pathlib import Path
from typing import IO

from gpuyard.box import machine
from gpuyard.box.monitor import alerts, notify, prometheus
from gpuyard.box.monitor.checks import CHECKS, DISK, Finding, LogReader, Look, disks_of
from gpuyard.box.monitor.companion import END
from gpuyard.box.monitor.settings import Monitoring
from gpuyard.box.stages.runner import progress_of
from gpuyard.box.stages.spec import load_spec
from gpuyard.errors import GpuyardError
from gpuyard.files import write_whole
from gpuyard.formats.journal import Position


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

    @property
    def monitoring(self) -> Monitoring:
        """What the workload says of monitoring."""
        return self.spec.monitoring

    def look(self) -> None:
        """Look once, with the settings as they are now."""
        # Settings that cannot be read leave what was there before.
        with contextlib.suppress(GpuyardError, OSError):
            self.spec = load_spec(self.folder)
        look = self._see()
        found = {finding.alert: finding for check in CHECKS for finding in check(look)}
        for finding in found.values():
            self._follow(finding, look)
        for name in [name for name in self._open if name not in found]:
            self._end(name, look.place)
        self._since = {name: since for name, since in self._since.items() if name in found}
        self._write_prometheus(look)

    def end(self) -> None:
        """End the alerts of a stage that runs no more, and leave no measures that look as if they were of now."""
        for name in [name for name in self._open if not name.startswith(DISK)]:
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

    ``told`` is a pipe whose other end the runner holds, so that the monitor ends with it however that ends.
    """
    monitor = Monitor(folder)
    wait_s = first_s
    while not select.select([told], [], [], wait_s)[0]:
        try:
            monitor.look()
        except Exception as error:  # whatever it is: the next look may be better
            _say(f"Warning: the monitor could not look: {error if isinstance(error, GpuyardError) else repr(error)}")
        wait_s = monitor.monitoring.every_s
    if told.readline() == END:
        monitor.end()


def _say(text: str) -> None:
    """Write into the window of the runner. It may be gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"== {text}\n")
        sys.stdout.flush()
