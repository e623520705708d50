"""What a workload says of monitoring, as the monitor reads it from ``workload.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_EVERY_S = 600.0
DEFAULT_DISK_ALERT_PERCENT = 90.0
METRICS = ("gpu_use_percent", "gpu_memory_gb", "disk_growth_gb", "line_interval_s", "log_value")
"""What a band can be of."""
OF_LOGS = ("line_interval_s", "log_value")
"""Those that are read from the running stage's log, with a pattern."""


@dataclass(frozen=True)
class Band:
    """Between which values a measure is expected to be, in some stages (none: in all of them).

    It has to be outside for ``for_s`` seconds, at every look, before that is an alert.
    """

    name: str
    metric: str
    least: float | None = None
    most: float | None = None
    for_s: float = 0.0
    stages: tuple[str, ...] = ()
    pattern: str | None = None


@dataclass(frozen=True)
class NoticeFile:
    """A file whose appearance says that the machine goes, ``seconds`` after it was written."""

    path: str
    seconds: float


@dataclass(frozen=True)
class Monitoring:
    """How often the monitor looks (seconds), when it alerts, and whom it tells. What is not said has its default.

    ``idle_s`` is how long a machine has been without a stage and without people when it is finished with,
    ``gpu_idle_s`` how long a stage may leave all GPUs idle before that is an alert; 0: never.
    """

    every_s: float = DEFAULT_EVERY_S
    disk_alert_percent: float = DEFAULT_DISK_ALERT_PERCENT
    bands: tuple[Band, ...] = ()
    notify: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prometheus: str = ""
    idle_s: float = 0.0
    gpu_idle_s: float = 0.0
    notice_files: tuple[NoticeFile, ...] = ()

    @classmethod
    def from_workload(cls, said: Mapping[str, Any]) -> Monitoring:
        """Return it from the workload's section, ``{}`` where there is none."""
        bands = {
            name: {key: value for key, value in band.items() if value is not None}
            for name, band in (said.get("bands") or {}).items()
        }
        return cls(
            every_s=float(said.get("every_s", DEFAULT_EVERY_S)),
            disk_alert_percent=float(said.get("disk_alert_percent", DEFAULT_DISK_ALERT_PERCENT)),
            bands=tuple(
                Band(name=name, **{**band, "stages": tuple(band.get("stages", ()))}) for name, band in bands.items()
            ),
            notify={name: channel for name, channel in (said.get("notify") or {}).items() if channel},
            prometheus=str(said.get("prometheus") or ""),
            idle_s=60 * float(said.get("idle_minutes") or 0),
            gpu_idle_s=60 * float(said.get("gpu_idle_minutes") or 0),
            notice_files=tuple(
                NoticeFile(str(file["path"]), float(file["seconds"])) for file in said.get("notice_files") or ()
            ),
        )
