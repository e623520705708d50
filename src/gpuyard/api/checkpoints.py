"""The checkpoints of a run, from any controller: it needs the keys, the bucket and the run's name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpuyard.api.site import Site
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import Retention, Store, Verified
from gpuyard.box.checkpoints.listing import read_manifest
from gpuyard.errors import CheckpointError, MissingObjectError, UnreadableManifestError, UsageError
from gpuyard.files import inner_path
from gpuyard.formats.label import check_form, check_node
from gpuyard.renting import runs
from gpuyard.renting.places import nodes_apart, own_place

MOST_SHOWN = 20
"""So many paths of each kind a comparison names for people."""


@dataclass(frozen=True, slots=True)
class CheckpointsRequest:
    """Whose checkpoints are meant: those of a run, or of one ``node`` of several (``search-1``)."""

    run: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found: ``values`` for programs, ``text`` for people; ``changed`` when something was done."""

    values: dict[str, Any]
    text: list[str]
    changed: bool = False
    failed: str = ""  # why a program should not go on

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        failure = {"failed": True, "msg": self.failed} if self.failed else {}
        return {**self.values, "text": "\n".join(self.text), "changed": self.changed, **failure}


def list_all(site: Site, request: CheckpointsRequest) -> Answer:
    """Return the checkpoints, newest first, and whether the bucket keeps versions of what is removed."""
    store, place = _open(site, request)
    rows: list[dict[str, Any]] = []
    text: list[str] = []
    for sequence in checkpoints.sequences(store, place):
        try:
            manifest = read_manifest(store, place, sequence)
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            rows.append({"sequence": sequence, "problem": str(error)})
            text.append(f"{sequence:>6}  {error}")
            continue
        rows.append(
            {
                "sequence": sequence,
                "time": manifest.time,
                "files": len(manifest.files),
                "bytes": manifest.size,
                "progress": dict(manifest.progress),
                "problem": "",
            }
        )
        stage = manifest.progress.get("stage") or ""
        row = f"{sequence:>6}  {manifest.time}  {_files(len(manifest.files)):>12}  {_size(manifest.size):>9}  {stage}"
        text.append(row.rstrip())
    if not rows:
        raise _none(store, request)
    keeps = store.keeps_versions()
    return Answer({"checkpoints": rows, "keeps_versions": keeps}, [*text, _versions(keeps)])


def _versions(keeps: bool | None) -> str:
    if keeps is None:
        return "Whether this store keeps versions of what is overwritten or removed is not known."
    if keeps:
        return "The bucket keeps versions of what is overwritten or removed."
    return "The bucket keeps no versions: what is overwritten or removed there is gone."


def verify(site: Site, request: CheckpointsRequest, *, sequence: int | None = None, every: bool = False) -> Answer:
    """Read a checkpoint whole (by default the newest), or ``every`` one; damage makes the answer a failed one."""
    store, place = _open(site, request)
    found = checkpoints.verify_all(store, place) if every else [checkpoints.verify(store, place, sequence=sequence)]
    text = [line for verified in found for line in _verified(verified)]
    damaged = [verified.sequence for verified in found if verified.damaged]
    first = next((verified.damaged[0] for verified in found if verified.damaged), "")
    return Answer(
        {"verified": [asdict(verified) for verified in found]},
        text,
        failed=f"Damaged: checkpoint {', '.join(map(str, damaged))} of {request.run} ({first})." if damaged else "",
    )


def _verified(verified: Verified) -> list[str]:
    whole = f"{_files(verified.files)}, {_size(verified.bytes)}, all as the manifest names them"
    return [f"{verified.sequence:>6}  {text}" for text in verified.damaged or [whole]]


