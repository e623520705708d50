"""What a run is made of, kept in the bucket, so that any controller can go on with it.

Before anything is rented the run's record, its resolved workload and its source go into the bucket. Whoever takes the
run over needs the keys, the bucket and the run's name. Nothing of this is secret: a workload names the variables that
are, and never holds their values.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuyard import archive, paths, tree
from gpuyard.box.checkpoints import RunRecord, Store
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UsageError
from gpuyard.files import inner_path, write_whole
from gpuyard.formats.manifest import timestamp
from gpuyard.formats.workload_record import DamagedRecordError, SourceRef, WorkloadRecord, source_key, workload_key
from gpuyard.providers.base import Progress
from gpuyard.remedies import option
from gpuyard.tree import NO_RULES, Rules
from gpuyard.workload import Resolved, Workload, from_document, to_document

MOST_SOURCE_BYTES = 2_000_000_000
"""A larger source is not copied into the bucket."""
_SOMEWHERE = "source"  # stands for the path of a local repository


@dataclass(frozen=True, slots=True)
class Kept:
    """What the bucket holds of what a run is made of; ``made_of`` is ``None`` for a run of which it does not say.

    ``problem`` says so when that is because the workload record is damaged.
    """

    record: RunRecord
    made_of: WorkloadRecord | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ToKeep:
    """What a launch writes into the bucket before it rents.

    ``tree`` is the folder of a source that goes there, else ``None``. ``anew``: what is there already is written again.
    """

    run: str
    workload: str
    pools: dict[str, int]
    made_of: WorkloadRecord
    tree: Path | None = None
    rules: Rules = NO_RULES
    anew: bool = False


def read(store: Store, run: str) -> Kept:
    """Return what the bucket holds of what ``run`` is made of.

    Raises :class:`CheckpointError` for a record of a newer version, and :class:`gpuyard.errors.BucketError`.
    """
    try:
        record = RunRecord.from_bytes(run, store.get(f"{run}/run.json"))
    except MissingObjectError:
        record = RunRecord(run)
    if record.problem:
        raise CheckpointError(record.problem)
    key = workload_key(run)
    try:
        return Kept(record, WorkloadRecord.from_bytes(store.get(key), where=f"{store.url}/{key}"))
    except MissingObjectError:
        return Kept(record)
    except DamagedRecordError as error:
        return Kept(record, problem=f"{error} {_way_out()}")


def write(store: Store, made: ToKeep, *, progress: Progress | None = None) -> None:
    """Write what a run is made of: its source first, when it is not there, then the workload, then the record.

    Raises :class:`BucketError` when the bucket does not take it. Nothing has been rented then.
    """
    try:
        if made.tree is not None:
            _put_source(store, made, progress)
        store.put(workload_key(made.run), made.made_of.to_bytes())
        known = read(store, made.run).record
        record = replace(known, workload=made.workload, launched=known.launched or timestamp(), pools=made.pools)
        store.put(f"{made.run}/run.json", record.to_bytes())
    except CheckpointError as error:
        raise BucketError(
            f"What run {made.run} is made of cannot be written into its bucket, so nothing was rented: {error}"
        ) from error


def _put_source(store: Store, made: ToKeep, progress: Progress | None) -> None:
    assert made.tree is not None  # asked by the caller
    wanted = made.made_of.source
    key = source_key(made.run, wanted.digest)
    if not made.anew and any(item.key == key for item in store.objects(key)):
        return
    with tempfile.TemporaryDirectory(prefix="gpuyard-source-") as scratch:
        file = Path(scratch, "source.tar.gz")
        names = tree.names(made.tree, made.rules)
        archive.pack(made.tree, names, file)
        if tree.described(made.tree, names).digest != wanted.digest:
            raise UsageError(f"The source in {made.tree} has changed since the plan was made; launch again.")
        if progress:
            progress(f"Copying the source into the bucket ({wanted.files} files, {file.stat().st_size / 1e6:.1f} MB).")
        with file.open("rb") as stream:
            store.put_stream(key, stream)


def source_of(root: Path | None, workload: Workload) -> tuple[SourceRef, tree.Tree | None]:
    """Return where the source of a local tree will be, and what it consists of; ``root`` is ``None`` for a clone."""
    if root is None or workload.repository.path is None:
        return SourceRef("git"), None
    found = tree.describe(root, workload.tree_rules)
    size = sum((root / name).lstat().st_size for name in found.files)
    why = _why_not(found, size)
    return SourceRef("none" if why else "archive", found.digest, len(found.files), size, why), found


def _why_not(found: tree.Tree, size: int) -> str:
    """Return why a tree is not copied into the bucket, ``""`` when it is."""
    if size > MOST_SOURCE_BYTES:
        return f"it has {size / 1e9:.1f} GB, and no more than {MOST_SOURCE_BYTES / 1e9:g} GB are copied"
    for name in found.files:
        try:
            inner_path(name)
        except ValueError as error:
            return f"{error}"
    return ""


def document_of(resolved: Resolved) -> dict[str, Any]:
    """Return a resolved workload as plain values; what its file says, without any layers, is below ``file``.

    The place of a local repository is left out: each controller's is another.
    """
    document = to_document(resolved)
    for values in (document["workload"], document["file"]):
        if values["repository"].get("path") is not None:
            values["repository"] = {**values["repository"], "path": _SOMEWHERE}
    return document


def resolved_of(kept: WorkloadRecord, run: str) -> Resolved:
    """Return the workload of a run's record; raises :class:`CheckpointError` when it is none.

    What a workload names relative to its file is looked for in the working directory.
    """
    where = f"workload.json of run {run} in the bucket"
    try:
        return from_document(kept.workload, source=Path(where))
    except UsageError as error:
        written = f" gpuyard {kept.gpuyard} wrote it." if kept.gpuyard else ""
        raise CheckpointError(f"{where}: {str(error).rstrip('.')}.{written}") from None


def fetch_source(store: Store, run: str, source: SourceRef, *, progress: Progress | None = None) -> Path:
    """Return the folder with the source of ``run``, brought from the bucket unless it is here already.

    It lies below ``<home>/sources/<digest>``, and what is there is compared with that digest, each time. Raises
    :class:`CheckpointError` for an archive that is damaged, and :class:`BucketError`.
    """
    place = paths.home() / "sources" / source.digest
    root = place / tree.UNPACKED
    if place.exists():
        if (place / tree.UNPACKED_NOTE).is_file() and tree.describe(root).digest == source.digest:
            return root
        shutil.rmtree(place)
    key = source_key(run, source.digest)
    where = f"The source of run {run} in the bucket ({store.url}/{key})"
    with tempfile.TemporaryDirectory(prefix=".", dir=paths.ensure_private(place.parent)) as name:
        scratch = Path(name)
        try:
            _download(store, key, scratch / "source.tar.gz")
        except MissingObjectError:
            raise CheckpointError(f"{where} is missing. {_way_out()}") from None
        new = scratch / source.digest
        (new / tree.UNPACKED).mkdir(parents=True)
        try:
            names = archive.unpack(scratch / "source.tar.gz", new / tree.UNPACKED, most_bytes=MOST_SOURCE_BYTES)
        except CheckpointError as error:
            raise CheckpointError(f"{where} is damaged. {error} {_way_out()}") from None
        if tree.described(new / tree.UNPACKED, names).digest != source.digest:
            raise CheckpointError(f"{where} is damaged: its content is not what its name says. {_way_out()}")
        write_whole(new / tree.UNPACKED_NOTE, json.dumps({"run": run, "digest": source.digest}))
        # Another command may have brought the same source meanwhile.
        with contextlib.suppress(OSError):
            new.rename(place)
    if progress:
        progress(f"Brought the source of run {run} from the bucket to {root} ({len(names)} files).")
    return root


def _way_out() -> str:
    back = f"A controller that has workload and source puts them back with {option('update', True)}."
    return f"Nothing was rented. {back}"


def _download(store: Store, key: str, target: Path) -> None:
    size = 0
    with target.open("wb") as out:
        for chunk in store.chunks(key):
            size += len(chunk)
            if size > MOST_SOURCE_BYTES:
                raise CheckpointError(f"{store.url}/{key} is larger than {MOST_SOURCE_BYTES / 1e9:g} GB.")
            out.write(chunk)
