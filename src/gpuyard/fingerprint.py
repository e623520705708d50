"""The fingerprint of a machine's wanted state, by which a converged machine is recognised in one round trip.

It covers everything that decides what the roles would do: their own files, the modules that they run, what runs on the
box, the workload's specification, and the content of a local repository. The run's name, its bucket and its secrets are
not in it, so that a machine booted from a prepared image, or set up for an earlier run, is recognised as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import gpuyard
from gpuyard import boxzip

# The folders of the collection whose files decide what converging a machine does.
_PARTS = ("playbooks/tasks", "roles", "plugins/modules", "plugins/module_utils", "plugins/action")


def _files(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def collection_root() -> Path | None:
    """Return the folder of the collection that belongs to this package (checkout or wheel), or ``None``."""
    package = Path(gpuyard.__file__).resolve().parent
    for root in (package.parents[1], package.parent / "ansible_collections" / "gpuyard" / "cloud"):
        if (root / "galaxy.yml").is_file() and (root / "roles").is_dir():
            return root
    return None


def fingerprint(box: Mapping[str, object], tree_digest: str = "") -> str:
    """Return the SHA-256 of the state that the roles would bring a machine to.

    ``box`` is the workload's specification for the box (:meth:`gpuyard.workload.Workload.to_box`), ``tree_digest`` the
    digest of the local repository's content, empty for a repository that is fetched at a fixed commit.
    """
    digest = hashlib.sha256()
    digest.update(boxzip.content())
    root = collection_root()
    for folder in [root / part for part in _PARTS] if root else []:
        for path in _files(folder):
            digest.update(f"{path.relative_to(folder.parent)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(box, sort_keys=True).encode())
    digest.update(tree_digest.encode())
    return digest.hexdigest()
