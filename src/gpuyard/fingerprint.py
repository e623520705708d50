"""The fingerprint of a machine's wanted state, by which a converged machine is recognised in one round trip.

It consists of parts, so that a machine that differs is brought into shape only where it differs. A part covers what
decides what the roles would do for it: the files of the roles in use that act, the modules that they run, and the
workload's values that they are given. Documents, roles that this workload does not use, the run's name, its bucket and
its secrets are in none: a machine booted from a prepared image, or set up for an earlier run, is recognised as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpuyard
from gpuyard import boxzip


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a machine's wanted state, and where it comes from."""

    name: str
    words: str
    """What it is called for people."""
    role: str
    """The role that brings a machine to it."""
    keys: tuple[str, ...]
    """What of the workload's specification for the box the role is given."""
    with_tree: bool = False
    """Whether the content of the local repository counts."""
    beside: bool = True
    """Whether it can be prepared beside what a running stage uses. Else it waits until no stage runs."""


PARTS = (
    Part("base", "the base system", "base", ("packages",)),
    Part("volumes", "the volumes", "nvme", ("volumes",)),
    Part("rust", "the Rust toolchain", "rust", ("rust",)),
    Part("cuda", "CUDA", "cuda", ("cuda",)),
    Part("repository", "the repository", "workload", ("repository",), with_tree=True),
    # The toolchain may be named, and Pantograph's source held, by a file of the repository.
    Part("lean", "the Lean toolchain", "lean", ("lean",), with_tree=True),
    Part("python", "the Python environment", "python_env", ("python",)),
    Part("build", "the build", "workload", ("build", "environment.set")),
    Part("persist", "the persistent folders", "persistent_storage", ("persist.root", "persist.directories")),
    Part("pantograph", "Pantograph", "pantograph", ("pantograph",), with_tree=True, beside=False),
    Part("weights", "the model weights", "model_weights", ("weights", "persist.root"), beside=False),
    Part("datasets", "the data sets", "dataset", ("datasets", "persist.root"), beside=False),
    Part("monitoring", "what monitoring needs", "monitoring", ("monitoring",)),
    Part("health", "the health of the machine", "health", ("health",)),
)
"""The parts that a workload decides, in the order in which a machine gets them.

A part whose first key is unset is left out: the workload does not use it. A role that is added gets a row here, its
keys a place in the workload's ``to_box``, and a block in playbooks/tasks/converge.yml.
"""
OWN = Part("gpuyard", "gpuyard's own code", "checkpoints", (), beside=False)
"""The part that is the same for every workload."""
WORDS = {part.name: part.words for part in (*PARTS, OWN)} | {"stages": "the stages and their settings"}
"""What each part is called for people."""
# A part that a workload leaves empty is a state too: nothing is to be built, no folder is kept.
_ALWAYS = ("base", "repository", "build", "persist")

# What of a role acts; the rest of it are documents.
_ACTING = ("tasks", "handlers", "defaults", "vars", "templates", "files", "meta/main.yml")
_TASKS = "playbooks/tasks/converge.yml"
_OURS = re.compile(r"gpuyard\.cloud\.(\w+)")
_SHARED = re.compile(r"module_utils(?: import |\.)(\w+)")
_PLUGINS = ("modules", "action", "lookup")


def collection_root() -> Path | None:
    """Return the folder of the collection that belongs to this package (checkout or wheel), or ``None``."""
    package = Path(gpuyard.__file__).resolve().parent
    for root in (package.parents[1], package.parent / "ansible_collections" / "gpuyard" / "cloud"):
        if (root / "galaxy.yml").is_file() and (root / "roles").is_dir():
            return root
    return None


def parts(box: Mapping[str, Any], tree_digest: str = "") -> dict[str, str]:
    """Return the SHA-256 of each part of the state that the roles would bring a machine to.

    ``box`` is the workload's specification for the box (:meth:`gpuyard.workload.Workload.to_box`), ``tree_digest`` the
    digest of the local repository's content, empty for a repository that is fetched at a fixed commit. A part that the
    workload does not use (Rust, Python) is left out.
    """
    root = collection_root()
    found: dict[str, str] = {}
    for part in _used(box):
        value = [_value(box, key) for key in part.keys]
        found[part.name] = _digest([value, tree_digest if part.with_tree else "", _role_content(root, part.role)])
    found[OWN.name] = _digest([hashlib.sha256(boxzip.content()).hexdigest(), _role_content(root, OWN.role)])
    # What a role is given whole says nothing more to the stages.
    taken = {key for part in PARTS for key in part.keys}
    found["stages"] = _digest({name: value for name, value in box.items() if name not in taken})
    return found


def not_beside() -> list[str]:
    """Return the names of the parts that wait until no stage runs, whether or not a workload uses them."""
    return [part.name for part in (*PARTS, OWN) if not part.beside]


def modules(box: Mapping[str, Any]) -> list[str]:
    """Return the modules that the roles send to a machine to bring it to the state of ``box``, in that order.

    With an empty ``box`` they are those that every workload needs.
    """
    root = collection_root()
    if root is None:
        return []
    paths = (path for part in (*_used(box), OWN) for path in _acting(root, part.role, set()))
    return list(dict.fromkeys(path.stem for path in paths if path.parent == root / "plugins" / "modules"))


def _used(box: Mapping[str, Any]) -> list[Part]:
    """Return the parts that a workload uses."""
    return [part for part in PARTS if part.name in _ALWAYS or _value(box, part.keys[0])]


def _value(box: Mapping[str, Any], key: str) -> Any:
    value: Any = box
    for word in key.split("."):
        value = (value or {}).get(word)
    return value


def fingerprint(parts: Mapping[str, str]) -> str:
    """Return one SHA-256 over all parts."""
    return _digest(dict(parts))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _role_content(root: Path | None, role: str) -> str:
    """Return a digest of everything that acts when ``role`` brings a machine into shape, "" without the collection."""
    if root is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted({root / _TASKS, *_acting(root, role, set())}):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _acting(root: Path, role: str, seen: set[str]) -> Iterator[Path]:
    """Yield the files of ``role`` that act, those of the roles that it includes, and the plugins that they all use."""
    seen.add(role)
    named: set[str] = set()
    for part in _ACTING:
        place = root / "roles" / role / part
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
                named |= set(_OURS.findall(path.read_text(encoding="utf-8", errors="replace")))
    for name in sorted(named):
        if (root / "roles" / name).is_dir() and name not in seen:
            yield from _acting(root, name, seen)
        for kind in _PLUGINS:
            plugin = root / "plugins" / kind / f"{name}.py"
            if plugin.is_file():
                yield plugin
                for shared in _SHARED.findall(plugin.read_text(encoding="utf-8")):
                    helper = root / "plugins" / "module_utils" / f"{shared}.py"
                    if helper.is_file():
                        yield helper
