"""What lies where below a run's checkpoints: the keys, and one listing of them taken apart.

``<run>/checkpoints/000042/`` holds the set with the number 42: its ``manifest.json``, and its files below ``files/``,
where no file can have a key of ours. Beside them lies ``damaged.json`` when reading the set has shown objects that do
not have the content that its manifest names; they may be another set's. While a set is being made, its publisher's
claim lies there, too (``claim-….json``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import MALFORMED, FileEntry, Manifest, timestamp

MANIFEST = "manifest.json"
FILES = "files/"
NOTE = "damaged.json"
# A set that is being made and got nothing new for so long has been given up.
CLAIM_LIVES_S = 3600.0
_CLAIM = "claim-"


def sets_prefix(run: str) -> str:
    """Return what the keys of all sets of ``run`` begin with."""
    return f"{run}/checkpoints/"


def set_prefix(run: str, sequence: int) -> str:
    """Return what the keys of one set begin with."""
    return f"{sets_prefix(run)}{sequence:06d}/"


def manifest_key(run: str, sequence: int) -> str:
    """Return the key of a set's manifest."""
    return set_prefix(run, sequence) + MANIFEST


def claim_key(run: str, sequence: int, publisher: str) -> str:
    """Return the key of a publisher's claim on a number."""
    return f"{set_prefix(run, sequence)}{_CLAIM}{publisher}.json"


def note_key(run: str, sequence: int) -> str:
    """Return the key of the note on a set's damaged objects."""
    return set_prefix(run, sequence) + NOTE


def read_note(store: Store, run: str, sequence: int) -> frozenset[str]:
    """Return the keys that the note of a set calls damaged; none when there is no note, or what is there is none."""
    try:
        document = json.loads(store.get(note_key(run, sequence)))
        return frozenset(key for key in document["damaged"] if isinstance(key, str))
    except (MissingObjectError, *MALFORMED):
        return frozenset()


def write_note(store: Store, manifest: Manifest, keys: Iterable[str]) -> None:
    """Note in the bucket that these objects of a set are damaged, beside what is noted already."""
    run, sequence = manifest.run, manifest.sequence
    place = note_key(run, sequence)
    if any(entry.key == place for entry in manifest.files):
        return  # a set in the old form, which has a file there
    damaged = sorted({*keys, *read_note(store, run, sequence)})
    store.put(place, json.dumps({"time": timestamp(), "damaged": damaged}, indent=1).encode())


def read_manifest(store: Store, run: str, sequence: int) -> Manifest:
    """Return the manifest of one set.

    Raises :class:`gpuyard.box.checkpoints.MissingObjectError` and
    :class:`gpuyard.formats.manifest.UnreadableManifestError`.
    """
    key = manifest_key(run, sequence)
    where = f"{store.url}/{key}"
    manifest = Manifest.from_bytes(store.get(key), where=where, run=run)
    if manifest.sequence != sequence:
        raise UnreadableManifestError(f"{where} calls itself checkpoint {manifest.sequence}, so it belongs elsewhere.")
    return manifest


def numbers_of(names: Iterable[str]) -> list[int]:
    """Return the numbers of the sets whose folders have these names, newest first. Other folders are passed over."""
    found = {int(name) for name in names if re.fullmatch(r"[0-9]{6,18}", name) and f"{int(name):06d}" == name}
    return sorted(found - {0}, reverse=True)


def number_of(run: str, key: str) -> int:
    """Return the number of the set in whose folder ``key`` lies, 0 for a key that lies in none."""
    prefix = sets_prefix(run)
    return next(iter(numbers_of([key[len(prefix) :].partition("/")[0]])), 0) if key.startswith(prefix) else 0


class Listing:
    """Everything that lay below a run's checkpoints at one moment."""

    def __init__(self, store: Store, run: str) -> None:
        """Ask the store. Raises :class:`gpuyard.box.checkpoints.BucketError`."""
        self.run = run
        self.objects = {item.key: item for item in store.objects(sets_prefix(run))}
        self._start = len(sets_prefix(run))
        noted = [number for number in self.numbers if note_key(run, number) in self.objects]
        # By set, what is known to be damaged.
        self.notes = {number: read_note(store, run, number) for number in noted}
        self.damaged = frozenset[str]().union(*self.notes.values())

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

    def claims_of(self, publisher: str) -> list[str]:
        """Return the keys of a publisher's claims."""
        return [key for number in self.numbers if (key := claim_key(self.run, number, publisher)) in self.objects]

    def claims(self) -> list[str]:
        """Return the keys of all claims."""
        return [
            key
            for number in self.numbers
            for key in self.keys(number)
            if key.startswith(set_prefix(self.run, number) + _CLAIM)
        ]

    def open_claims(self, publisher: str) -> list[int]:
        """Return the numbers of the sets that publishers other than this one are making.

        The store's own clock says how long ago they sent something, as against the newest object of all.
        """
        now = max((item.modified for item in self.objects.values()), default=0.0)
        return [
            number
            for number in set(self.numbers).difference(self.complete)
            if self._others_claim(number, publisher)
            and now - max(self.objects[key].modified for key in self.keys(number)) < CLAIM_LIVES_S
        ]

    def _others_claim(self, number: int, publisher: str) -> bool:
        prefix, own = set_prefix(self.run, number) + _CLAIM, claim_key(self.run, number, publisher)
        return any(key.startswith(prefix) and key != own for key in self.keys(number))

    def still_shows(self, before: Listing) -> bool:
        """Tell whether the complete sets are those of ``before``, and everything is there that was there then."""
        return self.complete == before.complete and all(
            (there := self.objects.get(key)) is not None and (there.size, there.tag) == (item.size, item.tag)
            for key, item in before.objects.items()
            if not key.rpartition("/")[2].startswith(_CLAIM)
        )

    def holds(self, entry: FileEntry) -> bool:
        """Tell whether the object of ``entry`` is there as its manifest describes it; a link needs none."""
        return entry.link is not None or (self.may_hold(entry) and self.has_tag(entry, unknown=True))

    def may_hold(self, entry: FileEntry) -> bool:
        """Tell whether an object of the right size is there that is not known to be damaged."""
        item = self.objects.get(entry.key)
        return item is not None and item.size == entry.size and entry.key not in self.damaged

    def has_tag(self, entry: FileEntry, *, unknown: bool) -> bool:
        """Tell whether the object has the tag that its entry remembers; ``unknown`` when one of them has none."""
        there = self.objects[entry.key].tag
        return entry.tag == there if entry.tag and there else unknown
