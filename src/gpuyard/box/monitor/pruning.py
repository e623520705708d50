"""Room on a disk that is nearly full, from what can be had again or nobody needs: never data, models or checkpoints.

* what earlier commands have left in ``.gpuyard/tmp``, which no checkpoint holds,
* the parts of stages' logs that were put aside, as far as the newest checkpoint holds them,
* what the workload calls a ``cache`` in ``persist.rules``, where nobody has read or written it for an hour.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuyard.box.stages.spec import BoxSpec
from gpuyard.formats.manifest import SCRATCH, STATE

UNUSED_S = 3600.0
"""What has been used within so many seconds may be in use."""
# What publishing and restoring need again, and what an own box keeps for its user.
_KEPT = frozenset({"reserve", "publish.lock", "hashes.json", "bucket-failed", "lacking", "released", "restore"})


@dataclass(frozen=True)
class Freed:
    """What was removed, in bytes, by what it was."""

    leftovers: int = 0
    logs: int = 0
    caches: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.leftovers + self.logs + self.caches

    @property
    def words(self) -> str:
        """What was freed, in words; empty for nothing."""
        parts = [
            (self.leftovers, "leftovers of earlier commands"),
            (self.logs, "old logs that the bucket holds"),
            (self.caches, "caches"),
        ]
        return ", ".join(f"{size / 1e9:.3g} GB of {what}" for size, what in parts if size)


def prune(spec: BoxSpec, now: float) -> Freed:
    """Remove what is safe to remove, and return what that was. What cannot be removed stays; nothing is raised."""
    old = now - UNUSED_S
    leftovers = sum(_remove(path) for path in _leftovers(spec.root / SCRATCH, old))
    logs = sum(_remove(path) for path in _old_logs(spec, old))
    caches = sum(_remove(path) for path in _caches(spec, old))
    return Freed(leftovers, logs, caches)


def _leftovers(scratch: Path, old: float) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in scratch.iterdir():
            if path.name not in _KEPT and not _used_since(path, old):
                yield path


def _old_logs(spec: BoxSpec, old: float) -> Iterator[Path]:
    """Yield parts of logs that were put aside before the newest checkpoint was made."""
    published = spec.root / SCRATCH / "hashes.json"
    if not spec.bucket or not published.exists():
        return
    held = published.stat().st_mtime
    for path in (spec.root / STATE / "logs").glob("*.log.[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < min(old, held):
                yield path


def _caches(spec: BoxSpec, old: float) -> Iterator[Path]:
    if not any(rule.kind == "cache" and not rule.publish for rule in spec.rules.rules):
        return
    for folder, _, names in os.walk(spec.root):
        for name in names:
            path = Path(folder) / name
            found = spec.rules.match(path.relative_to(spec.root).as_posix())
            if found and found[0].kind == "cache" and not found[0].publish and not _used_since(path, old):
                yield path


def _used_since(path: Path, old: float) -> bool:
    """Tell whether a file, or any file of a folder, was read or written since; what cannot be asked counts as used."""
    try:
        info = path.lstat()
        if max(info.st_mtime, info.st_ctime, info.st_atime if not path.is_dir() else 0.0) >= old:
            return True
        return path.is_dir() and not path.is_symlink() and any(_used_since(one, old) for one in path.iterdir())
    except OSError:
        return True


def _remove(path: Path) -> int:
    """Remove a file or folder; return how many bytes that has freed."""
    try:
        if path.is_dir() and not path.is_symlink():
            size = sum(one.lstat().st_blocks * 512 for one in path.rglob("*"))
            shutil.rmtree(path)
            return size
        info = path.lstat()
        path.unlink()
        # Another name of it still holds its bytes.
        return info.st_blocks * 512 if info.st_nlink == 1 else 0
    except OSError:
        return 0
