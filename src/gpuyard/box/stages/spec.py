"""What the box is to do: the workload and the run's settings, as the ``stage_session`` module leaves them on the box.

The settings folder (``/opt/gpuyard/run``) holds ``workload.json`` (the workload, no secrets), ``settings.json`` (run
name, bucket, folders, no secrets) and ``secrets.env`` (mode 0600: ``NAME='value'`` as a shell writes it).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpuyard.box.checkpoints import Retention, Store, open_store
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.box.monitor.settings import Monitoring
from gpuyard.box.stages.expected import Expected
from gpuyard.box.stages.folders import why_not
from gpuyard.errors import UsageError
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.location import Location

DEFAULT_FOLDER = Path("/opt/gpuyard/run")
# What holds where a workload says nothing, for its schema on the controller as well (gpuyard.workload.schema).
DEFAULT_GRACE_S = 30.0
DEFAULT_EVERY_S = 300.0
DEFAULT_RETENTION = Retention(keep_last=3, keep_every=0)
DEFAULT_BANDWIDTH_MB_S = 0.0
DEFAULT_RUN = "each"
DEFAULT_ITERATIONS = 1
DEFAULT_ROTATE_MB = 100.0


@dataclass(frozen=True)
class First:
    """What a stage has in iteration 0 in place of, or besides, what it has in the others."""

    command: str | None = None
    resume_command: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One named command. ``grace_s`` is in seconds, ``retries`` counts further attempts after a failed one.

    ``resume_if`` is a path or pattern below the persistent root: ``resume_command`` runs only where something matches.
    ``run`` says in which iterations it runs (:func:`runs_in`). ``timeout`` and ``silent`` are the seconds after which
    it is ended, since its beginning and since its last output. ``overrides`` tells whether the run's overrides follow
    its command. ``retry_wait_s`` are the seconds before the first of the retries, doubled before each further one, and
    ``restart_on`` says after which ends there is one at all (:func:`gpuyard.box.stages.restarting.restarts`); none:
    after any failure. ``after`` names the stages that have to be done before it (``None``: see :func:`waits_on`), and
    a run goes on after the failure of a stage that is not ``needed``.
    """

    name: str
    command: str
    resume_command: str | None = None
    resume_if: str | None = None
    resumable: bool = False
    grace_s: float = DEFAULT_GRACE_S
    retries: int = 0
    retry_wait_s: float = 0.0
    restart_on: tuple[int | str, ...] = ()
    after: tuple[str, ...] | None = None
    needed: bool = True
    progress: Expected | None = None
    run: str = DEFAULT_RUN
    pool: str = "main"
    timeout: float | None = None
    silent: float | None = None
    overrides: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    first: First = field(default_factory=First)

    def command_in(self, iteration: int, *, resumed: bool) -> str:
        """Return the command of an iteration, the one that goes on where it is ``resumed``."""
        first = self.first if iteration == 0 else First()
        resume_command = first.resume_command or self.resume_command
        return (resume_command if resumed else None) or first.command or self.command

    def environment_in(self, iteration: int) -> dict[str, str]:
        """Return the variables that this stage alone has in an iteration."""
        return {**self.environment, **(self.first.environment if iteration == 0 else {})}


def runs_in(run: str, iteration: int) -> bool:
    """Tell whether a stage of this kind belongs to an iteration. What runs ``once`` counts as part of iteration 0."""
    return {"each": True, "later": iteration > 0}.get(run, iteration == 0)


