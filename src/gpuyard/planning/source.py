"""What a workload's repository will be on a machine, and what is known of that before one is rented."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from gpuyard import repository, tree
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints.brought import compare
from gpuyard.errors import UsageError
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload

_NAMED = 3  # files that are named before the rest is counted


def notes(workload: Workload) -> list[str]:
    """Return what the user should know of the workload's local repository; refuse what would fail on the machine."""
    root = workload.local_tree
    if root is None:
        return []
    names, folders = tree.names(root), workload.persist.directories
    requirements = workload.python.requirements if workload.python else None
    try:
        repository.check_tree(root, names, requirements=requirements, persist=workload.persist.root, folders=folders)
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error}") from None
    inside = repository.kept(names, folders)
    if not inside:
        return []
    return [
        f"{_some(inside)} of the repository {'lie' if len(inside) > 1 else 'lies'} in a persisted folder: a newer "
        "version is brought to the machine only where the run has not changed the file."
    ]


def older(run: Run, workload: Workload, store: checkpoints.Store | None) -> list[str]:
    """Return what a new machine will have of files that the checkpoint and the repository have in two versions."""
    root = workload.local_tree
    if root is None or run.manifest is None or store is None:
        return []
    restored = {entry.path: entry for entry in run.manifest.files}
    inside = repository.kept(tree.names(root), workload.persist.directories)
    other = [name for name in inside if name in restored and not _same(root / name, restored[name])]
    if not other:
        return []
    before: dict[str, str] = {}
    with contextlib.suppress(checkpoints.CheckpointError):  # the restore will say so if it fails as well
        before = checkpoints.brought_in(store, run.manifest)
    here = {name: _sha256(root / name) for name in other if not (root / name).is_symlink()}
    newer, _changed = compare([restored[name] for name in other], before, here)
    old = [name for name in other if name not in newer]
    lines = []
    if newer:
        lines.append(
            f"{_some(newer)} {'are' if len(newer) > 1 else 'is'} newer in the repository than in the checkpoint, and "
            "the run has not changed the file: what the repository has will be on the machine."
        )
    if old:
        lines.append(
            f"{_some(old)} in the checkpoint {'are' if len(old) > 1 else 'is'} not as in the repository (the run "
            "changed the file, or the checkpoint does not tell): what the checkpoint has will be restored."
        )
    return lines


def _same(path: Path, entry: checkpoints.FileEntry) -> bool:
    if path.is_symlink() or entry.link is not None:
        return path.is_symlink() and os.fspath(path.readlink()) == entry.link
    return _sha256(path) == entry.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def look(workload: Workload) -> list[str]:
    """Return a warning when nobody here can say whether the machine will find the workload's repository."""
    source = workload.repository
    if not (source.url and source.commit):
        return []
    try:
        warning = repository.look(source.url, source.commit)
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error} Nothing was rented.") from None
    return [warning] if warning else []
