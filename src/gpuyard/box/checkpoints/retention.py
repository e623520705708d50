"""Which sets stay in a bucket, and the removal of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuyard.box.checkpoints.listing import Listing, manifest_key, note_key, number_of
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.reading import kept_because_of, manifest_if_there, newest_readable
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import CheckpointError, UnreadableManifestError, UsageError
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


@dataclass
class Pruned:
    """What went, or would go: the numbers of the sets (those that were never whole too), objects and their bytes."""

    sets: list[int]
    kept: list[int]
    objects: int
    bytes: int


def prune(store: Store, retention: Retention, seen: Listing, newest: Manifest) -> tuple[int, list[str]]:
    """Remove what no kept set needs; return how many objects went, and why none went.

    ``newest`` has just been published and seen to be whole; it stays, and so does whatever came after it. A dropped set
    loses its manifest before its files, so it is never taken for complete. Nothing is removed when any manifest cannot
    be read, because nobody knows what that set needs, or whether it will be wanted. Sets that never got a manifest go
    too.
    """
    try:
        gone = _unneeded(store, retention, seen, newest)
    except UnreadableManifestError as error:
        return 0, [kept_because_of(error)]
    _remove(store, seen, gone)
    return len(gone), []


def prune_run(store: Store, run: str, retention: Retention, *, dry_run: bool = False) -> Pruned:
    """Do the same on demand, with what ``retention`` keeps; ``dry_run`` only says what would go.

    Raises :class:`CheckpointError` while a publisher is at work, when the newest checkpoint is not whole as far as a
    listing tells, and when a manifest cannot be read; :class:`UsageError` for a retention that keeps nothing.
    """
    if retention.keep_last < 1:
        raise UsageError(f"keep_last={retention.keep_last} must be at least 1: the newest checkpoint always stays.")
    if retention.keep_every < 0:
        raise UsageError(f"keep_every={retention.keep_every} must be 0 (none), or a number of checkpoints.")
    seen = Listing(store, run)
    if at_work := seen.open_claims(""):
        raise CheckpointError(
            f"A machine has begun checkpoint {max(at_work)} of {run} within the last hour, so nothing is removed: "
            "prune when it is done, or when the machine is gone for an hour."
        )
    newest, warnings = newest_readable(store, seen)
    if warnings:
        raise CheckpointError(" ".join(warnings))
    if newest is None:
        raise CheckpointError(f"Run {run} has no checkpoint in {store.url}.")
    if not all(map(seen.holds, newest.files)):
        raise CheckpointError(
            f"Checkpoint {newest.sequence} of {run}, the newest, is not whole, so no older one is removed: verify them."
        )
    gone = _unneeded(store, retention, seen, newest)
    # Another publisher may have begun meanwhile: it relies on what the newest set has, and that stays.
    if not dry_run:
        _remove(store, seen, gone)
    # What a kept set needs of a removed one stays in that one's folder.
    sets = sorted({number_of(run, key) for key in gone}, reverse=True)
    kept = [number for number in seen.complete if manifest_key(run, number) not in gone]
    return Pruned(sets, kept, len(gone), sum(seen.objects[key].size for key in gone))


def _unneeded(store: Store, retention: Retention, seen: Listing, newest: Manifest) -> set[str]:
    """Return the keys that no kept set needs. Raises :class:`UnreadableManifestError`."""
    run = newest.run
    kept = retention.keeps(seen.complete) | {number for number in seen.numbers if number >= newest.sequence}
    doomed = {key for number in seen.numbers if number not in kept for key in seen.keys(number)}
    if not doomed:
        return set()
    needed = {entry.key for entry in newest.files}
    others = [number for number in seen.complete if number != newest.sequence]
    for other in in_parallel(lambda number: manifest_if_there(store, run, number), others):
        if other is not None and other.sequence in kept:
            needed |= {entry.key for entry in other.files}
    # A note stays as long as anything that it speaks of.
    needed |= {
        note_key(run, number)
        for number, damaged in seen.notes.items()
        if any(key in seen.objects and (key in needed or key not in doomed) for key in damaged)
    }
    return doomed - needed


def _remove(store: Store, seen: Listing, gone: set[str]) -> None:
    first = {key for number in seen.complete if (key := manifest_key(seen.run, number)) in gone}
    in_parallel(store.delete, first)
    in_parallel(store.delete, gone - first)


def clear_unfinished(store: Store, run: str) -> int:
    """End the uploads that publishers of ``run`` did not finish, and take their claims back; return how many that were.

    For a run whose machines are gone: a publisher that is at work would have to begin again. Raises
    :class:`BucketError`.
    """
    claims = Listing(store, run).claims()
    in_parallel(store.delete, claims)
    return store.abort_unfinished(f"{run}/") + len(claims)
