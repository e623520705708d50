"""Which workload and which source a run goes on with: what is here, or what the bucket says that it began with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard import tree
from gpuyard.box.checkpoints import RunRecord, Store
from gpuyard.errors import CheckpointError, UsageError
from gpuyard.formats.workload_record import SourceRef, WorkloadRecord
from gpuyard.planning import choose
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Progress
from gpuyard.remedies import option
from gpuyard.renting import record
from gpuyard.renting.runs import Run
from gpuyard.workload import Resolved, Workload, again, resolve
from gpuyard.workload.resolving import words

_NAMED = 3  # keys and files that are named before the rest is counted
# Files of these names hold what nobody else should read, more often than not.
_SECRET = re.compile(
    r"\.env(\.(?!example|sample|template)[^/]*)?|\.netrc|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12|kdbx)"
)


@dataclass(frozen=True, slots=True)
class Version:
    """The workload and the source that a run goes on with.

    ``tree`` is the folder with a local repository, ``digest`` that of its content; ``None`` and ``""`` for one that is
    cloned. ``to_keep`` is what a launch writes into the bucket, ``None`` when that is there already or there is none.
    """

    resolved: Resolved
    tree: Path | None
    digest: str
    to_keep: record.ToKeep | None
    text: list[str] = field(default_factory=list)

    @property
    def workload(self) -> Workload:
        """The resolved workload."""
        return self.resolved.workload


@dataclass(frozen=True, slots=True)
class _Local:
    """What this controller has: the workload with the layers of this command, and the source that belongs to it."""

    resolved: Resolved
    root: Path | None
    source: SourceRef
    files: Mapping[str, str]


def of_run(
    run: Run, request: PlanRequest, store: Store | None, loaded: Resolved | None, progress: Progress | None = None
) -> Version:
    """Return what ``run`` goes on with.

    ``store`` is the bucket that controllers share, ``None`` without one; ``loaded`` the wanted workload of a new run. A
    run that has begun keeps what it began with, unless ``request.update`` says otherwise; its profiles, options and
    overrides stay in any case, and those of this command come over them. Raises :class:`UsageError`, and
    :class:`CheckpointError` when what the bucket holds cannot be used.
    """
    kept = record.read(store, run.name) if store is not None else record.Kept(RunRecord(run.name))
    if kept.problem and not request.update:
        raise CheckpointError(kept.problem)
    made_of = kept.made_of
    if made_of is None or store is None:
        local = _here(run, request, loaded, progress)
        return _as_here(run, local, shared=store is not None, anew=bool(kept.problem))
    begun = bool(run.manifest or kept.record.created)
    try:
        local = _here(run, request, loaded, progress)
    except UsageError as error:
        if request.update:
            raise UsageError(f"update=true needs a workload to go on with: {error}") from None
        if request.workload and "/" in request.workload:
            raise
        return _as_kept(run, request, store, made_of, None, _why_kept(run, error), progress)
    if begun:
        local = _with_layers_of(run, request, made_of, local)
    if request.update and begun:
        return _replaced(run, store, made_of, local)
    if not begun:
        same = record.document_of(local.resolved) == made_of.workload and local.source.digest == made_of.source.digest
        return _as_here(run, local, shared=not same, anew=False)
    keys = _changed_keys(made_of, local)
    as_kept = _as_kept(run, request, store, made_of, local, [], progress)
    if keys or local.source.digest != made_of.source.digest:
        files = _different(_files_of(as_kept.tree, as_kept.workload), local.files)
        what = f"{_words(keys, files)} here not as when run {run.name} began."
        as_kept.text.append(
            f"{what} It goes on as it began; with {option('update', True)} it goes on with what is here."
        )
    return as_kept


def _here(run: Run, request: PlanRequest, loaded: Resolved | None, progress: Progress | None) -> _Local:
    return _local(loaded or choose.workload_of(run, request, progress))


def _with_layers_of(run: Run, request: PlanRequest, made_of: WorkloadRecord, local: _Local) -> _Local:
    """Return what is here under the layers with which the run began, since one of them may name the source."""
    try:
        stored = record.resolved_of(made_of, run.name)
    except CheckpointError:  # what is replaced need not be readable, and what is kept is read again
        return local
    return _local(
        resolve(
            str(local.resolved.workload.source),
            profiles=request.profiles or stored.profiles,
            overrides=(*stored.overrides, *words(request.overrides)),
            options={**stored.options, **request.options},
        )
    )


def _local(resolved: Resolved) -> _Local:
    root = resolved.workload.local_tree
    source, found = record.source_of(root, resolved.workload)
    return _Local(resolved, root, source, found.files if found else {})


def _as_here(run: Run, local: _Local, *, shared: bool, anew: bool) -> Version:
    text = []
    if shared and local.source.kind == "none":
        text.append(
            f"The source is not copied into the bucket ({local.source.why}), so the run cannot be resumed from another "
            "controller."
        )
    made = None
    if shared and (secret := [name for name in local.files if _SECRET.fullmatch(name.rpartition("/")[2])]):
        text.append(
            f"The source's {_some(secret)} may hold a secret, and the source goes to the machine and into the bucket: "
            "let git ignore such a file, and name secrets with environment.required."
        )
    if shared:
        root = local.root if local.source.kind == "archive" else None
        made = _to_keep(run, local.resolved, local.source, root, anew=anew)
    return Version(local.resolved, local.root, local.source.digest, made, text)


def _to_keep(run: Run, resolved: Resolved, source: SourceRef, root: Path | None, *, anew: bool) -> record.ToKeep:
    workload = resolved.workload
    pools = {name: workload.pool(name).nodes for name in workload.pool_names}
    made_of = WorkloadRecord(record.document_of(resolved), source)
    return record.ToKeep(run.name, workload.name, pools, made_of, root, workload.tree_rules, anew)


def _replaced(run: Run, store: Store, made_of: WorkloadRecord, local: _Local) -> Version:
    """Return the version that is here, in place of the bucket's, with what is different."""
    keys: list[str] = []
    files: list[str] = []
    # What is replaced need not be readable.
    with suppress(CheckpointError):
        keys = _changed_keys(made_of, local)
        if made_of.source.kind == "archive" and made_of.source.digest != local.source.digest:
            kept = record.fetch_source(store, run.name, made_of.source)
            files = _different(_files_of(kept, local.resolved.workload), local.files)
    version = _as_here(run, local, shared=True, anew=True)
    if keys or files:
        what = f"{_words(keys, files)} not as when run {run.name} began"
        version.text.insert(0, f"{what}, and update=true takes what is here.")
    return version


