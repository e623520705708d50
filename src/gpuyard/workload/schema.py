"""What a workload file may say."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gpuyard import gpus
from gpuyard.box.checkpoints.rules import KINDS, Rule
from gpuyard.box.stages import restarting, spec
from gpuyard.box.stages.expected import UNITS
from gpuyard.errors import UsageError
from gpuyard.providers.base import Market, Query
from gpuyard.tree import Rules
from gpuyard.workload import data
from gpuyard.workload.credentials import Credentials
from gpuyard.workload.disks import Size, Volume, VolumeName, check_volumes
from gpuyard.workload.hardware import Cuda, Health
from gpuyard.workload.images import Container
from gpuyard.workload.lean import Lean, Pantograph
from gpuyard.workload.monitoring import Monitoring
from gpuyard.workload.renting import Alternative, Bid, Capability, Country, Limits
from gpuyard.workload.values import (
    Commit,
    Constraint,
    Count,
    Duration,
    Extra,
    Folder,
    Iterations,
    Keep,
    Name,
    NotNegative,
    Override,
    ParameterName,
    Pattern,
    PersistentRoot,
    Positive,
    PositiveCount,
    RelativePath,
    Resumability,
    Scalar,
    Section,
    Share,
    SomeWords,
    Switch,
    Url,
    Variable,
    Version,
    Words,
    show,
)

MarketName = Literal["on-demand", "interruptible", "any"]
_KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
MOST_PROFILES = 50
# What every stage gets from the runner.
_RESERVED = frozenset({"ITERATION", "STAGE", "RUN", "PATH", "HOME", "USER", "SHELL", "PYTHONUNBUFFERED"})


def typed(kind: str, value: object, key: str = "value") -> int | float | str | bool:
    """Return ``value`` as one of a parameter's ``type``. YAML takes ``1e-4`` for text, which a number is made of."""
    if kind == "float" and not isinstance(value, bool):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif (
        (kind == "bool" and isinstance(value, bool))
        or (kind == "int" and isinstance(value, int) and not isinstance(value, bool))
        or (kind == "str" and isinstance(value, str) and "\0" not in value)
    ):
        return value
    raise ValueError(
        f"must have {'choices' if key == 'choices' else f'a {key}'} of type {kind}: {_KINDS[kind]}, not {show(value)}"
    )


def as_text(value: object) -> str:
    """Return a parameter's value as a stage's environment has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_MOST_SECRET_BYTES = 100_000


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


class Repository(Section):
    """Where the code comes from: a local tree or a Git repository at a commit."""

    path: SomeWords | None = None
    """A folder of the controller: absolute, below ``~``, or relative to the one that holds ``workloads/``. What git
    ignores, and what its ``.gpuyardignore`` names, is left out."""
    include: list[Pattern] = []
    """Patterns, as in ``.gitignore`` but from the repository's root on, of ignored files that come all the same."""
    url: Url | None = None
    """The address of a Git repository, without user, password or token."""
    commit: Commit | None = None
    """The commit of ``url``, all 40 hexadecimal digits."""
    submodules: Switch = False
    """Whether the submodules of ``url`` come with it."""
    credentials: Credentials | None = None
    """What opens ``url`` where it is private."""

    @model_validator(mode="after")
    def _one_source(self) -> Repository:
        if (self.path is None) == (self.url is None):
            raise ValueError("must have either path (a local tree) or url and commit")
        if (self.url is None) != (self.commit is None):
            raise ValueError("must have url and commit together, so that a run can be repeated")
        if self.include and self.url:
            raise ValueError("must not have include with url: a machine that fetches the commit has nothing else")
        if self.credentials and not self.url:
            raise ValueError("must have url where it has credentials: a local tree needs none")
        if self.credentials and self.url and (why := self.credentials.why_not_for(self.url)):
            raise ValueError(f"has credentials that {why}")
        return self


class Needs(Section):
    """What the machine has to offer; see :class:`gpuyard.providers.base.Query` for the units."""

    gpu_count: Positive = 1.0
    """How many GPUs; part of one (0.5) where a cloud rents out parts."""
    gpu_ram_gb: Positive | None = None
    """The least memory of each GPU, in gigabytes."""
    most_gpu_ram_gb: Positive | None = None
    """The most memory of each GPU, in gigabytes: a larger one would be paid for and not used."""
    gpu_names: list[SomeWords] = []
    """The models that will do, each by its whole name: ``A100`` takes an ``A100 SXM4`` too. None: any."""
    cpu_cores: Positive | None = None
    """The least number of CPU cores."""
    ram_gb: Positive | None = None
    """The least main memory, in gigabytes."""
    disk_gb: Positive = 20.0
    """The disk to rent, in gigabytes."""
    cuda: Version | None = None
    """The least CUDA version that the driver has to support, in quotes."""
    reliability: Share | None = None
    """The least share of time that the machine was up, from 0 to 1, where a cloud publishes it."""
    driver: Version | None = None
    """The least version of NVIDIA's driver, in quotes, where a cloud publishes it."""
    compute_capability: Capability | None = None
    """The least compute capability of the GPU, in quotes: ``'8.0'`` is an A100's. Where a cloud does not publish it,
    the model's own counts."""
    internet_mbit_s: Positive | None = None
    """The least network speed in the slower direction, in millions of bits a second, where a cloud publishes it."""
    static_ip: Switch = False
    """Whether the machine's address has to stay the same, where a cloud publishes that."""
    data_center: Switch = False
    """Whether the machine has to stand in a data centre, where a cloud publishes that."""
    regions: list[SomeWords] = []
    """The regions that will do, as the clouds call them; with ``prefer: regions`` the first is the best. None: any."""
    countries: list[Country] = []
    """The countries that will do, of two letters each. An offer whose country is not known will not. None: any."""
    prefer: Literal["price", "value", "distance", "regions"] = "price"
    """What decides among the offers that fit: the ``price`` with disk and traffic; the ``value``, which is that price
    for what the GPUs do; the ``distance`` to the bucket; or the order of ``regions``."""
    alternatives: list[Alternative] = []
    """What will do where nothing that fits the needs can be had, each after the one before."""


