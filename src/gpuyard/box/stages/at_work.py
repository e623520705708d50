"""The mark that a run is meant to be at work on this box, and the lock of whoever starts its session.

Whoever starts a session leaves the mark; a run that ends, ``stop`` and Ctrl-C in the window remove it. A machine that
goes down leaves it behind, which :mod:`.starting_again` goes by.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from gpuyard.box.stages.choice import Choice
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.files import write_whole

MARK = "at-work.json"
_LOCK = "start.lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only one on this box who starts a session: a second one waits, and then finds what the first started."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def remember(spec: BoxSpec, choice: Choice) -> None:
    """Leave the mark: the run is to be at work, with what is left of ``choice``. A full disk only loses the mark."""
    # Where it was to begin is in the journal from now on.
    kept = Choice(only=choice.only, iteration=choice.iteration if choice.only else None, until=choice.until)
    with contextlib.suppress(OSError):
        write_whole(spec.folder / MARK, json.dumps({"run": spec.run, **asdict(kept)}), mode=0o644, durable=True)


def forget(folder: Path) -> None:
    """Remove the mark: the run is over, or somebody has ended it."""
    with contextlib.suppress(OSError):
        (folder / MARK).unlink(missing_ok=True)


def marked(spec: BoxSpec) -> Choice | None:
    """Return what the run was to do, ``None`` where it was not at work, or where this is another run."""
    try:
        record = json.loads((spec.folder / MARK).read_bytes())
        return Choice(**record) if record.pop("run") == spec.run else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
