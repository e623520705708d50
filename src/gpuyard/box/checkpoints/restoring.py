"""Bringing a root to the newest whole set of a run."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard.box.checkpoints import brought
from gpuyard.box.checkpoints.beneath import Folder, create
from gpuyard.box.checkpoints.hashing import HashCache
from gpuyard.box.checkpoints.manners import Manners
from gpuyard.box.checkpoints.parallel import THREADS, in_parallel
from gpuyard.box.checkpoints.placing import (
    is_in_place,
    is_whole_part,
    place_link,
    place_part,
    read_beginning,
    set_attributes,
    sha256_of,
)
from gpuyard.box.checkpoints.reading import manifest_of, manifests
from gpuyard.box.checkpoints.stores import Store
from gpuyard.box.checkpoints.verifying import DamagedSetError, note_damage
from gpuyard.box.checkpoints.wording import names_in_words
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError
from gpuyard.formats.manifest import BROUGHT, JOURNAL, SCRATCH, FileEntry, Manifest

_INCOMING = f"{SCRATCH}/restore"


@dataclass
class Restored:
    """What :func:`restore` did: ``source`` is ``nothing`` (start afresh), ``local`` (go on from here) or ``cloud``."""

    source: str
    sequence: int | None = None
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def restore(
    store: Callable[[], Store] | None,
    run: str,
    root: Path,
    *,
    has_local: Callable[[Path], bool] | None = None,
    threads: int = THREADS,
    sequence: int | None = None,
    expected: int | None = None,
    manners: Manners | None = None,
) -> Restored:
    """Bring ``root`` to the newest complete checkpoint of ``run``, unless there is local work already.

    With ``sequence`` it is exactly that checkpoint, or an error. ``expected`` is the number of the newest checkpoint
    that somebody else has seen in the bucket. 0 (there is none): a bucket that cannot be read from here is a warning,
    because there is nothing in it that could be begun over. Another number: an empty bucket is an error. ``manners``
    say how much of the network this may take; default: all.

    The four cases: nothing anywhere → ``nothing``; local work (default: a journal that is not empty), with or without
    a bucket → ``local``, and the bucket is not even asked; bucket only → ``cloud``. Every file is verified before the
    first one is put in its place, and the journal comes last: a restore that was cut off is begun again, and what it
    had fetched is used. A damaged set gives way to the next older one. Raises :class:`BucketError` when the bucket
    does not answer, :class:`CheckpointError` when it has sets and none of them is whole, or the newest manifest cannot
    be read.
    """
    began = time.monotonic()
    if (has_local or _has_journal)(root):
        unused = f"restore={sequence} was not used: this box has work of its own, in {root}."
        return Restored("local", warnings=[] if sequence is None else [unused])
    if store is None:
        if sequence is not None:
            raise CheckpointError(f"restore={sequence} needs a bucket, and run {run} has none.")
        return Restored("nothing")
    warnings: list[str] = []
    try:
        opened = store()
        # The first one is asked for here, so that a bucket that does not answer is told from what it holds.
        found = manifests(opened, run) if sequence is None else iter([manifest_of(opened, run, sequence)])
        first = next(found, None)
    except BucketError as error:
        if expected != 0 or sequence is not None:
            raise
        begins = f"It holds no checkpoint of {run}, as the controller has seen, so {run} begins."
        return Restored("nothing", warnings=[f"{error} {begins}"])
    if first is None and expected:
        raise CheckpointError(
            f"Run {run} has checkpoint {expected} in the bucket, as the controller has seen, and this box finds none "
            f"in {opened.url}: check that both reach the same bucket (bucket, bucket_endpoint)."
        )
    for manifest in itertools.chain([first] if first else [], found):
        try:
            changed = _fetch_set(opened, manifest, root, threads, manners or Manners())
        except (DamagedSetError, MissingObjectError) as error:
            if isinstance(error, DamagedSetError):
                note_damage(opened, manifest, error.keys)
            if sequence is not None:
                raise CheckpointError(f"Checkpoint {sequence} of {run} is damaged ({error}).") from error
            warnings.append(f"Checkpoint {manifest.sequence} of {run} is damaged ({error}), so an older one is tried.")
            continue
        if changed:
            warnings.append(
                f"The repository has another version of {names_in_words(changed)} than this machine got: the run had "
                f"changed what was brought before, so what checkpoint {manifest.sequence} has was restored."
            )
        return Restored(
            "cloud",
            manifest.sequence,
            len(manifest.files),
            manifest.size,
            time.monotonic() - began,
            warnings,
        )
    if warnings:
        raise CheckpointError(f"No checkpoint of {run} in {opened.url} is whole: {' '.join(warnings)}")
    return Restored("nothing")


def _has_journal(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return (root / JOURNAL).stat().st_size > 0
    return False


def brought_in(store: Store, manifest: Manifest) -> dict[str, str]:
    """Return what the set's own record says that the repository has brought: SHA-256 by path, of files of the set.

    A set of an older gpuyard has no such record. Raises :class:`CheckpointError` when it is damaged or gone.
    """
    files = {entry.path: entry for entry in manifest.files}
    entry = files.get(BROUGHT)
    if entry is None or entry.link is not None or entry.size > brought.MOST_BYTES:
        return {}
    data = b""
    for chunk in store.chunks(entry.key):
        data += chunk
        if len(data) > entry.size:
            break
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedSetError(f"{entry.key} does not have the content that its manifest names", [entry.key])
    return {path: digest for path, digest in brought.parse(data).items() if path in files}


def _fetch_set(store: Store, manifest: Manifest, root: Path, threads: int, manners: Manners) -> list[str]:
    """Fetch a set and put its files in their places; nothing is written through a link, whatever the set holds.

    Temporary files have names of digests, which the manifest's reader has checked. A file that the repository has just
    brought stays where the run had left alone what was brought before. Returns the paths of those that it had changed.
    """
    before = brought_in(store, manifest)
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        base = closing.enter_context(Folder(root))
        incoming, _ = closing.enter_context(base.parent(f"{_INCOMING}/any", make=True))
        here = brought.parse(read_beginning(base, BROUGHT, brought.MOST_BYTES + 1))
        left_alone, changed = brought.compare(manifest.files, before, here)
        newer = {path for path in left_alone if sha256_of(base, path) == here[path]}
        files = [entry for entry in manifest.files if entry.path != BROUGHT and entry.path not in newer]
        pending = [entry for entry in files if entry.link is None and not is_in_place(base, entry)]
        uses = Counter(entry.sha256 for entry in pending)
        wanted = {entry.sha256: entry for entry in pending}
        missing = [entry for entry in wanted.values() if not is_whole_part(incoming, entry)]
        free = shutil.disk_usage(root).free
        if sum(entry.size for entry in missing) > free:
            gigabytes = sum(entry.size for entry in missing) / 1e9
            raise CheckpointError(
                f"Checkpoint {manifest.sequence} of {manifest.run} needs {gigabytes:.1f} GB below {root}, "
                f"where {free / 1e9:.1f} GB are free."
            )

        def fetch(entry: FileEntry) -> None:
            os.close(create(incoming, entry.sha256))
            part = root / _INCOMING / entry.sha256
            if manners.limits:
                with part.open("wb") as stream:
                    for chunk in store.chunks(entry.key):
                        manners.take(len(chunk))
                        stream.write(chunk)
            else:
                store.fetch(entry.key, part, entry.size)
            if not is_whole_part(incoming, entry):
                os.unlink(entry.sha256, dir_fd=incoming)
                raise DamagedSetError(f"{entry.key} does not have the content that its manifest names", [entry.key])

        in_parallel(fetch, missing, threads)
        cache = HashCache(root)
        placed = set(pending)
        record = brought.merge(manifest.files, before, here, newer)
        if record != here:
            write_brought(base, incoming, record)
        for entry in sorted(files, key=lambda entry: entry.path == JOURNAL):
            with base.parent(entry.path, make=True) as (folder, name):
                try:
                    if entry.link is not None:
                        place_link(incoming, entry.link, folder, name, root / entry.path, root)
                        continue
                    if entry in placed:
                        uses[entry.sha256] -= 1
                        place_part(incoming, entry, folder, name, last=not uses[entry.sha256])
                    else:
                        set_attributes(folder, name, entry)
                except IsADirectoryError as error:
                    raise CheckpointError(f"{root / entry.path} is a folder, where {entry.path} is to be.") from error
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                cache.put_restored(entry.path, info, entry.sha256)
        cache.save()
    shutil.rmtree(root / _INCOMING, ignore_errors=True)
    return changed


def write_brought(base: Folder, incoming: int, record: Mapping[str, str]) -> None:
    with os.fdopen(create(incoming, "brought", 0o644), "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=1, sort_keys=True)
    with base.parent(BROUGHT, make=True) as (folder, name):
        try:
            os.replace("brought", name, src_dir_fd=incoming, dst_dir_fd=folder)
        except IsADirectoryError as error:
            raise CheckpointError(f"{base.path / BROUGHT} is a folder, where {BROUGHT} is to be.") from error
