"""Reading workload files: found by name or path, and of a size that a workload can have."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import gpuyard
from gpuyard import paths
from gpuyard.errors import UsageError
from gpuyard.workload.mistakes import Place, lines_of, named_twice
from gpuyard.workload.values import show

SCHEMA = 1
"""The version of the format that is read here."""

_SUFFIXES = (".yml", ".yaml")
# A workload of some hundred lines is a long one; what is far beyond is a mistake, and must not keep the plan busy.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 20_000
_MOST_DEPTH = 64


@dataclass(frozen=True)
class Document:
    """A workload file as it was read, not yet checked. ``doubles`` are the keys that it has twice, with their lines."""

    values: dict[str, Any]
    source: str
    path: Path = Path()
    lines: Mapping[Place, int] = field(default_factory=dict)
    doubles: tuple[tuple[int, str], ...] = ()


def read(name_or_path: str, root: Path | None = None) -> Document:
    """Read the workload file of that name or path, which :func:`gpuyard.workload.resolve` finds and checks."""
    path = _find(name_or_path, root)
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"The workload {path} cannot be read: {reason}.") from None
    return dataclasses.replace(parse(content, _short(path)), path=path)


def parse(content: str, source: str) -> Document:
    """Read a workload from text; ``source`` is its name in messages."""
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{source}: a workload has at most {_MOST_BYTES // 1000} kB.")
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        lines = dict(lines_of(node)) if node is not None else {}
        doubles = tuple(named_twice(node, source)) if node is not None else ()
        values = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{source}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}:1: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        # What is no workload may be anything, so it is not quoted.
        kind = "text" if isinstance(values, str) else show(values)
        raise UsageError(f"{source}:1: a workload is a mapping of keys, not {kind}.")
    version = values.get("schema", SCHEMA)
    # The keys of another version may be others altogether, so nothing else is said of such a file.
    if version != SCHEMA or isinstance(version, bool):
        raise UsageError(f"{source}:{lines.get(('schema',), 1)}: schema: {other_schema(version)}")
    return Document(values, source, lines=lines, doubles=doubles)


def other_schema(version: object) -> str:
    """Return what there is to say of a workload that is not of our version."""
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA:
        return (
            f"this workload is of version {version}, which a newer gpuyard than {gpuyard.__version__} reads; "
            f"this one reads version {SCHEMA}."
        )
    return f"must be the number of the format's version, which is {SCHEMA}, not {show(version)}."


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
