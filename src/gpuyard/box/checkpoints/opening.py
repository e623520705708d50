"""From an address to the store behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gpuyard.box.checkpoints import libraries, obstore_store, s3_store
from gpuyard.box.checkpoints.local_store import LocalStore
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import UsageError
from gpuyard.formats.location import Location

LIBRARIES = libraries.VARIABLE
_STORES: dict[str, tuple[Callable[[Location, Mapping[str, str]], Store], str]] = {
    "s3": (s3_store.S3Store, s3_store.PACKAGE),
    "gs": (obstore_store.ObstoreStore, obstore_store.PACKAGE),
    "az": (obstore_store.ObstoreStore, obstore_store.PACKAGE),
}
"""What opens each kind of bucket that is reached by network, and the package that it needs."""


def open_store(location: Location | str, *, env: Mapping[str, str] | None = None) -> Store:
    """Return the store at a place or address. Nothing is asked of it yet.

    What the place does not say, and what opens it, is taken from ``env`` (default: the process environment) under the
    names of :data:`gpuyard.formats.location.KINDS`. Raises :class:`gpuyard.errors.UsageError` for what is no address.
    """
    values = os.environ if env is None else env
    place = (Location.parse(location) if isinstance(location, str) else location).completed(values)
    if place.scheme == "file":
        return LocalStore(Path(place.name))
    if not place:
        raise UsageError("An empty address is not an address of a bucket: use s3://name or file:///folder.")
    make, _ = _STORES[place.scheme]
    return make(place, values)


def libraries_for(location: Location) -> str:
    """Return the folder in which this Python has what opens the bucket, ``""`` where it needs nothing or has it not."""
    _, package = _STORES.get(location.scheme, (None, ""))
    return libraries.folder_of(package) if package else ""
