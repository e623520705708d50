"""What the monitor looks at. A check that is added gets a function here, and a place in :data:`CHECKS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard.box.machine import Disk, Gpu, disk
from gpuyard.box.monitor.settings import OF_LOGS, Band, Monitoring
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.formats.journal import Position

DISK = "disk "
"""What the names of alerts of file systems begin with; no name of a band does."""
_WORKING_PERCENT = 2.0
_CHUNK = 64 * 1024
# More than this of what a stage has printed since the last look (bytes) is not read.
_MOST_READ = 16 * 1024 * 1024


@dataclass(frozen=True)
class Finding:
    """What a check has found of one possible alert. ``trouble`` is a sentence, "" when all is well.

    It is ``None`` where nothing can be said at this look, which changes nothing. Trouble is an alert when it has lasted
    for ``for_s`` seconds.
    """

    alert: str
    trouble: str | None
    for_s: float = 0.0


@dataclass(frozen=True)
class Matches:
    """How many new lines of a log match a pattern, and the last one's first group."""

    count: int = 0
    value: str | None = None


@dataclass
class Look:
    """What is seen at one moment: ``now`` in seconds since 1970, ``place`` the stage that runs.

    ``matches`` has what the stage's log has got since the last look, by the bands' names; ``None`` at the first look at
    a log. ``since`` is when a line that matches was last seen. ``growth_gb`` is how much fuller the persistent root's
    disk is than when the monitor first saw this iteration.
    """

    spec: BoxSpec
    monitoring: Monitoring
    now: float
    place: Position | None
    gpus: list[Gpu]
    disks: list[Disk]
    matches: dict[str, Matches] | None
    since: dict[str, float] = field(default_factory=dict)
    growth_gb: float | None = None


def disks_of(spec: BoxSpec) -> list[Disk]:
    """Return the file systems that a run uses, each once: of the volume, the code, gpuyard's folder, and /tmp."""
    found: dict[int, Disk] = {}
    for folder in (spec.root, spec.repository, spec.folder, Path("/tmp")):
        try:
            device = folder.stat().st_dev
        except OSError:
            continue
        seen = None if device in found else disk(folder)
        if seen is not None:
            found[device] = seen
    return list(found.values())


def _full_disks(look: Look) -> Iterator[Finding]:
    limit = look.monitoring.disk_alert_percent
    for one in look.disks:
        full = one.used_percent >= limit
        text = f"the disk of {one.path} is {one.used_percent:g} % full ({one.free_gb:g} GB are free)"
        yield Finding(f"{DISK}{one.path}", text if full else "")


def _idle_gpus(look: Look) -> Iterator[Finding]:
    if not look.monitoring.gpu_idle_s or look.place is None:
        return
    uses = [gpu.use_percent for gpu in look.gpus if gpu.use_percent is not None]
    trouble = None
    if uses:
        idle = max(uses) < _WORKING_PERCENT
        minutes = look.monitoring.gpu_idle_s / 60
        trouble = f"{look.place[1]} has left every GPU idle for {minutes:g} minutes" if idle else ""
    yield Finding("idle GPUs", trouble, look.monitoring.gpu_idle_s)


def _bands(look: Look) -> Iterator[Finding]:
    stage = look.place[1] if look.place else None
    for band in look.monitoring.bands:
        if stage is not None and (not band.stages or stage in band.stages):
            yield Finding(band.name, _outside(band, _values(band, look), stage), band.for_s)


def _values(band: Band, look: Look) -> list[float]:
    """Return a measure's values, of each GPU where it is one of GPUs; none when it is not known."""
    if band.metric == "gpu_use_percent":
        return [gpu.use_percent for gpu in look.gpus if gpu.use_percent is not None]
    if band.metric == "gpu_memory_gb":
        return [gpu.memory_used_gb for gpu in look.gpus if gpu.memory_used_gb is not None]
    if band.metric == "disk_growth_gb":
        return [] if look.growth_gb is None else [look.growth_gb]
    seen = None if look.matches is None else look.matches.get(band.name)
    if seen is None:
        return []
    if band.metric == "line_interval_s":
        began = look.since.setdefault(band.name, look.now)
        if seen.count:
            look.since[band.name] = look.now
        return [(look.now - began) / max(1, seen.count)]
    try:
        return [float(seen.value or "")]
    except ValueError:
        return []


def _outside(band: Band, values: list[float], stage: str) -> str | None:
    if not values:
        return None
    unit = {"percent": " %", "gb": " GB", "s": " s"}.get(band.metric.rpartition("_")[2], "")
    low = [value for value in values if band.least is not None and value < band.least]
    high = [value for value in values if band.most is not None and value > band.most]
    if low:
        return f"{band.name}: {band.metric} is {min(low):.3g}{unit} in {stage}, and {band.least:g}{unit} is the least"
    if high:
        return f"{band.name}: {band.metric} is {max(high):.3g}{unit} in {stage}, and {band.most:g}{unit} is the most"
    return ""


CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (_full_disks, _idle_gpus, _bands)
"""Every check, in the order in which they look."""


class LogReader:
    """Counts in the running stage's log, from look to look, the lines that match the bands' patterns."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._position = 0

    def read(self, file: Path | None, bands: tuple[Band, ...]) -> dict[str, Matches] | None:
        """Return what is new in ``file`` by the bands' names; ``None`` at the first look at it."""
        patterns = {band.name: re.compile(band.pattern or "") for band in bands if band.metric in OF_LOGS}
        try:
            size = file.stat().st_size if file is not None and patterns else 0
            if file is None or file != self._file or size < self._position:
                self._file, self._position = file, size
                return None
            return self._count(file, size, patterns)
        except OSError:
            return None

    def _count(self, file: Path, size: int, patterns: dict[str, re.Pattern[str]]) -> dict[str, Matches]:
        found = {name: Matches() for name in patterns}
        rest = b""
        with file.open("rb") as stream:
            stream.seek(max(self._position, size - _MOST_READ))
            # What is being written now is read at the next look: its last line may be a part of one.
            while stream.tell() < size and (chunk := stream.read(min(_CHUNK, size - stream.tell()))):
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    for name, pattern in patterns.items():
                        if match := pattern.search(text):
                            value = match.group(1) if pattern.groups else None
                            found[name] = Matches(found[name].count + 1, value or found[name].value)
                if len(rest) > _MOST_READ:
                    rest = b""
        self._position = size - len(rest)
        return found
