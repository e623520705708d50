"""What the machine itself says at this moment: its GPUs, its disks, its load."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_QUERY = ("index", "name", "utilization.gpu", "memory.used", "memory.total")
# A driver that hangs must not keep anybody waiting who asks how a run stands.
_LIMIT_S = 2.5
_GB_PER_MIB = 1024**2 / 1e9


@dataclass(frozen=True)
class Gpu:
    """One GPU: its use (percent of the last moment) and its memory (10^9 bytes). ``None`` is what it does not tell."""

    index: int
    name: str
    use_percent: float | None
    memory_used_gb: float | None
    memory_total_gb: float | None


@dataclass(frozen=True)
class Disk:
    """A file system by the folder that was asked for; sizes in 10^9 bytes, ``used_percent`` as ``df`` reckons it."""

    path: str
    total_gb: float
    used_gb: float
    free_gb: float
    used_percent: float


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs, none where there is no ``nvidia-smi`` or where it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [found for line in answer.stdout.splitlines() if (found := _gpu(line)) is not None]


def _gpu(line: str) -> Gpu | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(_QUERY) or not cells[0].isdigit():
        return None
    use, used, total = map(_number, cells[2:])
    return Gpu(int(cells[0]), cells[1], use, _gb(used), _gb(total))


def _number(cell: str) -> float | None:
    """Return a cell's number, ``None`` for what the GPU does not tell (``[N/A]``)."""
    with contextlib.suppress(ValueError):
        return float(cell)
    return None


def _gb(mib: float | None) -> float | None:
    return None if mib is None else round(mib * _GB_PER_MIB, 2)


def disk(folder: Path) -> Disk | None:
    """Return the file system that ``folder`` is, or will be, on; ``None`` when it cannot be asked."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            found = os.statvfs(place)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            free = found.f_bavail * found.f_frsize
            percent = 100 * used / (used + free) if used + free else 0.0
            total_gb, used_gb, free_gb = (
                round(size / 1e9, 3) for size in (found.f_blocks * found.f_frsize, used, free)
            )
            return Disk(str(folder), total_gb, used_gb, free_gb, round(percent, 1))
    return None


def facts(root: Path) -> dict[str, Any]:
    """Return what the machine says as JSON-able values; ``disk`` is that of the persistent root.

    ``load`` is the number of processes that want a processor, on the average of the last minute, of ``cores``.
    """
    found = disk(root)
    return {
        "gpus": [asdict(gpu) for gpu in gpus()],
        "disk": asdict(found) if found else None,
        "load": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
    }