def diff(site: Site, request: CheckpointsRequest, before: int, after: int | None = None) -> Answer:
    """Compare two checkpoints; ``after`` is by default the newest."""
    store, place = _open(site, request)
    if after is None:
        newest = checkpoints.latest_manifest(store, place)
        if newest is None:
            raise _none(store, request)
        after = newest.sequence
    found = checkpoints.diff(store, place, before, after)
    text = []
    for sign, what in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        for item in what[:MOST_SHOWN]:
            sizes = [_size(size) for size in (item.before, item.after) if size is not None]
            text.append(f"{sign} {item.path}  {' → '.join(sizes)}")
        if len(what) > MOST_SHOWN:
            text.append(f"{sign} … and {len(what) - MOST_SHOWN} more")
    counts = f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
    return Answer({"diff": asdict(found)}, [*text, f"From checkpoint {before} to {after}: {counts}."])


def prune(
    site: Site, request: CheckpointsRequest, *, keep_last: int, keep_every: int = 0, dry_run: bool = False
) -> Answer:
    """Remove checkpoints from the bucket but for the newest ``keep_last`` and every ``keep_every``-th by its number."""
    store, place = _open(site, request)
    found = checkpoints.prune_run(store, place, Retention(keep_last, keep_every), dry_run=dry_run)
    verb = "would be removed" if dry_run else "removed"
    numbers = ", ".join(map(str, sorted(found.sets))) or "none"
    kept = ", ".join(map(str, sorted(found.kept)))
    text = [f"Checkpoints {verb}: {numbers} ({found.objects} objects, {_size(found.bytes)}). Kept: {kept}."]
    if found.objects and store.keeps_versions():
        text.append("The bucket keeps versions of them, which bill until a life-cycle rule of the bucket ends them.")
    return Answer({"pruned": asdict(found)}, text, changed=bool(found.objects))


def restore_file(site: Site, request: CheckpointsRequest, *, sequence: int | None, path: str, to: Path) -> Answer:
    """Write one file of a checkpoint (by default the newest) to a place of this machine where nothing is."""
    store, place = _open(site, request)
    try:
        inner_path(path)
    except ValueError as error:
        raise UsageError(f"path={path!r} is no file of a checkpoint: {error}.") from error
    if sequence is None:
        newest = checkpoints.latest_manifest(store, place)
        if newest is None:
            raise _none(store, request)
        sequence = newest.sequence
    entry = checkpoints.restore_file(store, place, sequence, path, to)
    values = {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "sequence": sequence}
    return Answer(
        {"file": values}, [f"{path} of checkpoint {sequence} is at {to}: {_size(entry.size)}, verified."], changed=True
    )


def keep_versions(site: Site, *, dry_run: bool = False) -> Answer:
    """Have the bucket keep what is overwritten or removed in it from now on."""
    store = _store(site)
    if store.keeps_versions():
        return Answer({"keeps_versions": True}, [f"{store.url} keeps versions already."])
    if dry_run:
        return Answer({"keeps_versions": False}, [f"{store.url} would keep versions."], changed=True)
    store.keep_versions()
    advice = "They bill until a life-cycle rule of the bucket (NoncurrentVersionExpiration) ends them."
    return Answer({"keeps_versions": True}, [f"{store.url} keeps versions from now on. {advice}"], changed=True)


def _store(site: Site) -> Store:
    store = site.store()
    if store is None:
        raise UsageError("There is no bucket to look into: name it with bucket=s3://name/prefix.")
    return store


def _open(site: Site, request: CheckpointsRequest) -> tuple[Store, str]:
    """Return the bucket, and what the keys of these checkpoints begin with."""
    if not request.run:
        raise UsageError("run is not set: name the run whose checkpoints are meant.")
    check_form(request.run)
    if request.node is not None:
        check_node(request.node)
    store = _store(site)
    runs.check_answers(store)
    if request.node is None:
        return store, request.run
    # The first node that is alone in its pool has the run's own place.
    apart = request.node in nodes_apart(store, request.run)
    return store, own_place(request.run, request.node) if apart else request.run


def _none(store: Store, request: CheckpointsRequest) -> CheckpointError:
    known = ", ".join(record.run for record in checkpoints.list_runs(store)) or "none"
    return CheckpointError(f"Run {request.run} has no checkpoint in {store.url}; the runs there are: {known}.")


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _size(size: int) -> str:
    """Return bytes for people."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} B"
