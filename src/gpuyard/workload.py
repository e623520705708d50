"""Workloads: what is to be trained, with what, on what kind of machine, and what it may cost.

A workload is a YAML file. It is checked completely before anything is rented, and every mistake in it is reported with
file, line and key, all of them at once.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

import gpuyard
from gpuyard import paths, repository
from gpuyard.box.stages.folders import why_not
from gpuyard.errors import UsageError, listed
from gpuyard.formats.label import check_name
from gpuyard.providers.base import Market, Query

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSION = re.compile(r"\d+(\.\d+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONSTRAINT = re.compile(r"\s*(?:(?:==|!=|<=|>=|~=|<|>)\s*\d+(?:\.\d+)*(?:\.\*)?\s*(?:,\s*(?!$)|$))+")
_SUFFIXES = (".yml", ".yaml")
_SHOWN = 60  # characters of a wrong value that go into a message
# A workload of some hundred lines is a long one; what is far beyond is a mistake, and must not keep the plan busy.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 20_000
_MOST_DEPTH = 64
_MOST_ITERATIONS = 100_000
_MOST_MISTAKES = 20


# -- values: every rule in one place, every message in the same form -------------------------------------------------


def _show(value: object) -> str:
    """Return a wrong value for a message; text in quotes, as in YAML."""
    if isinstance(value, int) and value.bit_length() > _SHOWN * 4:
        return "a number that long"
    shown = {None: "nothing", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    shown = shown or (repr(value) if isinstance(value, str | int | float) else f"a {_kind(value)}")
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, dict) else type(value).__name__


def _number(value: object, wanted: str, *, least: float = 0.0, above: bool = False, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be {wanted}, not {_show(value)}")
    if not (value > least if above else value >= least) or value > most:
        raise ValueError(f"must be {wanted}, not {_show(value)}")
    return float(value)


def _positive(value: object) -> float:
    return _number(value, "a positive number", above=True)


def _not_negative(value: object) -> float:
    return _number(value, "a number that is not negative")


def _share(value: object) -> float:
    return _number(value, "a number from 0 to 1", most=1.0)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number that is not negative, not {_show(value)}")
    return value


def _positive_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of at least 1, not {_show(value)}")
    return value


def _iterations(value: object) -> int:
    count = _positive_count(value)
    if count > _MOST_ITERATIONS:
        raise ValueError(f"must be at most {_MOST_ITERATIONS}, not {_show(value)}; more belong into a stage's own loop")
    return count


def _words(value: object) -> str:
    if not isinstance(value, str):
        # The number itself is no help here: YAML has already made 3.1 of an unquoted 3.10.
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
        raise ValueError(f"must be text, not {_show(value)}{hint}")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _some_words(value: object) -> str:
    text = _words(value)
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_show(value)}")
    return value


def _version(value: object) -> str:
    text = _some_words(value)
    if not _VERSION.fullmatch(text):
        raise ValueError(f"must be a version such as '1.85', not {_show(value)}")
    return text


def _constraint(value: object) -> str:
    text = _some_words(value)
    if not _CONSTRAINT.fullmatch(text):
        raise ValueError(f"must be a version condition such as '>=3.10,<3.14', not {_show(value)}")
    return text


def _variable(value: object) -> str:
    text = _some_words(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"must be the name of an environment variable, not {_show(value)}")
    return text


def _name(value: object) -> str:
    text = _some_words(value)
    try:
        return check_name(text, option="name")
    except UsageError:
        raise ValueError(
            f"must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter, not {_show(value)}"
        ) from None


def _absolute(value: object) -> str:
    text = _some_words(value)
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/") == "":
        raise ValueError(f"must be an absolute path below /, without '..', not {_show(value)}")
    return text.rstrip("/")


def _folder(value: object) -> str:
    path = PurePosixPath(_relative(value))
    if not path.parts:
        raise ValueError(f"must be a folder inside the repository, such as 'models', not {_show(value)}")
    if path.parts[0] == ".gpuyard":
        raise ValueError("must not be .gpuyard, where gpuyard keeps its journal and logs")
    return str(path)


def _url(value: object) -> str:
    text = _some_words(value)
    if reason := repository.why_not(text):
        raise ValueError(reason)
    return text


def _persistent(value: object) -> str:
    text = _absolute(value)
    if reason := why_not(text, here=False):
        raise ValueError(reason)
    return posixpath.normpath("/" + text.lstrip("/"))


def _relative(value: object) -> str:
    text = _some_words(value)
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(f"must be a relative path without '..', not {_show(value)}")
    return text.rstrip("/")


Url = Annotated[str, BeforeValidator(_url)]
Folder = Annotated[str, BeforeValidator(_folder)]
Positive = Annotated[float, BeforeValidator(_positive)]
NotNegative = Annotated[float, BeforeValidator(_not_negative)]
Share = Annotated[float, BeforeValidator(_share)]
Count = Annotated[int, BeforeValidator(_count)]
PositiveCount = Annotated[int, BeforeValidator(_positive_count)]
Iterations = Annotated[int, BeforeValidator(_iterations)]
Words = Annotated[str, BeforeValidator(_words)]
SomeWords = Annotated[str, BeforeValidator(_some_words)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Version = Annotated[str, BeforeValidator(_version)]
Constraint = Annotated[str, BeforeValidator(_constraint)]
Variable = Annotated[str, BeforeValidator(_variable)]
Name = Annotated[str, BeforeValidator(_name)]
PersistentRoot = Annotated[str, BeforeValidator(_persistent)]
RelativePath = Annotated[str, BeforeValidator(_relative)]


class _Part(BaseModel):
    """A mapping of the file; a key that is not listed is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Repository(_Part):
    """Where the code comes from: a local tree or a Git repository at a commit."""

    path: RelativePath | None = None  # relative to the folder that holds workloads/
    url: Url | None = None
    commit: Words | None = None
    submodules: Switch = False

    @field_validator("commit")
    @classmethod
    def _whole_commit(cls, commit: str | None) -> str | None:
        if commit is not None and not _COMMIT.fullmatch(commit):
            raise ValueError(f"must be a commit of 40 hexadecimal digits, not {_show(commit)}")
        return commit

    @model_validator(mode="after")
    def _one_source(self) -> Repository:
        if (self.path is None) == (self.url is None):
            raise ValueError("must have either path (a local tree) or url and commit")
        if (self.url is None) != (self.commit is None):
            raise ValueError("must have url and commit together, so that a run can be repeated")
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


