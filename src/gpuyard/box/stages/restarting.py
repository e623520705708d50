"""Which failures of a stage are tried again, and after what pause."""

from __future__ import annotations

import signal
from collections.abc import Sequence

ENDED_FOR = ("timeout", "silent")
"""What ``restart_on`` names besides exit codes and signals: the runner's own reasons to end a stage."""
MOST_PAUSE_S = 600.0
"""No pause is doubled beyond this (seconds)."""


def number_of(name: str) -> int | None:
    """Return the number of a signal such as ``SIGSEGV``, ``None`` where there is none of that name."""
    found = signal.Signals.__members__.get(name)
    return None if found is None else int(found)


def restarts(restart_on: Sequence[int | str], exit_code: int, ended_for: str | None) -> bool:
    """Return whether a stage that failed so is tried again, as far as its end goes.

    ``ended_for`` is why the runner ended it (of :data:`ENDED_FOR`), ``None`` where it ended by itself. An empty
    ``restart_on`` is any failure.
    """
    if not restart_on:
        return True
    if ended_for is not None:
        return ended_for in restart_on
    # A shell says 128 and the signal's number of a program that a signal ended.
    killed_by = -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else None
    signals = [number_of(item) for item in restart_on if isinstance(item, str)]
    return exit_code in restart_on or (killed_by is not None and killed_by in signals)


def pause(first_s: float, retry: int) -> float:
    """Return the seconds before a retry (from 1): ``first_s``, doubled each time, up to :data:`MOST_PAUSE_S`.

    A first pause that is longer than that is kept as it is.
    """
    doubled: float = first_s * 2 ** min(retry - 1, 30)
    return min(doubled, max(MOST_PAUSE_S, first_s))
