"""Why the runner is told to stop, and until when it has time: ``stop.json`` of the settings folder.

The monitor writes it and then sends SIGTERM to the runner, which reads it. A stop by anybody else leaves no note.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from gpuyard.files import write_whole

FILE = "stop.json"
_LEAST_GRACE_S = 1.0


@dataclass(frozen=True)
class Stop:
    """A stop. ``kind`` is ``preemption``, ``lease`` or ``budget``, ``why`` a clause for people.

    ``until`` is when the machine goes, in seconds since 1970; ``None`` where it stays. ``acknowledge`` is what the
    cloud's metadata service takes as the answer that all is saved.
    """

    kind: str
    why: str
    until: float | None = None
    acknowledge: str = ""

    def grace_s(self, grace_s: float, now: float) -> float:
        """Return how long a stage has to save its work that would have ``grace_s``.

        Of a time that is short, the other half is for the last checkpoint.
        """
        if self.until is None:
            return grace_s
        return min(grace_s, max(_LEAST_GRACE_S, (self.until - now) / 2))


def read(folder: Path) -> Stop | None:
    """Return the note, ``None`` where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Stop(**json.loads((folder / FILE).read_bytes()))
    return None


def clear(folder: Path) -> None:
    """Forget an earlier stop."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()


def tell(folder: Path, runner: int, stop: Stop) -> None:
    """Write the note and tell the runner, which is the process ``runner``. A full disk keeps only the note away."""
    with contextlib.suppress(OSError):
        write_whole(folder / FILE, json.dumps(asdict(stop)), mode=0o644)
    with contextlib.suppress(ProcessLookupError):
        os.kill(runner, signal.SIGTERM)
