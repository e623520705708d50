"""Which sets stay in a bucket, and the removal of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuyard.box.checkpoints.listing import Listing, manifest_key, note_key
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.reading import kept_because_of, manifest_if_there
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import UnreadableManifestError
from gpuyard.formats.manifest import Manifest


@dataclass(frozen=True)
class Retention:
    """Which sets stay: the newest ``keep_last`` (0: all), and every ``keep_every``-th by its number (0: none)."""

    keep_last: int = 0
    keep_every: int = 0

    def keeps(self, sequences: Iterable[int]) -> set[int]:
        """Return those of ``sequences`` that stay."""
        known = sorted(sequences)
        if self.keep_last <= 0:
            return set(known)
        return set(known[-self.keep_last :]) | {n for n in known if self.keep_every > 0 and n % self.keep_every == 0}


def prune(store: Store, retention: Retention, seen: Listing, newest: Manifest) -> tuple[int, list[str]]:
    """Remove what no kept set needs; return how many objects went, and why none went.

    ``newest`` has just been published and seen to be whole; it stays, and so does whatever came after it. A dropped set
    loses its manifest before its files, so it is never taken for complete. Nothing is removed when any manifest cannot
    be read, because nobody knows what that set needs, or whether it will be wanted. Sets that never got a manifest go
    too.
    """
    run = newest.run
    kept = retention.keeps(seen.complete) | {number for number in seen.numbers if number >= newest.sequence}
    doomed = {key for number in seen.numbers if number not in kept for key in seen.keys(number)}
    if not doomed:
        return 0, []
    needed = {entry.key for entry in newest.files}
    others = [number for number in seen.complete if number != newest.sequence]
    try:
        found = in_parallel(lambda number: manifest_if_there(store, run, number), others)
    except UnreadableManifestError as error:
        return 0, [kept_because_of(error)]
    for other in found:
        if other is not None and other.sequence in kept:
            needed |= {entry.key for entry in other.files}
    # A note stays as long as anything that it speaks of.
    needed |= {
        note_key(run, number)
        for number, damaged in seen.notes.items()
        if any(key in seen.objects and (key in needed or key not in doomed) for key in damaged)
    }
    gone = doomed - needed
    first = {key for number in seen.complete if (key := manifest_key(run, number)) in gone}
    in_parallel(store.delete, first)
    in_parallel(store.delete, gone - first)
    return len(gone), []


def clear_unfinished(store: Store, run: str) -> int:
    """End the uploads that publishers of ``run`` did not finish, and take their claims back; return how many that were.

    For a run whose machines are gone: a publisher that is at work would have to begin again. Raises
    :class:`BucketError`.
    """
    claims = Listing(store, run).claims()
    in_parallel(store.delete, claims)
    return store.abort_unfinished(f"{run}/") + len(claims)
