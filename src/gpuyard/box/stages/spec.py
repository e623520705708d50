"""What the box is to do: the workload and the run's settings, as the ``stage_session`` module leaves them on the box.

The settings folder (``/opt/gpuyard/run``) holds ``workload.json`` (the workload, no secrets), ``settings.json`` (run
name, bucket, folders, no secrets) and ``secrets.env`` (mode 0600: ``NAME='value'`` as a shell writes it).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard.box.checkpoints import Retention, Store, open_store
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.box.stages.folders import why_not
from gpuyard.errors import UsageError
from gpuyard.formats.location import Location

DEFAULT_FOLDER = Path("/opt/gpuyard/run")
DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True)
class Stage:
    """One named command. ``grace_s`` is in seconds, ``retries`` counts further attempts after a failed one.

    ``resume_if`` is a path or pattern below the persistent root: ``resume_command`` runs only where something matches.
    """

    name: str
    command: str
    resume_command: str | None = None
    resume_if: str | None = None
    resumable: bool = False
    grace_s: float = DEFAULT_GRACE_S
    retries: int = 0


@dataclass(frozen=True)
class BoxSpec:
    """What the runner needs to know. ``every_s`` is the publishing interval (s; 0: only after each stage).

    ``instance`` says what is known of the instance that this box is: its node, provider, id, region, market, price.
    """

    folder: Path
    run: str
    workload: str
    root: Path
    directories: tuple[str, ...]
    repository: Path
    path: tuple[str, ...]
    environment: Mapping[str, str]
    iterations: int
    stages: tuple[Stage, ...]
    every_s: float = 60.0
    retention: Retention = field(default_factory=Retention)
    windows: tuple[tuple[str, str], ...] = ()
    rules: Rules = field(default_factory=Rules)
    bucket: str = ""
    bucket_endpoint: str = ""
    bucket_region: str = ""
    instance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> list[tuple[int, str]]:
        """Every stage of every iteration, in the order in which they run."""
        return [(iteration, stage.name) for iteration in range(self.iterations) for stage in self.stages]

    def stage(self, name: str) -> Stage:
        """Return the stage called ``name``, or raise :class:`UsageError` that lists the stages."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise UsageError(f"{self.workload} has no stage {name!r}; its stages are {known}.")

    def secrets(self) -> dict[str, str]:
        """Return the secret environment, which is read anew each time and kept nowhere else."""
        return read_secrets(self.folder / "secrets.env")

    @property
    def location(self) -> Location:
        """Where the bucket is. Raises :class:`UsageError` when its address is none, which must end no training."""
        return Location.parse(self.bucket, endpoint=self.bucket_endpoint, region=self.bucket_region)

    def store(self) -> Store:
        """Open the run's bucket with the keys of the secret file, else of the process environment."""
        return open_store(self.location, env={**os.environ, **self.secrets()})

    def make_directories(self) -> None:
        """Have every persistent folder: a bucket holds no empty ones, so a restored root may lack some."""
        for name in self.directories:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def log(self, iteration: int, stage: str) -> Path:
        """Return the log file of a stage."""
        return self.root / ".gpuyard" / "logs" / f"{iteration}-{stage}.log"


def load_spec(folder: Path = DEFAULT_FOLDER) -> BoxSpec:
    """Read ``workload.json`` and ``settings.json`` of ``folder``; :class:`UsageError` when they are not usable."""
    workload = _read(folder / "workload.json")
    settings = _read(folder / "settings.json")
    try:
        persist = workload["persist"]
        if reason := why_not(str(persist["root"])):
            raise UsageError(f"{folder / 'workload.json'}: persist.root {reason}.")
        checkpoints = workload.get("checkpoints") or {}
        name = str(workload["name"])
        return BoxSpec(
            folder=folder,
            run=str(settings["run"]),
            workload=name,
            root=Path(persist["root"]),
            directories=tuple(persist.get("directories") or ()),
            repository=Path(settings.get("repository") or f"/opt/gpuyard/src/{name}"),
            path=tuple(settings.get("path") or ()),
            environment={
                key: str(value) for key, value in ((workload.get("environment") or {}).get("set") or {}).items()
            },
            iterations=int(workload.get("iterations", 1)),
            stages=tuple(_stage(item) for item in workload["stages"]),
            every_s=float(checkpoints.get("every_s", 60)),
            retention=Retention(int(checkpoints.get("keep_last", 0)), int(checkpoints.get("keep_every", 0))),
            windows=tuple((str(item["name"]), str(item["command"])) for item in workload.get("windows") or ()),
            rules=Rules.from_workload(persist.get("rules") or ()),
            bucket=str(settings.get("bucket") or ""),
            bucket_endpoint=str(settings.get("bucket_endpoint") or ""),
            bucket_region=str(settings.get("bucket_region") or ""),
            instance=dict(settings.get("instance") or {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} does not describe a workload: {error!r}.") from error


def read_secrets(file: Path) -> dict[str, str]:
    """Return the variables of a ``NAME='value'`` file; none when there is no file."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    pairs = (word.partition("=") for word in shlex.split(text, comments=True))
    return {name: value for name, separator, value in pairs if separator}


def _stage(item: Mapping[str, Any]) -> Stage:
    return Stage(
        name=str(item["name"]),
        command=str(item["command"]),
        resume_command=item.get("resume_command") or None,
        resume_if=item.get("resume_if") or None,
        resumable=bool(item.get("resumable", False)),
        grace_s=float(item.get("grace_s", DEFAULT_GRACE_S)),
        retries=int(item.get("retries", 0)),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{file} is missing: this box has not been told what to run.") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file} does not hold a JSON object.")
    return document
