"""What a workload file may say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    field_validator,
    model_validator,
)

from gpuyard.errors import UsageError
from gpuyard.providers.base import Market, Query
from gpuyard.tree import Rules
from gpuyard.workload.values import (
    COMMIT,
    Constraint,
    Count,
    Extra,
    Folder,
    Iterations,
    Name,
    NotNegative,
    Pattern,
    PersistentRoot,
    Positive,
    PositiveCount,
    RelativePath,
    Share,
    SomeWords,
    Switch,
    Url,
    Variable,
    Version,
    Words,
    show,
)

_MOST_SECRET_BYTES = 100_000


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


class _Part(BaseModel):
    """A mapping of the file; a key that is not listed is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Repository(_Part):
    """Where the code comes from: a local tree or a Git repository at a commit."""

    path: SomeWords | None = None
    """A folder of the controller: absolute, below ``~``, or relative to the one that holds ``workloads/``. What git
    ignores, and what its ``.gpuyardignore`` names, is left out."""
    include: list[Pattern] = []
    """Patterns, as in ``.gitignore`` but from the repository's root on, of ignored files that come all the same."""
    url: Url | None = None
    commit: Words | None = None
    submodules: Switch = False

    @field_validator("commit")
    @classmethod
    def _whole_commit(cls, commit: str | None) -> str | None:
        if commit is not None and not COMMIT.fullmatch(commit):
            raise ValueError(f"must be a commit of 40 hexadecimal digits, not {show(commit)}")
        return commit

    @model_validator(mode="after")
    def _one_source(self) -> Repository:
        if (self.path is None) == (self.url is None):
            raise ValueError("must have either path (a local tree) or url and commit")
        if (self.url is None) != (self.commit is None):
            raise ValueError("must have url and commit together, so that a run can be repeated")
        if self.include and self.url:
            raise ValueError("must not have include with url: a machine that fetches the commit has nothing else")
        return self


class Needs(_Part):
    """What the machine has to offer; see :class:`gpuyard.providers.base.Query` for the units."""

    gpu_count: Positive = 1.0
    gpu_ram_gb: Positive | None = None
    gpu_names: list[SomeWords] = []
    cpu_cores: Positive | None = None
    ram_gb: Positive | None = None
    disk_gb: Positive = 20.0
    cuda: Version | None = None
    reliability: Share | None = None
    regions: list[SomeWords] = []


class Pool(_Part):
    """A named group of nodes with the same needs and market. What it does not say is the workload's."""

    needs: Needs | None = None
    market: Literal["on-demand", "interruptible", "any"] | None = None
    nodes: PositiveCount = 1


class Budget(_Part):
    """What it may cost."""

    max_price_per_hour: Positive | None = None  # USD, all-in


class Environment(_Part):
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


class Python(_Part):
    """The Python environment of the stages."""

    version: Constraint = ">=3.10"
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


class Rust(_Part):
    """The Rust toolchain."""

    version: Version
    minimum: Version | None = None  # an installed toolchain from here on is kept


class Persist(_Part):
    """Directories of the repository that outlive it: each is a link below ``root``."""

    root: PersistentRoot = "/mnt/persistent"
    directories: list[Folder] = []

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


class Checkpoints(_Part):
    """How often checkpoints are published and how many are kept."""

    every_s: Positive = 300.0
    keep_last: PositiveCount = 3
    keep_every: Count = 0  # besides, every so-many-th is kept for ever; 0: none


class Hours(_Part):
    """GPU hours."""

    expected: NotNegative
    worst: NotNegative

    @model_validator(mode="after")
    def _ordered(self) -> Hours:
        if self.worst < self.expected:
            raise ValueError("must have a worst that is not less than expected")
        return self


class Stage(_Part):
    """One named command of the iteration loop."""

    name: Name
    command: SomeWords
    resume_command: SomeWords | None = None
    resume_if: RelativePath | None = None  # a path or pattern below persist.root
    resumable: Switch = False
    grace_s: Positive = 30.0
    retries: Count = 0
    hours: Hours | None = None  # per iteration
    pool: Name = "main"  # on whose nodes it runs
    # The market whose machines it may run on; unset: the workload's. A long stage that cannot resume says on-demand.
    market: Literal["on-demand", "interruptible", "any"] | None = None

    @model_validator(mode="after")
    def _resume(self) -> Stage:
        if self.resume_command is not None and not self.resumable:
            raise ValueError("has a resume_command but resumable is not true")
        if self.resume_if is not None and self.resume_command is None:
            raise ValueError("has a resume_if but no resume_command")
        return self


class Window(_Part):
    """A tmux window beside the iteration's own."""

    name: Name
    command: SomeWords


