"""What sets a bucket holds of a run: their numbers and manifests."""

from __future__ import annotations

from collections.abc import Iterator

from gpuyard.box.checkpoints.listing import Listing, numbers_of, read_manifest, sets_prefix
from gpuyard.box.checkpoints.stores import Store
from gpuyard.box.checkpoints.wording import numbers_in_words
from gpuyard.errors import CheckpointError, MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import Manifest


def sequences(store: Store, run: str) -> list[int]:
    """Return the numbers of the sets of ``run``, newest first, whether or not each has a manifest."""
    return numbers_of(store.folders(sets_prefix(run)))


def manifest_of(store: Store, run: str, sequence: int) -> Manifest:
    """Return the checkpoint with this number, or raise a :class:`CheckpointError` that says which there are."""
    try:
        return read_manifest(store, run, sequence)
    except MissingObjectError:
        there = [number for number in sequences(store, run) if number != sequence]
        raise CheckpointError(
            f"Run {run} has no checkpoint {sequence} in {store.url}; there {numbers_in_words(there) or 'is none'}."
        ) from None


def manifests(store: Store, run: str) -> Iterator[Manifest]:
    """Yield the complete checkpoints of ``run``, newest first; a set that has no manifest is passed over.

    A manifest that is there and cannot be read raises :class:`UnreadableManifestError`: what it stood for is not
    nothing, so nobody begins afresh over it, or with something older, but by choice.
    """
    left = sequences(store, run)
    while left:
        sequence = left.pop(0)
        try:
            yield read_manifest(store, run, sequence)
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            raise UnreadableManifestError(
                f"{error} Bring that object back, or "
                + (
                    f"take an older checkpoint by choice, with -e restore={left[0]} (there {numbers_in_words(left)})."
                    if left
                    else "name another run: there is no older checkpoint."
                )
            ) from error


def latest_manifest(store: Store, run: str) -> Manifest | None:
    """Return the newest complete checkpoint of ``run``, or ``None`` when there is no manifest at all.

    Raises :class:`UnreadableManifestError` when there is one that cannot be read, and :class:`BucketError`.
    """
    return next(manifests(store, run), None)


def newest_readable(store: Store, seen: Listing) -> tuple[Manifest | None, list[str]]:
    """Return the newest manifest that can be read, and a warning for each newer one that cannot."""
    warnings: list[str] = []
    for sequence in seen.complete:
        try:
            return read_manifest(store, seen.run, sequence), warnings
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            warnings.append(kept_because_of(error))
    return None, warnings


def manifest_if_there(store: Store, run: str, sequence: int) -> Manifest | None:
    try:
        return read_manifest(store, run, sequence)
    except MissingObjectError:
        return None


def kept_because_of(error: UnreadableManifestError) -> str:
    return f"{error} No older checkpoint is removed while it is there."
