"""The files of a run, brought here from its machine or from its newest whole checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpuyard.api.choosing import choose_run
from gpuyard.api.site import Site
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import Store
from gpuyard.box.checkpoints.rules import KINDS, Rule, Rules
from gpuyard.errors import CheckpointError, GpuyardError, UsageError
from gpuyard.formats.manifest import STATE
from gpuyard.providers.base import Progress
from gpuyard.remedies import option
from gpuyard.renting import collecting, machine, record, watch
from gpuyard.renting.collecting import Found, Source
from gpuyard.renting.places import newest_of
from gpuyard.renting.runs import Node

_SHOWN = 20
_LOGS = f"{STATE}/logs"


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Which files of a run are wanted, and where they go.

    ``to``: the folder here, made where it is not there. ``what``: kinds of the workload's ``persist.rules`` (in the
    plural as well) and patterns of paths as in those; nothing: everything but gpuyard's own files. ``source``: ``box``
    or ``bucket``; ``""``: the machine where it runs and answers, else the bucket.
    """

    run: str | None
    to: str
    what: Sequence[str] = ()
    source: Literal["", "box", "bucket"] = ""
    node: str | None = None

    @property
    def folder(self) -> Path:
        """The folder here."""
        return Path(self.to).expanduser().absolute()

    def check(self) -> None:
        """Raise :class:`UsageError` for a folder that cannot be written, before anything is asked."""
        if not self.to:
            raise UsageError(f"Where do the files go? Name a folder with {option('to', 'results/')}.")
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"to={self.to} is a file; name a folder.")
        above = next(one for one in (folder, *folder.parents) if one.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise UsageError(f"to={self.to} cannot be written: {above} does not let anybody make files there now.")


@dataclass(frozen=True, slots=True)
class Synced:
    """What was brought, or with ``check`` would be; ``there`` is how many files were here already."""

    source: str
    folder: str
    brought: list[Found]
    there: int
    problems: list[str] = field(default_factory=list)
    check: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values; sizes are in bytes."""
        size = sum(one.size for one in self.brought)
        lines = [f"  {one.size:>12}  {one.path}" for one in self.brought[:_SHOWN]]
        if len(self.brought) > _SHOWN:
            lines.append(f"  and {len(self.brought) - _SHOWN} more")
        done = "would be brought" if self.check else "were brought"
        lines.append(
            f"{len(self.brought)} files ({size / 1e6:.2f} MB) {done} from {self.source} to {self.folder}; "
            f"{self.there} were there as they are."
        )
        return {
            "changed": bool(self.brought),
            "source": self.source,
            "folder": self.folder,
            "files": [{"path": one.path, "size": one.size} for one in self.brought],
            "unchanged": self.there,
            "problems": self.problems,
            "text": "\n".join([*lines, *self.problems]),
        }


def sync(site: Site, request: SyncRequest, *, check: bool = False, progress: Progress) -> Synced:
    """Bring what ``request`` names, only what differs, each file verified; with ``check`` only look.

    Raises :class:`UsageError` for a run or a node that is not known, for ``what`` that matches nothing, and where
    neither machine nor bucket has the files.
    """
    request.check()
    run, store = choose_run(site, request.run, progress)
    node = watch.choose_node(run, request.node)
    source = _source(site, run.name, node, store, request, progress)
    rules = source.rules if source.rules is not None else _rules(store, run.name)
    wanted = select(source.files, request.what, rules)
    new = collecting.differing(source, wanted, request.folder)
    done = Synced(source.words, str(request.folder), new, len(wanted) - len(new), check=check)
    if check or not new:
        return done
    progress(f"Bringing {len(new)} files, {sum(one.size for one in new) / 1e6:.2f} MB, from {source.words}.")
    done.problems.extend(collecting.bring(source, new, request.folder, progress))
    return done


def select(files: Sequence[Found], what: Sequence[str], rules: Rules) -> list[Found]:
    """Return the files that ``what`` names. A word may be a kind and a pattern at the same time: it takes both.

    Raises :class:`UsageError`, which says what there is, for a word that names none.
    """
    if not what:
        return [one for one in files if not one.path.startswith(f"{STATE}/")]
    chosen: set[str] = set()
    for word in what:
        kind = word if word in KINDS else word.removesuffix("s")
        pattern = Rule(word.strip("/"), "", publish=True)
        found = {
            one.path for one in files if pattern.unit(one.path) or (kind in KINDS and _kind(one.path, rules) == kind)
        }
        if not found:
            raise UsageError(f"what={word} matches no file of the run. {_there(files, rules)}")
        chosen |= found
    return [one for one in files if one.path in chosen]


def _kind(path: str, rules: Rules) -> str:
    """Return the kind of a file, ``""`` for one that no rule is for; the stages' own logs are logs."""
    if path.startswith(f"{_LOGS}/"):
        return "log"
    found = rules.match(path)
    return found[0].kind if found else ""


def _there(files: Sequence[Found], rules: Rules) -> str:
    kinds = Counter(kind for one in files if (kind := _kind(one.path, rules)))
    tops = Counter(one.path.partition("/")[0] for one in files if not one.path.startswith(f"{STATE}/"))
    parts = [
        f"{label}: {', '.join(f'{name} ({count})' for name, count in sorted(counts.items()))}"
        for label, counts in (("kinds", kinds), ("folders and files", tops))
        if counts
    ]
    return f"There are {'; '.join(parts)}." if parts else "It has no files yet."


def _source(site: Site, run: str, node: Node, store: Store | None, request: SyncRequest, progress: Progress) -> Source:
    """Return where the files are read from."""
    whose = machine.whose(run, node.name)
    if request.source != "bucket":
        if node.machine and node.is_up:
            try:
                return collecting.OnBox(node.machine, site.key())
            except GpuyardError as error:
                if request.source == "box" or store is None:
                    raise
                progress(f"{error} So the bucket is looked at.")
        elif request.source == "box":
            raise UsageError(f"{whose} has no running machine; {option('from', 'bucket')} takes its newest checkpoint.")
    if store is None:
        raise UsageError(f"{whose} has no running machine, and there is no bucket that could hold its files.")
    whole = newest_of(store, run, node.name, checkpoints.latest_whole_manifest)
    if whole is None:
        raise UsageError(f"{whose} has no whole checkpoint in {store.url}.")
    return collecting.Checkpoint(store, whole)


def _rules(store: Store | None, run: str) -> Rules:
    """Return the rules of the run's workload as the bucket has it; none where it does not say."""
    try:
        made_of = record.read(store, run).made_of if store else None
    except CheckpointError:
        made_of = None
    if made_of is None:
        return Rules()
    workload = record.resolved_of(made_of, run).workload
    return Rules.from_workload(rule.model_dump() for rule in workload.persist.rules)