class Workload(_Part):
    """A whole workload file, checked."""

    name: Name
    description: Words = ""
    repository: Repository
    needs: Needs = Needs()
    market: Literal["on-demand", "interruptible", "any"] = "any"
    pools: dict[Name, Pool] = {}  # none: one pool, main, of one node
    budget: Budget = Budget()
    image: Words = ""
    environment: Environment = Environment()
    packages: list[SomeWords] = []
    python: Python | None = None
    rust: Rust | None = None
    build: list[SomeWords] = []
    persist: Persist = Persist()
    checkpoints: Checkpoints = Checkpoints()
    iterations: Iterations = 1
    setup_hours: Hours = Hours(expected=0.1, worst=0.5)  # from rent to the first stage, for the estimate
    stages: list[Stage]
    windows: list[Window] = []  # none: the stage runner's own (GPU, log tail, disk)

    _source: Path = PrivateAttr(default=Path())

    @field_validator("stages")
    @classmethod
    def _distinct_stages(cls, stages: list[Stage]) -> list[Stage]:
        if not stages:
            raise ValueError("must name at least one stage")
        return _distinct(stages, "stage")

    @model_validator(mode="after")
    def _known_pools(self) -> Workload:
        for stage in self.stages:
            if stage.pool not in self.pools and (self.pools or stage.pool != "main"):
                known = ", ".join(self.pools) or "none"
                raise ValueError(f"has no pool {stage.pool!r}, which stage {stage.name} names; its pools are: {known}")
        return self

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

    def query(self, *, max_price_per_hour_usd: float | None = None, market: str | None = None) -> Query:
        """Return what to ask the market for.

        The lower of the file's and the given price limit (USD an hour) counts; ``market`` replaces the file's.
        """
        wanted = market or self.market_of()[0]
        if wanted not in ("on-demand", "interruptible", "any"):
            raise UsageError(f"market={wanted!r} is not known; choose one of: on-demand, interruptible, any.")
        limits = [limit for limit in (self.budget.max_price_per_hour, max_price_per_hour_usd) if limit is not None]
        kinds: dict[str, Market | Literal["any"]] = {
            "on-demand": "on-demand",
            "interruptible": "interruptible",
            "any": "any",
        }
        return Query(
            gpu_count=self.needs.gpu_count,
            gpu_ram_gb=self.needs.gpu_ram_gb,
            gpu_names=tuple(self.needs.gpu_names),
            cpu_cores=self.needs.cpu_cores,
            ram_gb=self.needs.ram_gb,
            disk_gb=self.needs.disk_gb,
            cuda=self.needs.cuda,
            reliability=self.needs.reliability,
            regions=tuple(self.needs.regions),
            market=kinds[wanted],
            max_price_per_hour_usd=min(limits, default=None),
        )

    def market_of(self, done: Collection[tuple[int, str]] = ()) -> tuple[str, str]:
        """Return the market that suits every stage that is still to run, and in words which stage decides it.

        All stages of a run share its machine, so one stage that wants an on-demand machine decides for all that are
        left; once it is ``done`` (pairs of iteration and stage name), the others may go on on an interruptible one.
        """
        through = Counter(stage for iteration, stage in set(done) if 0 <= iteration < self.iterations)
        left = {
            stage.name: stage.market or self.market for stage in self.stages if through[stage.name] < self.iterations
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
        return [name for name in self.environment.required if not env.get(name)]

    def check_environment(self, env: Mapping[str, str]) -> None:
        """Raise :class:`UsageError`, naming every required variable that is not set."""
        if missing := self.missing_environment(env):
            raise UsageError(
                f"Workload {self.name} needs {', '.join(missing)} in the environment of this machine. "
                "Nothing was rented."
            )
        files = self.secret_files(env)
        for name in self.environment.files:
            if name not in files:
                raise UsageError(
                    f"{self._source}: environment.files: {name} has no path here, so {name} must name the file in the "
                    "environment of this machine. Nothing was rented."
                )
            if why := _why_no_secret_file(files[name]):
                raise UsageError(f"{self._source}: environment.files: {name}: {why}. Nothing was rented.")

    def to_box(self) -> dict[str, object]:
        """Return what the box gets to know, as JSON-able values. It holds no secret and no path of the controller."""
        return self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("needs", "market", "pools", "budget", "setup_hours", "image", "description"), True),
                # Where things lie on this machine says nothing about the box.
                "repository": {"path"},
                "environment": {"files"},
                # Prices and estimates stay here: changing one must not make a box look different from its workload.
                "stages": {"__all__": {"hours", "market"}},
            },
        )


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
