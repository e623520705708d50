"""Looking into sets: what differs between two of them, and one file of one of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard.box.checkpoints.reading import manifest_of
from gpuyard.box.checkpoints.stores import Store
from gpuyard.box.checkpoints.verifying import DamagedSetError, note_damage
from gpuyard.errors import CheckpointError, MissingObjectError, UsageError
from gpuyard.formats.manifest import FileEntry


@dataclass(frozen=True)
class Difference:
    """A path that two sets have not alike; sizes in bytes, ``None`` in the set that does not have it."""

    path: str
    before: int | None
    after: int | None


@dataclass
class Differences:
    """What the set ``after`` has otherwise than the set ``before``, in the order of the paths."""

    before: int
    after: int
    added: list[Difference] = field(default_factory=list)
    removed: list[Difference] = field(default_factory=list)
    changed: list[Difference] = field(default_factory=list)


def diff(store: Store, run: str, before: int, after: int) -> Differences:
    """Compare two sets by their manifests. A file is changed when its content, permissions or link are others.

    Raises :class:`CheckpointError` when one of them is not there or cannot be read.
    """
    old, new = ({entry.path: entry for entry in manifest_of(store, run, number).files} for number in (before, after))
    found = Differences(before, after)
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was is None or now is None:
            entry = Difference(path, was.size if was else None, now.size if now else None)
            (found.added if was is None else found.removed).append(entry)
        elif was.content != now.content:
            found.changed.append(Difference(path, was.size, now.size))
    return found


def restore_file(store: Store, run: str, sequence: int, path: str, target: Path) -> FileEntry:
    """Write one file of a set to ``target``, or into it where it is a folder, and return the file's entry.

    It appears whole, with the permissions that it had, or not at all. Raises :class:`UsageError` when ``target`` is
    there already, or the set has no such file (a link is none), :class:`CheckpointError` when its object is damaged.
    """
    manifest = manifest_of(store, run, sequence)
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        near = [other.path for other in manifest.files if other.path.rpartition("/")[2] == path.rpartition("/")[2]]
        hint = f" It has {near[0]}." if near else ""
        raise UsageError(f"Checkpoint {sequence} of {run} has no file {path}.{hint}")
    if entry.link is not None:
        raise UsageError(f"{path} is a link to {entry.link} in checkpoint {sequence} of {run}: name that file.")
    place = target / entry.path.rpartition("/")[2] if target.is_dir() else target
    if os.path.lexists(place):
        raise UsageError(f"{place} is there already, and nothing is overwritten: remove it, or name another place.")
    part = place.with_name(f".gpuyard-part-{uuid.uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            for chunk in store.chunks(entry.key):
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != entry.sha256:
            note_damage(store, manifest, [entry.key])
            raise DamagedSetError(f"{entry.key} does not have the content that its manifest names", [entry.key])
        part.chmod(entry.mode)
        if entry.mtime_ns:
            os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns))
        try:
            # Unlike renaming, this overwrites nothing that has come meanwhile; not every file system knows it.
            os.link(part, place)
        except FileExistsError:
            raise
        except OSError:
            part.replace(place)
    except MissingObjectError as error:
        raise CheckpointError(f"{path} of checkpoint {sequence} is damaged: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return entry