class Budget(_Part):
    """What it may cost."""

    max_price_per_hour: Positive | None = None  # USD, all-in


class Environment(_Part):
    """Variables of the stages. ``required`` ones come from the controller's environment and count as secret."""

    required: list[Variable] = []
    set: dict[Variable, Words] = {}


class Python(_Part):
    """The Python environment of the stages."""

    version: Constraint = ">=3.10"
    requirements: RelativePath | None = None  # a file in the repository


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

    @field_validator("windows")
    @classmethod
    def _distinct_windows(cls, windows: list[Window]) -> list[Window]:
        return _distinct(windows, "window")

    @property
    def source(self) -> Path:
        """The file that this was read from."""
        return self._source

    @property
    def root(self) -> Path:
        """The folder that ``repository.path`` is relative to: the one that holds ``workloads/``."""
        folder = self._source.absolute().parent
        return folder.parent if folder.name == "workloads" else folder

    @property
    def local_tree(self) -> Path | None:
        """The local repository, ``None`` for one that is cloned. Raises :class:`UsageError` when it is not there."""
        if self.repository.path is None:
            return None
        tree = self.root / self.repository.path
        if not tree.is_dir():
            raise UsageError(f"{self._source}: repository.path: there is no folder {tree}.")
        return tree

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

    def to_box(self) -> dict[str, object]:
        """Return what the box gets to know, as JSON-able values. It holds no secret and no path of the controller."""
        return self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("needs", "market", "budget", "setup_hours", "image", "description"), True),
                # Prices and estimates stay here: changing one must not make a box look different from its workload.
                "stages": {"__all__": {"hours", "market"}},
            },
        )


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _distinct[Named: (Stage, Window)](items: list[Named], what: str) -> list[Named]:
    if twice := _twice(item.name for item in items):
        raise ValueError(f"must not have two {what}s of the same name: {', '.join(twice)}")
    return items


# -- files -----------------------------------------------------------------------------------------------------------


def load_workload(name_or_path: str, *, root: Path | None = None) -> Workload:
    """Return the workload of that name or file, checked.

    A path is what holds a slash or ends in ``.yml``; a name is looked for in ``workloads/`` below ``root`` (when
    given), the working directory, gpuyard's home and the collection, in this order. Raises :class:`UsageError` that
    lists what is known, or every mistake of the file with its line and key.
    """
    path = _find(name_or_path, root)
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"The workload {path} cannot be read: {reason}.") from None
    workload = parse_workload(content, _short(path))
    workload._source = path
    return workload


def parse_workload(content: str, source: str) -> Workload:
    """Return the workload that ``content`` describes; ``source`` is its name in messages."""
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{source}: a workload has at most {_MOST_BYTES // 1000} kB.")
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        lines = dict(_lines(node)) if node is not None else {}
        doubles = list(_doubles(node, source)) if node is not None else []
        values = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{source}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}:1: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        # What is no workload may be anything, so it is not quoted.
        kind = "text" if isinstance(values, str) else _show(values)
        raise UsageError(f"{source}:1: a workload is a mapping of keys, not {kind}.")
    try:
        workload = Workload.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    else:
        if not doubles:
            return workload
        found = []
    placed = sorted(((_line_of(_place(item["loc"]), lines), item) for item in found), key=lambda one: one[0])
    # Guessing what was meant takes its time, so only what is shown is worded.
    mistakes = doubles + [_mistake(item, lines, source) for _, item in placed[:_MOST_MISTAKES]]
    texts = [text for _, text in sorted(mistakes)]
    raise UsageError(listed(texts, _MOST_MISTAKES, of=len(doubles) + len(found)))


