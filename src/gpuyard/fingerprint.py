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
from pathlib import Path
from typing import Any

import gpuyard
from gpuyard import boxzip

WORDS = {
    "packages": "the system packages",
    "rust": "the Rust toolchain",
    "repository": "the repository",
    "python": "the Python environment",
    "build": "the build",
    "persist": "the persistent folders",
    "gpuyard": "gpuyard's own code",
    "stages": "the stages and their settings",
}
"""The parts, and what each is called for people."""

_ROLES = {
    "packages": "system_packages",
    "rust": "rust",
    "repository": "workload",
    "python": "python_env",
    "build": "workload",
    "persist": "persistent_storage",
    "gpuyard": "checkpoints",
}
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
    persist = box.get("persist") or {}
    folders = {name: persist.get(name) for name in ("root", "directories")}
    values: dict[str, Any] = {
        "packages": box.get("packages"),
        "rust": box.get("rust"),
        "repository": [box.get("repository"), tree_digest],
        "python": box.get("python"),
        "build": [box.get("build"), (box.get("environment") or {}).get("set")],
        "persist": folders,
        "gpuyard": hashlib.sha256(boxzip.content()).hexdigest(),
    }
    unused = [name for name in ("rust", "python") if not values[name]]
    taken = {"packages", "rust", "repository", "python", "build"}
    values["stages"] = {name: value for name, value in box.items() if name not in taken}
    return {
        name: _digest([value, _role_content(root, _ROLES[name]) if root and name in _ROLES else ""])
        for name, value in values.items()
        if name not in unused
    }


def fingerprint(parts: Mapping[str, str]) -> str:
    """Return one SHA-256 over all parts."""
    return _digest(dict(parts))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _role_content(root: Path, role: str) -> str:
    """Return a digest of everything that acts when ``role`` brings a machine into shape."""
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