def _instead(needed: Query, alternative: Alternative) -> Query:
    """Return what is asked for in place of ``needed``."""
    said: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in alternative}
    return replace(needed, **{name: value for name, value in said.items() if value is not None})


def _kind(value: object) -> object:
    if value in KINDS:
        return value
    raise ValueError(f"must be one of {', '.join(KINDS)}, not {show(value)}")


class Pool(Section):
    """A named group of nodes with the same needs and market. What it does not say is the workload's."""

    needs: Needs | None = None
    """What each of its nodes has to offer, in place of the workload's ``needs``."""
    market: MarketName | None = None
    """The market on which its nodes are rented."""
    nodes: PositiveCount = 1
    """How many nodes it has."""


class Budget(Section):
    """What it may cost."""

    max_price_per_hour: Positive | None = None
    """US dollars an hour for GPU and disk; nothing dearer is rented."""
    usd: Positive | None = None
    """US dollars for all machines of a run together; at the end of it the run is saved and ended."""
    lease_hours: Positive | None = None
    """The hours from its first launch for which a run is rented; a reaping ends it then."""


class Storage(Section):
    """What the run leaves in the bucket, for the estimate."""

    gb_per_iteration: Positive
    """What one iteration leaves in the bucket, in gigabytes."""
    price_per_gb_month: Positive
    """US dollars for a gigabyte and month, as the bucket's provider asks."""


class Traffic(Section):
    """What goes over the network, for the estimate: some clouds ask for it by the gigabyte."""

    setup_gb: NotNegative = 0
    """What a new machine downloads before its first stage: packages, weights, data, in gigabytes."""
    gb_per_iteration: NotNegative = 0
    """What the stages of one iteration send and fetch, checkpoints included, in gigabytes."""


class Environment(Section):
    """Variables of the stages. Those that come from the controller's environment count as secret, and so do files."""

    required: list[Variable] = []
    """Variables that must be set where the play runs; they reach the stages through a file of mode 0600."""
    optional: list[Variable] = []
    """Variables that reach the stages in the same way when they are set where the play runs."""
    set: dict[Variable, Words] = {}
    """Plain values."""
    files: dict[Variable, SomeWords | None] = {}
    """Secret files of the controller, by the variable that holds their path on the machine. Where that variable is set
    on the controller, it names the file there, in place of the path here."""

    @model_validator(mode="after")
    def _named_once(self) -> Environment:
        names = [*self.required, *self.optional, *self.set, *self.files]
        for name in _twice(names):
            raise ValueError(f"must say only once where {name} comes from")
        return self


class Python(Section):
    """The Python environment of the stages."""

    version: Constraint = ">=3.10"
    """Which Python, as a condition in quotes."""
    requirements: RelativePath | None = None
    """A requirements file of the repository; relative paths in it are the repository's."""
    packages: list[SomeWords] = []
    """Requirements besides the file."""
    project: RelativePath | None = None
    """The folder of a Python project in the repository, which is installed as editable. Default with ``extras`` or
    ``lock``: the repository itself."""
    extras: list[Extra] = []
    """Extras of the project to install too."""
    lock: RelativePath | None = None
    """The project's ``uv.lock``: the environment becomes exactly what it names."""

    @model_validator(mode="after")
    def _lock(self) -> Python:
        if self.lock is not None and PurePosixPath(self.lock).name != "uv.lock":
            raise ValueError(f"must have a lock that is called uv.lock, not {show(self.lock)}")
        if self.lock is not None and self.requirements is not None:
            raise ValueError("must not have requirements with lock, which names every version")
        return self

    @property
    def project_folder(self) -> str | None:
        """The folder of the project to install, relative to the repository; ``None`` for none."""
        return self.project or ("." if self.extras or self.lock else None)


class Rust(Section):
    """The Rust toolchain."""

    version: Version
    """The toolchain to install, in quotes."""
    minimum: Version | None = None
    """The oldest cargo that will do, in quotes."""


