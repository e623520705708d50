"""The limits of runs: until when they are rented, what they may cost, and what their end spares."""

from __future__ import annotations

from gpuyard.box.checkpoints import Store
from gpuyard.errors import MissingObjectError
from gpuyard.formats.limits import Limits, limits_key


def read(store: Store, run: str) -> Limits:
    """Return the limits of ``run``, none where none are written.

    Raises :class:`gpuyard.errors.CheckpointError` for limits that cannot be read, and
    :class:`gpuyard.errors.BucketError`.
    """
    key = limits_key(run)
    try:
        return Limits.from_bytes(store.get(key), where=f"{store.url}/{key}")
    except MissingObjectError:
        return Limits()


def write(store: Store, run: str, limits: Limits) -> None:
    """Write the limits of ``run`` down, in place of those that were there. Raises :class:`BucketError`."""
    store.put(limits_key(run), limits.to_bytes())