def _as_kept(
    run: Run,
    request: PlanRequest,
    store: Store,
    made_of: WorkloadRecord,
    local: _Local | None,
    text: list[str],
    progress: Progress | None,
) -> Version:
    """Return the version that the bucket holds, with the layers of this command, and its source brought here."""
    stored = record.resolved_of(made_of, run.name)
    resolved = again(stored, profiles=request.profiles, overrides=request.overrides, options=request.options)
    workload, source = resolved.workload, made_of.source
    made = None if resolved is stored else _to_keep(run, resolved, source, None, anew=False)
    if source.kind == "git":
        return Version(resolved, None, "", made, text)
    if local is not None and local.source.digest == source.digest:
        root = local.root
        workload._source = local.resolved.workload.source
    elif source.kind == "none":
        raise UsageError(
            f"Run {run.name} began with a source that is neither here nor in the bucket ({source.why}). Go on from the "
            f"controller that launched it, or with what is here by {option('update', True)}."
        )
    else:
        root = record.fetch_source(store, run.name, source, progress=progress)
    workload._tree = root
    return Version(resolved, root, source.digest, made, text)


def _why_kept(run: Run, error: UsageError) -> list[str]:
    if " is not known; " in str(error):
        return [f"Workload and source of run {run.name} come from the bucket, as it began with them."]
    return [f"Workload and source of run {run.name} come from the bucket; what is here cannot be used: {error}"]


def _changed_keys(made_of: WorkloadRecord, local: _Local) -> list[str]:
    """Return the keys of the workload's file whose values are here not as in the bucket."""
    return _different(made_of.workload.get("file") or {}, record.document_of(local.resolved)["file"])


def _files_of(root: Path | None, workload: Workload) -> Mapping[str, str]:
    return tree.describe(root, workload.tree_rules).files if root is not None else {}


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    """Return the values by dotted keys: ``needs.gpu_count``, ``stages.0.command``."""
    if isinstance(values, Mapping):
        items = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list):
        items = [(str(number), value) for number, value in enumerate(values)]
    else:
        return {prefix: values}
    return {key: value for name, inner in items for key, value in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, and those that only one of both has, sorted."""
    first, second = _flat(before), _flat(now)
    return sorted(key for key in first.keys() | second.keys() if first.get(key, ...) != second.get(key, ...))


def _words(keys: Sequence[str], files: Sequence[str]) -> str:
    """Return what is different, as the beginning of a sentence that goes on with "here not as …"."""
    parts = []
    if keys:
        parts.append(f"the workload's {_some(keys)}")
    if files:
        parts.append(f"the source's {_some(files)}")
    whole = " and ".join(parts) or "the source"
    many = len(keys) + len(files) > 1
    return f"{whole[0].upper()}{whole[1:]} {'are' if many else 'is'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
