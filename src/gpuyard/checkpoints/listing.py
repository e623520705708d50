"""What lies where below a run's checkpoints: the keys, and one listing of them taken apart.

``<run>/checkpoints/000042/`` holds the set with the number 42: its ``manifest.json``, and its files below ``files/``,
where no file can have a key of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gpuyard.checkpoints.manifest import FileEntry, Manifest, UnreadableManifestError
from gpuyard.checkpoints.stores import Store, StoredObject

MANIFEST = "manifest.json"
FILES = "files/"


def sets_prefix(run: str) -> str:
    """Return what the keys of all sets of ``run`` begin with."""
    return f"{run}/checkpoints/"


def set_prefix(run: str, sequence: int) -> str:
    """Return what the keys of one set begin with."""
    return f"{sets_prefix(run)}{sequence:06d}/"


def manifest_key(run: str, sequence: int) -> str:
    """Return the key of a set's manifest."""
    return set_prefix(run, sequence) + MANIFEST


def read_manifest(store: Store, run: str, sequence: int) -> Manifest:
    """Return the manifest of one set.

    Raises :class:`gpuyard.checkpoints.MissingObjectError` and
    :class:`gpuyard.checkpoints.manifest.UnreadableManifestError`.
    """
    key = manifest_key(run, sequence)
    where = f"{store.url}/{key}"
    manifest = Manifest.from_bytes(store.get(key), where=where)
    if manifest.sequence != sequence:
        raise UnreadableManifestError(f"{where} calls itself checkpoint {manifest.sequence}, so it belongs elsewhere.")
    return manifest


def numbers_of(names: Iterable[str]) -> list[int]:
    """Return the numbers of the sets whose folders have these names, newest first. Other folders are passed over."""
    found = {int(name) for name in names if re.fullmatch(r"[0-9]{6,18}", name) and f"{int(name):06d}" == name}
    return sorted(found - {0}, reverse=True)


class Listing:
    """Everything that lay below a run's checkpoints at one moment."""

    def __init__(self, run: str, objects: Iterable[StoredObject]) -> None:
        self.run = run
        self.objects = {item.key: item for item in objects}
        self._start = len(sets_prefix(run))

    @classmethod
    def of(cls, store: Store, run: str) -> Listing:
        """Ask the store. Raises :class:`gpuyard.checkpoints.BucketError`."""
        return cls(run, store.objects(sets_prefix(run)))

    @property
    def numbers(self) -> list[int]:
        """The numbers of all sets, begun or whole, newest first."""
        return numbers_of({key[self._start :].partition("/")[0] for key in self.objects})

    @property
    def complete(self) -> list[int]:
        """The numbers of the sets that have a manifest, readable or not, newest first."""
        return [number for number in self.numbers if manifest_key(self.run, number) in self.objects]

    def keys(self, sequence: int) -> Iterator[str]:
        """Yield the keys of everything in one set's folder."""
        prefix = set_prefix(self.run, sequence)
        return (key for key in self.objects if key.startswith(prefix))

    def holds(self, entry: FileEntry) -> bool:
        """Tell whether the object of ``entry`` is there as its manifest describes it; a link needs none."""
        item = self.objects.get(entry.key)
        return entry.link is not None or (item is not None and item.size == entry.size)
