"""Locks between the commands of one controller."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from gpuyard import paths
from gpuyard.providers.base import Progress


@contextmanager
def exclusive(run: str, progress: Progress | None = None) -> Iterator[bool]:
    """Be the only one on this controller who rents for ``run``; yield whether somebody else was at it before.

    A second launch would otherwise see no machine either, and rent another under the same name.
    """
    file = paths.ensure_private(paths.home() / "locks") / f"{run}.lock"
    with file.open("w") as handle:
        waited = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if progress:
                progress(f"Another command is renting for run {run}; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield waited