class _Loader(yaml.SafeLoader):
    """Reads YAML of a size that a workload can have, with every alias counted as what it stands for.

    A few lines of aliases to aliases would otherwise become more values than fit into any memory.
    """

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self._depth = 0
        self._values = 0
        self._sizes: dict[str, int] = {}  # of what an alias stands for, by its name

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one value, as the base does, and refuse what is too deep, too much, or holds itself."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        alias = event.anchor if isinstance(event, yaml.AliasEvent) else None
        if alias is not None and alias in self.anchors and alias not in self._sizes:
            raise yaml.MarkedYAMLError(problem=f"{alias!r} holds itself", problem_mark=mark)
        before = self._values
        self._values += self._sizes.get(alias, 1) if alias is not None else 1
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_DEPTH} levels deep", problem_mark=mark)
        if self._values > _MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MOST_VALUES} values, aliases counted as what they stand for", problem_mark=mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias is None and getattr(event, "anchor", None):
            self._sizes[event.anchor] = self._values - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of ``node``, as the base does; what looks like a date or number and is none has a line."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # all of them come from PyYAML
            problem = "this looks like a date or a number, but is none; put it in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def known_workloads(root: Path | None = None) -> dict[str, Path]:
    """Return the workloads that can be named, with their files; what is found first wins."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        for path in sorted(folder.glob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                found.setdefault(path.stem, path)
    return found


def _find(name_or_path: str, root: Path | None) -> Path:
    if "/" in name_or_path or name_or_path.endswith(_SUFFIXES):
        path = Path(name_or_path).expanduser()
        if path.suffix not in _SUFFIXES:
            # Messages show parts of a workload file, and any other file may hold what is not to be shown.
            raise UsageError(f"workload={name_or_path}: a workload is a file whose name ends in .yml or .yaml.")
        if not path.is_file():
            raise UsageError(f"workload={name_or_path}: there is no such file.")
        return path
    known = known_workloads(root)
    if name_or_path in known:
        return known[name_or_path]
    guess = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f" Did you mean {guess[0]}?" if guess else ""
    listed = f"known are: {', '.join(sorted(known))}" if known else f"there are none in {_folders(root)[0]}"
    raise UsageError(f"workload={name_or_path!r} is not known; {listed}.{hint}")


def _folders(root: Path | None) -> list[Path]:
    """Return where workloads are looked for. The last two are the checkout and the collection inside the wheel."""
    package = Path(gpuyard.__file__).resolve().parent
    bases = [
        *([root] if root else []),
        Path.cwd(),
        paths.home(),
        package.parent.parent,
        package.parent / "ansible_collections" / "gpuyard" / "cloud",
    ]
    return [base / "workloads" for base in bases]


def _short(path: Path) -> str:
    """Return the path relative to the working directory where it is below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# -- mistakes --------------------------------------------------------------------------------------------------------

Place = tuple[str | int, ...]


def _lines(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Yield the line (from 1) of every key and list item; a mapping's own entry is the line of its key."""
    if not place:
        yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*place, index)
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)


def _doubles(node: yaml.Node, source: str, place: Place = ()) -> Iterator[tuple[int, str]]:
    """Yield a mistake for every key that a mapping has twice: YAML would silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                dotted = _dotted((*place, name))
                yield line, f"{source}:{line}: {dotted}: is here a second time, first in line {seen[name]}"
            seen.setdefault(name, line)
            yield from _doubles(value, source, (*place, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubles(value, source, (*place, index))


def _place(location: Place) -> Place:
    return location[:-1] if location and location[-1] == "[key]" else location


def _mistake(item: ErrorDetails, lines: Mapping[Place, int], source: str) -> tuple[int, str]:
    """Return one mistake of the model as its line and the sentence that tells it."""
    kind, value = item["type"], item["input"]
    place = _place(item["loc"])
    line = _line_of(place, lines)
    if kind == "extra_forbidden":
        siblings = _keys_at(place[:-1])
        guess = difflib.get_close_matches(str(place[-1])[:_SHOWN], siblings, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else f"; known are: {', '.join(sorted(siblings))}"
        said = f"is not a key here{hint}"
    elif kind == "missing":
        said = "is missing"
        line = _line_of(place[:-1], lines)
    elif kind == "literal_error":
        said = f"must be on-demand, interruptible or any, not {_show(value)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        said = f"must be a mapping of keys, not {_show(value)}"
    elif kind == "list_type":
        said = f"must be a list, not {_show(value)}"
    else:
        said = item["msg"].removeprefix("Value error, ")
    return line, f"{source}:{line}: {_dotted(place)}: {said}"


def _line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Return the line of ``place`` or of the nearest thing around it that the file has."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _dotted(place: Iterable[str | int]) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the file"


def _keys_at(place: Sequence[str | int]) -> list[str]:
    """Return the keys that the model knows at ``place``."""
    model: type[BaseModel] = Workload
    for step in place:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(str(step))
        inner = list(_parts(field.annotation)) if field else []
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _parts(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the model classes in a field's type: ``Rust | None``, ``list[Stage]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)
