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
from gpuyard.workload import Workload, lean
from gpuyard.workload.schema import Repository

_NAMED = 3  # files that are named before the rest is counted
_WORTH_NAMING_BYTES = 100_000  # what is left out and smaller is told to nobody


def notes(workload: Workload) -> list[str]:
    """Return what the user should know of the workload's local repository; refuse what would fail on the machine."""
    root = workload.local_tree
    if root is None:
        return []
    rules, folders = workload.tree_rules, workload.persist.directories
    python = workload.python
    try:
        names = tree.names(root, rules)
        if python:
            repository.check_python(
                root, names, requirements=python.requirements, project=python.project_folder, lock=python.lock
            )
        if workload.lean:
            lean.check(root, names, workload.lean, workload.pantograph)
        repository.check_tree(root, names, persist=workload.persist.root, folders=folders)
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error}") from None
    lines = [_what_goes(root, names), *_what_stays(root, rules)]
    inside = repository.kept(names, folders)
    if not inside:
        return lines
    return [
        *lines,
        f"{_some(inside)} of the repository {'lie' if len(inside) > 1 else 'lies'} in a persisted folder: a newer "
        "version is brought to the machine only where the run has not changed the file.",
    ]


def _what_goes(root: Path, names: Sequence[str]) -> str:
    """Return how much of the local repository goes to the machine, and what of it no commit holds."""
    text = f"{_count(len(names), 'file')}, {_bytes(tree.size(root, names))}, of {root} {_go(len(names))} to the machine"
    open_ones = tree.uncommitted(root, names)
    if open_ones:
        text += f"; {_count(len(open_ones), 'file')} {_are(len(open_ones))} not committed ({_some(open_ones)})"
    return f"{text}."


def _what_stays(root: Path, rules: tree.Rules) -> list[str]:
    """Return the largest of what the machine does not get, where it is more than a few files."""
    out = [entry for entry in tree.left_out(root, rules) if entry.size >= _WORTH_NAMING_BYTES or not entry.whole]
    if not out:
        return []
    shown = [
        f"{entry.name} ({'' if entry.whole else 'more than '}{_bytes(entry.size)}, {entry.why})"
        for entry in out[:_NAMED]
    ]
    more = f" and {len(out) - _NAMED} more" if len(out) > _NAMED else ""
    return [f"Left out: {', '.join(shown)}{more}; repository.include brings what is needed of it."]


def _bytes(count: int) -> str:
    """Return a size as people read it, in units of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f} {unit}"
    return f"{count} bytes"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _go(number: int) -> str:
    return "goes" if number == 1 else "go"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def older(run: Run, workload: Workload, store: checkpoints.Store | None) -> list[str]:
    """Return what a new machine will have of files that the checkpoint and the repository have in two versions."""
    root = workload.local_tree
    if root is None or run.manifest is None or store is None:
        return []
    restored = {entry.path: entry for entry in run.manifest.files}
    inside = repository.kept(tree.names(root, workload.tree_rules), workload.persist.directories)
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


def _way(source: Repository) -> repository.Way | None:
    """Return how the machine will get at a private repository, with what this controller has for it."""
    credentials = source.credentials
    if credentials is None or source.url is None:
        return None
    if credentials.kind == "token":
        return repository.with_token(source.url, credentials.user, os.environ[credentials.variable or ""])
    file = credentials.key_file(os.environ)
    return repository.with_key(file) if file else None


def look(workload: Workload) -> list[str]:
    """Return a warning when nobody here can say whether the machine will find the workload's repository."""
    source = workload.repository
    if not (source.url and source.commit):
        return []
    try:
        warning = repository.look(source.url, source.commit, way=_way(source))
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error} Nothing was rented.") from None
    return [warning] if warning else []