class PersistRule(Section):
    """What becomes of the files and folders below ``persist.root`` that a pattern matches."""

    path: RelativePath
    """A path or pattern below ``persist.root``."""
    kind: Annotated[Literal["checkpoint", "model", "results", "log", "cache", "data"], BeforeValidator(_kind)]
    """What it is."""
    publish: Switch | None = None
    """Whether checkpoints hold it. Default: not of a cache or data."""
    keep: Keep = None
    """How many of a series a checkpoint holds: ``latest``, ``all``, or a number. Default: of models the latest."""
    complete_if: RelativePath | None = None
    """A pattern below a folder that the rule matches: the folder is whole when something matches."""

    @model_validator(mode="after")
    def _sensible(self) -> PersistRule:
        if self.path.split("/")[0] == ".gpuyard":
            raise ValueError("must not be for .gpuyard, where gpuyard keeps its journal and logs")
        rule = Rule.from_workload(self.model_dump())
        if self.keep is not None and not rule.publish:
            raise ValueError(f"has keep, but {self.path} is not published")
        if self.complete_if is not None and not rule.keep:
            raise ValueError("has complete_if, which only matters with keep: latest or a number")
        return self


class Persist(Section):
    """Directories of the repository that outlive it: each is a link below ``root``."""

    root: PersistentRoot = "/mnt/persistent"
    """The folder of the machine in which they lie: one of its own, never the system's."""
    directories: list[Folder] = []
    """The directories, relative to the repository."""
    rules: list[PersistRule] = []
    """Which of these files checkpoints hold, by path and kind; the first whose path matches counts."""

    @field_validator("rules")
    @classmethod
    def _once(cls, rules: list[PersistRule]) -> list[PersistRule]:
        for path in _twice(rule.path for rule in rules):
            raise ValueError(f"must not have two rules for {path}, since only the first counts")
        return rules

    @field_validator("directories")
    @classmethod
    def _apart(cls, directories: list[str]) -> list[str]:
        for name in _twice(directories):
            raise ValueError(f"must not name {name} twice")
        known = set(directories)
        for name in directories:
            outer = next((str(one) for one in PurePosixPath(name).parents if str(one) in known), None)
            if outer:
                raise ValueError(f"must not name {name}, which lies in {outer} and is kept with it")
        return directories


class Checkpoints(Section):
    """How often checkpoints are published and how many are kept."""

    every_s: Positive = spec.DEFAULT_EVERY_S
    """The seconds between two checkpoints."""
    keep_last: PositiveCount = spec.DEFAULT_RETENTION.keep_last
    """How many of the newest are kept."""
    keep_every: Count = spec.DEFAULT_RETENTION.keep_every
    """Besides, every checkpoint whose number is a multiple of this is kept for ever; 0: none."""
    bandwidth_mb_s: NotNegative = spec.DEFAULT_BANDWIDTH_MB_S
    """The most that publishing and restoring take of the network, in megabytes a second on the average; 0: no cap. The
    last checkpoint of a run that ends heeds none."""


class Span(Section):
    """Hours: what is expected, and what it takes at worst."""

    expected: NotNegative
    """The hours that it is expected to take."""
    worst: NotNegative
    """The hours that it takes at worst."""

    @model_validator(mode="after")
    def _ordered(self) -> Span:
        if self.worst < self.expected:
            raise ValueError("must have a worst that is not less than expected")
        return self


class Hours(Span):
    """The hours of one iteration of a stage, for the estimate; other ones for some GPUs where those are known."""

    by_gpu: dict[SomeWords, Span] = {}
    """The hours on some GPUs, by model (``A100``, ``H100 SXM5``); ``expected`` and ``worst`` hold for all others."""

    @field_validator("by_gpu")
    @classmethod
    def _models(cls, by_gpu: dict[str, Span]) -> dict[str, Span]:
        for name in by_gpu:
            if not gpus.names_a_model(name):
                raise ValueError(f"must name whole GPU models, such as A100 or RTX 4090, not {show(name)}")
        return by_gpu

    def on(self, gpu_name: str) -> Span:
        """Return the hours on a GPU; the most precise name that matches counts."""
        fitting = [name for name in self.by_gpu if gpus.matches(name, gpu_name)]
        return self.by_gpu[max(fitting, key=len)] if fitting else self


class First(Section):
    """What a stage has in iteration 0 that differs from all later iterations."""

    command: SomeWords | None = None
    """The command of iteration 0, in place of the stage's."""
    resume_command: SomeWords | None = None
    """The command that goes on with iteration 0 after an interruption."""
    hours: Hours | None = None
    """The hours of iteration 0, in place of the stage's."""
    environment: dict[Variable, Words] = {}
    """Variables of iteration 0, besides the stage's or in place of them."""