class Named(Protocol):
    """A stage, as far as its place in the order goes."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def run(self) -> str:
        """In which iterations it runs; see :func:`runs_in`."""

    @property
    def after(self) -> Sequence[str] | None:
        """The stages that have to be done before it; see :func:`waits_on`."""

    @property
    def needed(self) -> bool:
        """Whether its failure ends the run."""


def waits_on(stages: Sequence[Named]) -> dict[str, list[str]]:
    """Return for each stage the names of those that have to be done before it begins.

    A stage that does not say so waits for the last needed stage before it, so that one that may fail holds up nobody
    who does not name it. Stages that are not here (those of another box) are not waited for.
    """
    here = {stage.name for stage in stages}
    found: dict[str, list[str]] = {}
    last: list[str] = []
    for stage in stages:
        found[stage.name] = last if stage.after is None else [name for name in stage.after if name in here]
        last = [stage.name] if stage.needed else last
    return found


def arranged(stages: Sequence[Named]) -> list[Named]:
    """Return the stages in the order in which they run: the file's own, but each behind those that it waits for.

    Raises :class:`UsageError` where some of them wait for each other.
    """
    waiting = waits_on(stages)
    left, order = list(stages), list[Named]()
    placed = set[str]()
    while left:
        ready = next((stage for stage in left if placed.issuperset(waiting[stage.name])), None)
        if ready is None:
            names = ", ".join(stage.name for stage in left)
            raise UsageError(f"The stages {names} wait for each other: one of them has to have another 'after'.")
        left.remove(ready)
        order.append(ready)
        placed.add(ready.name)
    return order


def order_of(stages: Sequence[Named], iterations: int) -> list[tuple[int, str]]:
    """Return every stage of every iteration, in the order in which they run."""
    there = arranged(stages)
    return [
        (iteration, stage.name) for iteration in range(iterations) for stage in there if runs_in(stage.run, iteration)
    ]


@dataclass(frozen=True)
class BoxSpec:
    """What the runner needs to know. ``every_s`` is the publishing interval (s; 0: only after each stage).

    ``bandwidth_mb_s`` is what publishing and restoring may take of the network (MB/s; 0: all of it).
    A log of more than ``rotate_mb`` (10^6 bytes; 0: never) is put aside before the next attempt.

    ``instance`` says what is known of the instance that this box is: its node, provider, id, region, market, price.

    ``rental`` says of the rental whether it ends with the run (``shutdown``), and where the instance's cloud is
    (``api``, empty for its real address).

    With ``turn_pools`` the run moves from box to box, and this one runs the stages of these pools only: it waits for
    another box where a stage of another pool comes next. Without, it runs every stage.
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
    every_s: float = DEFAULT_EVERY_S
    rotate_mb: float = DEFAULT_ROTATE_MB
    retention: Retention = DEFAULT_RETENTION
    bandwidth_mb_s: float = DEFAULT_BANDWIDTH_MB_S
    overrides: tuple[str, ...] = ()
    windows: tuple[tuple[str, str], ...] = ()
    rules: Rules = field(default_factory=Rules)
    monitoring: Monitoring = field(default_factory=Monitoring)
    bucket: str = ""
    bucket_endpoint: str = ""
    bucket_region: str = ""
    turn_pools: tuple[str, ...] = ()
    rental: Mapping[str, Any] = field(default_factory=dict)
    instance: Mapping[str, Any] = field(default_factory=dict)
    node: str = FIRST_NODE
    own_place: str = ""  # where in the bucket this node's checkpoints lie; "": at the run's own place

    @property
    def place(self) -> str:
        """What the keys of this node's checkpoints and record begin with."""
        return self.own_place or self.run

    @property
    def order(self) -> list[tuple[int, str]]:
        """Every stage of every iteration, in the order in which they run."""
        return order_of(self.stages, self.iterations)

    def stage(self, name: str) -> Stage:
        """Return the stage called ``name``, or raise :class:`UsageError` that lists the stages."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise UsageError(f"{self.workload} has no stage {name!r}; its stages are {known}.")

    def waits_for(self, name: str) -> str | None:
        """Return the pool whose box has to run this stage, ``None`` when this box runs it."""
        pool = self.stage(name).pool
        return pool if self.turn_pools and pool not in self.turn_pools else None

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
        pools = settings.get("pools") or ()  # those that this box serves; none: all
        return BoxSpec(
            folder=folder,
            run=str(settings["run"]),
            workload=name,
            root=Path(persist["root"]),
            directories=tuple(persist.get("directories") or ()),
            repository=Path(settings.get("repository") or f"/opt/gpuyard/src/{name}"),
            path=tuple(settings.get("path") or ()),
            environment={
                **_texts(workload.get("parameters")),
                **_texts((workload.get("environment") or {}).get("set")),
            },
            iterations=int(workload.get("iterations", DEFAULT_ITERATIONS)),
            stages=tuple(_stage(item) for item in workload["stages"] if not pools or item.get("pool") in pools),
            every_s=float(checkpoints.get("every_s", DEFAULT_EVERY_S)),
            rotate_mb=float((workload.get("logs") or {}).get("rotate_mb", DEFAULT_ROTATE_MB)),
            retention=Retention(
                int(checkpoints.get("keep_last", DEFAULT_RETENTION.keep_last)),
                int(checkpoints.get("keep_every", DEFAULT_RETENTION.keep_every)),
            ),
            bandwidth_mb_s=float(checkpoints.get("bandwidth_mb_s", DEFAULT_BANDWIDTH_MB_S)),
            overrides=tuple(str(word) for word in workload.get("overrides") or ()),
            windows=tuple((str(item["name"]), str(item["command"])) for item in workload.get("windows") or ()),
            rules=Rules.from_workload(persist.get("rules") or ()),
            monitoring=Monitoring.from_workload(workload.get("monitoring") or {}),
            bucket=str(settings.get("bucket") or ""),
            bucket_endpoint=str(settings.get("bucket_endpoint") or ""),
            bucket_region=str(settings.get("bucket_region") or ""),
            rental=dict(settings.get("rental") or {}),
            instance=dict(settings.get("instance") or {}),
            node=str(settings.get("node") or FIRST_NODE),
            own_place=str(settings.get("place") or ""),
            turn_pools=tuple(settings.get("turn_pools") or ()),
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
    first = item.get("first") or {}
    return Stage(
        name=str(item["name"]),
        command=str(item["command"]),
        resume_command=item.get("resume_command") or None,
        resume_if=item.get("resume_if") or None,
        resumable=item.get("resumable", False) in (True, "yes", "partial"),
        grace_s=float(item.get("grace_s", DEFAULT_GRACE_S)),
        retries=int(item.get("retries", 0)),
        retry_wait_s=float(item.get("retry_wait_s") or 0),
        restart_on=tuple(item.get("restart_on") or ()),
        after=None if item.get("after") is None else tuple(item["after"]),
        needed=bool(item.get("needed", True)),
        progress=Expected.from_workload(item.get("progress")),
        pool=str(item.get("pool") or "main"),
        run=str(item.get("run", DEFAULT_RUN)),
        timeout=_seconds(item.get("timeout")),
        silent=_seconds(item.get("silent")),
        overrides=bool(item.get("overrides", False)),
        environment=_texts(item.get("environment")),
        first=First(
            first.get("command") or None, first.get("resume_command") or None, _texts(first.get("environment"))
        ),
    )


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


def _texts(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (values or {}).items()}


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