def _restart(value: object) -> int | str:
    """Return an exit code, the name of a signal, or what the runner itself ends a stage for."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return value
    if isinstance(value, str) and (value in restarting.ENDED_FOR or restarting.number_of(value) is not None):
        return value
    raise ValueError(
        f"must be an exit code from 1 to 255, a signal such as SIGSEGV, timeout or silent, not {show(value)}"
    )


class Expected(Section):
    """How far a stage is, from what its log says (``pattern``) or from files that grow (``file``)."""

    pattern: SomeWords | None = None
    """A regular expression (Python's) that is searched in each line of the log, the last one first. Its group ``done``,
    or its only group, is a number; so is its group ``total``."""
    total: Positive | None = None
    """Of how much, where the pattern has no group ``total``."""
    file: RelativePath | None = None
    """A path or pattern of files below ``persist.root``."""
    total_bytes: Positive | None = None
    """How many bytes the files have at the end."""
    total_lines: Positive | None = None
    """How many lines the files have at the end."""
    total_files: Positive | None = None
    """How many files there are at the end."""

    @model_validator(mode="after")
    def _one_way(self) -> Expected:
        units = [name for name in UNITS if getattr(self, name) is not None]
        if (self.pattern is None) == (self.file is None):
            raise ValueError("must have either pattern (over the log) or file, not both and not neither")
        if self.file is not None and (len(units) != 1 or self.total is not None):
            raise ValueError(f"must have with file just one of {', '.join(UNITS)}")
        if self.pattern is None:
            return self
        if units:
            raise ValueError(f"must not have {units[0]} with pattern, but total")
        try:
            groups = re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"has a pattern that is no regular expression: {error}") from None
        if "done" not in groups.groupindex and groups.groups != 1:
            raise ValueError("must have a pattern with a group (?P<done>…), or with one group only")
        if ("total" in groups.groupindex) == (self.total is not None):
            raise ValueError("must say the total once: as total, or as a group (?P<total>…) of the pattern")
        return self


class Logs(Section):
    """The logs of the stages on the machine."""

    rotate_mb: NotNegative = spec.DEFAULT_ROTATE_MB
    """A log of more megabytes is put aside before the next attempt begins a new one; 0: never."""


class Stage(Section):
    """One named command of the iteration loop."""

    name: Name
    """The stage's name."""
    command: SomeWords
    """A shell command, run in the repository with the environment's programs on ``PATH``."""
    run: Literal["each", "once", "first", "later"] = "each"
    """In which iterations it runs: ``each``; ``first``, iteration 0 only; ``later``, all but 0; ``once`` in the run,
    never again when the run goes back to an earlier stage or has more iterations."""
    first: First | None = None
    """What differs in iteration 0."""
    resume_command: SomeWords | None = None
    """The command that goes on after an interruption. Default: ``command``."""
    resume_if: RelativePath | None = None
    """A path or pattern below ``persist.root``; ``resume_command`` runs only where something matches."""
    resumable: Resumability = "no"
    """Whether it goes on after an interruption: ``yes`` (or true), ``partial`` (from its own last save, so that some
    work is done twice) or ``no`` (or false; it begins again)."""
    grace_s: Positive = spec.DEFAULT_GRACE_S
    """The seconds that it has to save its work when it is told to stop."""
    timeout: Duration | None = None
    """The time after which it is ended and counts as failed: seconds, or a text such as ``2h``."""
    silent: Duration | None = None
    """The time without any output after which it is ended and counts as failed: seconds, or a text such as ``15m``."""
    retries: Count = 0
    """Further attempts when it fails. One that is resumable goes on where it was."""
    retry_wait_s: NotNegative = 0
    """The seconds before the first of these attempts; doubled before each further one, up to ten minutes."""
    restart_on: list[Annotated[int | str, BeforeValidator(_restart)]] = []
    """After which ends there are further attempts: exit codes, signals such as SIGSEGV, ``timeout``, ``silent``. None:
    after any failure."""
    after: list[Name] | None = None
    """The stages of the same iteration that have to be done before it. None: the last needed one before it."""
    needed: Switch = True
    """Whether its failure ends the run. One that is not needed may fail; then only those after it do not run."""
    progress: Expected | None = None
    """What says how far it is, for a bar and the remaining time."""
    hours: Hours | None = None
    """The hours of one iteration, for the estimate."""
    environment: dict[Variable, Words] = {}
    """Variables of this stage, besides the workload's or in place of them."""
    overrides: Switch = False
    """Whether the run's overrides (``training.batch_size=4``) are appended to its commands."""
    pool: Name = "main"
    """The pool on whose nodes it runs."""
    market: MarketName | None = None
    """The market whose machines it may run on, when it is not the workload's."""

    @model_validator(mode="after")
    def _resume(self) -> Stage:
        first = self.first or First()
        if self.resumable == "no" and (self.resume_command is not None or first.resume_command is not None):
            raise ValueError("has a resume_command but resumable is not true")
        if self.resume_if is not None and self.resume_command is None:
            raise ValueError("has a resume_if but no resume_command")
        if self.resume_command is not None and first.command is not None and first.resume_command is None:
            raise ValueError("has a first.command and a resume_command, so it needs a first.resume_command as well")
        if self.restart_on and not self.retries:
            raise ValueError("has restart_on but no retries: say how many further attempts there are")
        if self.retry_wait_s and not self.retries:
            raise ValueError("has retry_wait_s but no retries: say how many further attempts there are")
        if self.first and self.run in ("first", "once", "later"):
            raise ValueError(f"has first, but with run: {self.run} no iteration differs from the others")
        return self

    def hours_in(self, iteration: int, gpu_name: str = "") -> Span | None:
        """Return the hours that an iteration takes on a GPU, ``None`` where the workload does not say."""
        first = self.first.hours if self.first and iteration == 0 else None
        said = first or self.hours
        return said.on(gpu_name) if said else None

    def times(self, iterations: int) -> int:
        """Return how often it runs in a run of so many iterations."""
        return {"each": iterations, "later": iterations - 1}.get(self.run, 1)


class Parameter(Section):
    """A named value that is chosen for each run: with ``-e overrides=NAME=VALUE``, or by a profile.

    Stages have it as an environment variable of the same name in capitals. A bare value stands for its ``default``.
    """

    type: Literal["int", "float", "str", "bool"]
    """What kind of value it is. Default: that of ``default``."""
    default: Scalar | None = None
    """The value when nothing else is chosen. A parameter without one has to be set."""
    value: Scalar | None = None
    """The chosen value; a profile says it here."""
    choices: list[Scalar] | None = None
    """The values that will do."""
    minimum: Scalar | None = None
    """The least value of a number."""
    maximum: Scalar | None = None
    """The largest value of a number."""
    description: Words = ""
    """What it means, in one line."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """Give a bare value its mapping and its type, and every value the type."""
        if isinstance(given, bool | int | float | str):
            given = {"default": given}
        if not isinstance(given, dict):
            return given
        values = dict(given)
        if "type" not in values and (known := values.get("default")) is not None:
            values["type"] = type(known).__name__
        kind = values.get("type")
        if kind not in _KINDS:
            return values
        for key in ("default", "value", "minimum", "maximum"):
            if values.get(key) is not None:
                values[key] = typed(kind, values[key], key)
        if isinstance(values.get("choices"), list):
            values["choices"] = [typed(kind, choice, "choices") for choice in values["choices"]]
        return values

    @model_validator(mode="after")
    def _within(self) -> Parameter:
        limits = (self.minimum, self.maximum)
        if self.type not in ("int", "float") and limits != (None, None):
            raise ValueError(f"has a minimum or maximum, which a parameter of type {self.type} cannot have")
        for key, value in (("default", self.default), ("value", self.value)):
            if value is None:
                continue
            if self.choices is not None and value not in self.choices:
                raise ValueError(f"must have a {key} among {', '.join(map(as_text, self.choices))}, not {show(value)}")
            low = isinstance(self.minimum, int | float) and isinstance(value, int | float) and value < self.minimum
            high = isinstance(self.maximum, int | float) and isinstance(value, int | float) and value > self.maximum
            if low or high:
                bound = f"of at least {self.minimum}" if low else f"of at most {self.maximum}"
                raise ValueError(f"must have a {key} {bound}, not {show(value)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Let an editor take a bare value, and a mapping without the type, as the model does."""
        whole = handler.resolve_ref_schema(handler(core))
        whole.pop("required", None)
        return {"anyOf": [{"type": ["number", "string", "boolean"]}, dict(whole)]}

    @property
    def current(self) -> int | float | str | bool | None:
        """The value that the stages get."""
        return self.default if self.value is None else self.value


class Window(Section):
    """A tmux window beside the iteration's own."""

    name: Name
    """The window's name."""
    command: SomeWords
    """What runs in it."""


class Workload(Section):
    """A whole workload file, checked."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """The version of this format. A file without it is of version 1."""
    name: Name
    """1 to 40 lower-case letters, digits and dashes; runs are called ``NAME-0``, ``NAME-1``, and so on."""
    description: Words = ""
    """What it is, in one line."""
    repository: Repository
    """Where the code comes from."""
    needs: Needs = Needs()
    """What the machine has to offer."""
    market: MarketName = "any"
    """Where to rent: ``on-demand``, ``interruptible`` (cheaper, and taken away at any time) or ``any``."""
    pools: dict[Name, Pool] = {}
    """Named groups of nodes. None: one pool, ``main``, of one node."""
    budget: Budget = Budget()
    """What it may cost."""
    bid: Bid | None = None
    """What is bid for an interruptible machine. None: the least that is accepted."""
    limits: Limits = Limits()
    """When to give up renting a machine."""
    storage: Storage | None = None
    """What the run leaves in the bucket, and what that costs, for the estimate. None: not estimated."""
    traffic: Traffic | None = None
    """What goes over the network, for the estimate. None: not estimated."""
    sizes: dict[Name, Size] = {}
    """How much room the run's files take on the machine, by a name for each kind of them; checked before anything is
    rented. None: not checked."""
    volumes: dict[VolumeName, Volume] = {}
    """Disks of the machine besides the one with its system, by their names."""
    image: Words = ""
    """A container image, at clouds that boot images. Empty: the cloud's own."""
    login: Literal["root", "limited"] = "root"
    """As whom a rented machine is logged in to: ``root``, or ``limited``, a user with sudo (Vultr's ``linuxuser``). A
    cloud that makes no such user has root all the same, and a box of your own the user that its inventory names."""
    container: Container | None = None
    """The container image that ``image.yml`` makes of this workload. None: no such image."""
    environment: Environment = Environment()
    """Variables of the stages."""
    packages: list[SomeWords] = []
    """Debian or Ubuntu packages to install."""
    python: Python | None = None
    """A virtual environment for the stages. None: no such environment."""
    rust: Rust | None = None
    """A Rust toolchain, by rustup. None: no toolchain."""
    lean: Lean | None = None
    """A Lean 4 toolchain, by elan. None: no toolchain."""
    pantograph: Pantograph | None = None
    """Pantograph, built with that toolchain. None: no Pantograph."""
    cuda: Cuda | None = None
    """CUDA on the machine. None: what is there."""
    health: Health | None = None
    """What a machine has to show. None: a new one is tested as soon as it answers, with the defaults."""
    weights: dict[Name, data.Weights] = {}
    """Model weights from the Hugging Face Hub or from a bucket, by a name of your own."""
    datasets: dict[Name, data.Dataset] = {}
    """Data sets from a bucket or a web server, by a name of your own."""
    build: list[SomeWords] = []
    """Shell commands, run in the repository once for each state of it."""
    verify: list[SomeWords] = []
    """Shell commands, run in the repository, that have to succeed before a snapshot is made of a machine."""
    persist: Persist = Persist()
    """What of the repository's folders lives on the volume and in checkpoints."""
    checkpoints: Checkpoints = Checkpoints()
    """How often checkpoints are published, and which are kept."""
    monitoring: Monitoring | None = None
    """When the monitor on the machine alerts. None: every ten minutes, when a disk is 90 % full."""
    logs: Logs = Logs()
    """The logs of the stages on the machine."""
    iterations: Iterations = spec.DEFAULT_ITERATIONS
    """How often the stages run, from iteration 0 on."""
    setup_hours: Span = Span(expected=0.1, worst=0.5)
    """The hours from renting to the first stage, for the estimate."""
    stages: list[Stage]
    """What runs, in this order, in each iteration."""
    windows: list[Window] = []
    """tmux windows after the first. None: the GPU, the newest log, and the disk."""
    parameters: dict[ParameterName, Parameter] = {}
    """Named values that are chosen for each run, which the stages have as environment variables in capitals."""
    profiles: dict[Name, dict[str, Any]] = {}
    """Overlays on this file, by name (``-e profile=small``): mappings are merged, stages by their name, and all else
    replaces what is here."""
    overrides: list[Override] = []
    """What is appended to the commands of the stages with ``overrides: true``, such as ``training.batch_size=4``."""

    _source: Path = PrivateAttr(default=Path())
    _tree: Path | None = PrivateAttr(default=None)  # a local repository that lies elsewhere than the file says

    @field_validator("stages")
    @classmethod
    def _distinct_stages(cls, stages: list[Stage]) -> list[Stage]:
        if not stages:
            raise ValueError("must name at least one stage")
        return _linked(_distinct(stages, "stage"))

    @model_validator(mode="after")
    def _known_pools(self) -> Workload:
        for stage in self.stages:
            if stage.pool not in self.pools and (self.pools or stage.pool != "main"):
                known = ", ".join(self.pools) or "none"
                raise ValueError(f"has no pool {stage.pool!r}, which stage {stage.name} names; its pools are: {known}")
        return self

    @model_validator(mode="after")
    def _volumes(self) -> Workload:
        check_volumes(self.volumes, self.sizes, max(self.pool(pool).nodes for pool in self.pool_names))
        return self

    @model_validator(mode="after")
    def _apart(self) -> Workload:
        taken = _RESERVED | self.environment.set.keys() | set(self.environment.required)
        for name in self.parameters:
            if name.upper() in taken or name.startswith("gpuyard_"):
                raise ValueError(
                    f"has the parameter {name}, and its variable {name.upper()} is also set elsewhere; rename it"
                )
        if self.overrides and not any(stage.overrides for stage in self.stages):
            raise ValueError(f"has overrides ({self.overrides[0]}, …), and no stage takes them with overrides: true")
        return self

    @model_validator(mode="after")
    def _lean_for_pantograph(self) -> Workload:
        if self.pantograph is not None and self.lean is None:
            raise ValueError("has pantograph and no lean, whose toolchain builds it: add lean.toolchain or lean.file")
        return self

    @model_validator(mode="after")
    def _kept_data(self) -> Workload:
        data.check_places(data.places(self.weights, self.datasets), self.persist.directories)
        return self

    @model_validator(mode="after")
    def _monitored(self) -> Workload:
        if self.monitoring is not None:
            secrets = {*self.environment.required, *self.environment.optional}
            self.monitoring.check([stage.name for stage in self.stages], secrets, self.persist.root)
        return self

    @field_validator("profiles")
    @classmethod
    def _few_profiles(cls, profiles: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        # Each of them is checked over the whole file, which must not keep the plan busy.
        if len(profiles) > MOST_PROFILES:
            raise ValueError(f"must be at most {MOST_PROFILES}, not {len(profiles)}")
        return profiles

    @field_validator("windows")
    @classmethod
    def _distinct_windows(cls, windows: list[Window]) -> list[Window]:
        return _distinct(windows, "window")

    def pool(self, name: str) -> Pool:
        """Return a pool with everything said: what it leaves out is the workload's."""
        said = self.pools.get(name) or Pool()
        return Pool(needs=said.needs or self.needs, market=said.market or self.market, nodes=said.nodes)

    @property
    def pool_names(self) -> tuple[str, ...]:
        """The pools whose nodes run a stage, in the order of their first stages."""
        return tuple(dict.fromkeys(stage.pool for stage in self.stages))

    @property
    def source(self) -> Path:
        """The file that this was read from."""
        return self._source

    @property
    def root(self) -> Path:
        """The folder that holds ``workloads/``: ``repository.path`` and ``environment.files`` are relative to it."""
        folder = self._source.absolute().parent
        return folder.parent if folder.name == "workloads" else folder

    @property
    def local_tree(self) -> Path | None:
        """The local repository, ``None`` for one that is cloned. Raises :class:`UsageError` when it is not there."""
        if self.repository.path is None:
            return None
        if self._tree is not None:
            return self._tree
        tree = self.root / _home(self.repository.path)
        if not tree.is_dir():
            raise UsageError(f"{self._source}: repository.path: there is no folder {tree}.")
        return tree

    @property
    def tree_rules(self) -> Rules:
        """Which files of the local repository go to the machine, besides git's own rules."""
        return Rules(tuple(self.repository.include), self.repository.submodules)

    def secret_files(self, env: Mapping[str, str]) -> dict[str, Path]:
        """Return the secret files of the controller by their variables, whether they are there or not.

        The variable in ``env`` comes before the path of the workload, which may be another controller's. A file that
        neither names is left out.
        """
        named = {name: env.get(name) or path for name, path in self.environment.files.items()}
        return {name: self.root / _home(path) for name, path in named.items() if path}

    def query(
        self, *, max_price_per_hour_usd: float | None = None, market: str | None = None, needs: Needs | None = None
    ) -> Query:
        """Return what to ask the market for.

        The lower of the file's and the given price limit (USD an hour) counts; ``market`` and ``needs`` replace the
        file's.
        """
        asked = needs or self.needs
        wanted = market or self.market_of()[0]
        if wanted not in ("on-demand", "interruptible", "any"):
            raise UsageError(f"market={wanted!r} is not known; choose one of: on-demand, interruptible, any.")
        limits = [limit for limit in (self.budget.max_price_per_hour, max_price_per_hour_usd) if limit is not None]
        kinds: dict[str, Market | Literal["any"]] = {
            "on-demand": "on-demand",
            "interruptible": "interruptible",
            "any": "any",
        }
        needed = Query(
            gpu_count=asked.gpu_count,
            gpu_ram_gb=asked.gpu_ram_gb,
            most_gpu_ram_gb=asked.most_gpu_ram_gb,
            gpu_names=tuple(asked.gpu_names),
            cpu_cores=asked.cpu_cores,
            ram_gb=asked.ram_gb,
            disk_gb=asked.disk_gb,
            cuda=asked.cuda,
            driver=asked.driver,
            compute_capability=asked.compute_capability,
            reliability=asked.reliability,
            internet_mbit_s=asked.internet_mbit_s,
            static_ip=asked.static_ip,
            data_center=asked.data_center,
            regions=tuple(asked.regions),
            countries=tuple(asked.countries),
            market=kinds[wanted],
            max_price_per_hour_usd=min(limits, default=None),
            bid_times=self.bid.times if self.bid else 1.0,
            bid_at_most_usd=self.bid.at_most_usd_per_hour if self.bid else None,
            rank=asked.prefer,
        )
        return replace(needed, alternatives=tuple(map(partial(_instead, needed), asked.alternatives)))

    def left(self, done: Collection[tuple[int, str]] = ()) -> list[Stage]:
        """Return the stages that are still to run in some iteration; ``done`` are pairs of iteration and stage name."""
        through = Counter(stage for iteration, stage in set(done) if 0 <= iteration < self.iterations)
        return [stage for stage in self.stages if through[stage.name] < stage.times(self.iterations)]

    def market_of(
        self, done: Collection[tuple[int, str]] = (), pools: Collection[str] | None = None
    ) -> tuple[str, str]:
        """Return the market that suits every stage (of ``pools``) that is still to run, and in words which decides it.

        All these stages share a machine, so one stage that wants an on-demand machine decides for all that are
        left; once it is ``done`` (pairs of iteration and stage name), the others may go on on an interruptible one.
        """
        left = {
            stage.name: stage.market or self.pool(stage.pool).market
            for stage in self.left(done)
            if pools is None or stage.pool in pools
        }
        for wanted in ("on-demand", "interruptible"):
            names = [name for name, market in left.items() if market == wanted]
            if names and self.market != wanted:
                verb = "asks" if len(names) == 1 else "ask"
                return wanted, f"Market {wanted}, because {' and '.join(names)} {verb} for it."
            if names:
                return wanted, ""
        return "any", ""

    def missing_environment(self, env: Mapping[str, str]) -> list[str]:
        """Return the required variables that are unset or empty in ``env``."""
        entries: list[data.Weights | data.Dataset] = [*self.weights.values(), *self.datasets.values()]
        wanted = [*self.environment.required, *(name for entry in entries for name in entry.variables())]
        return [name for name in dict.fromkeys(wanted) if not env.get(name)]

    def check_environment(self, env: Mapping[str, str]) -> None:
        """Raise :class:`UsageError`, naming every required variable that is not set."""
        if missing := self.missing_environment(env):
            raise UsageError(
                f"Workload {self.name} needs {', '.join(missing)} in the environment of this machine. "
                "Nothing was rented."
            )
        credentials = self.repository.credentials
        if credentials and (lack := credentials.missing(env)):
            raise UsageError(f"{self._source}: repository.credentials: {lack}. Nothing was rented.")
        files = self.secret_files(env)
        for name in self.environment.files:
            if name not in files:
                raise UsageError(
                    f"{self._source}: environment.files: {name} has no path here, so {name} must name the file in the "
                    "environment of this machine. Nothing was rented."
                )
            if why := _why_no_secret_file(files[name]):
                raise UsageError(f"{self._source}: environment.files: {name}: {why}. Nothing was rented.")

    @property
    def order(self) -> list[tuple[int, str]]:
        """Every stage of every iteration, in the order in which they run, as the machine has it."""
        return spec.order_of(self.stages, self.iterations)

    def to_box(self) -> dict[str, object]:
        """Return what the box gets to know, as JSON-able values: what is listed here, with everything written out.

        It holds no secret and no path of the controller. Prices and estimates stay here: changing one must not make a
        box look different from its workload.
        """
        box = self.model_dump(
            mode="json",
            by_alias=True,
            include={**dict.fromkeys(_TO_BOX, True), **_PARTS_TO_BOX, "stages": {"__all__": _STAGE_TO_BOX}},
        )
        box |= data.to_box(self.weights, self.datasets)
        box["environment"]["set"] = data.stage_environment(self.weights, self.persist.root) | self.environment.set
        # In one transaction with the workload's own, which takes seconds less than another one.
        needed = self.lean.system_packages if self.lean else []
        box["packages"] += [name for name in needed if name not in self.packages]
        # They come first: no rule for a folder around them may send them to the bucket.
        box["persist"]["rules"] = data.rules(data.places(self.weights, self.datasets)) + box["persist"]["rules"]
        return box | {"parameters": {name.upper(): as_text(entry.current) for name, entry in self.parameters.items()}}


# An allow-list, so that a key that is added stays on the controller until somebody says that the box needs it.
_TO_BOX = (
    *("name", "packages", "python", "rust", "build", "persist", "checkpoints", "iterations", "windows", "overrides"),
    *("logs", "lean", "pantograph", "cuda", "health", "volumes", "monitoring"),
)
# Where things lie on this machine says nothing about the box.
_PARTS_TO_BOX: Any = {
    "repository": {"url", "commit", "submodules", "include", "credentials"},
    "environment": {"required", "optional", "set"},
    "volumes": {"__all__": {"mount", "source", "size_gb", "file_system"}},
}
_STAGE_TO_BOX: Any = {
    **dict.fromkeys(("name", "command", "resume_command", "resume_if", "resumable", "run", "pool"), True),
    **dict.fromkeys(("grace_s", "timeout", "silent", "retries", "environment", "overrides"), True),
    **dict.fromkeys(("retry_wait_s", "restart_on", "after", "needed", "progress"), True),
    "first": {"command", "resume_command", "environment"},
}


def _home(path: str) -> Path:
    """Return the path with ``~`` as the user's home; raise :class:`UsageError` when there is none of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: nobody of that name has a home on this machine.") from None


def _why_no_secret_file(path: Path) -> str:
    """Return why a file cannot be sent as a secret, ``""`` when it can."""
    if not path.is_file():
        return f"there is no file {path}"
    if path.stat().st_size > _MOST_SECRET_BYTES:
        return f"{path} is larger than {_MOST_SECRET_BYTES // 1000} kB, so it is no secret but data"
    return "" if os.access(path, os.R_OK) else f"{path} cannot be read"


def _distinct[Named: (Stage, Window)](items: list[Named], what: str) -> list[Named]:
    if twice := _twice(item.name for item in items):
        raise ValueError(f"must not have two {what}s of the same name: {', '.join(twice)}")
    return items


def _linked(stages: list[Stage]) -> list[Stage]:
    """Return the stages, whose ``after`` name one another without a circle, and no needed one after one that is not."""
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        for name in stage.after or ():
            if name not in by_name:
                known = ", ".join(by_name)
                raise ValueError(f"has stage {stage.name} after {show(name)}, which is no stage; they are: {known}")
            if stage.needed and not by_name[name].needed:
                raise ValueError(
                    f"has stage {stage.name} after {name}, which may fail (needed: false), so {stage.name} has to be "
                    "needed: false as well"
                )
    try:
        spec.arranged(stages)
    except UsageError as error:
        raise ValueError(f"has a circle. {error}") from None
    return stages


def json_schema() -> str:
    """Return the format of a workload as a JSON Schema, for editors; ``gpuyard schema`` prints it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Workload.model_json_schema(by_alias=True)}
    return json.dumps(schema | {"title": "A workload of gpuyard"}, indent=2) + "\n"
