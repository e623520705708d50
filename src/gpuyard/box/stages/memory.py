"""Whether a stage failed because a memory was full: the GPU's, the machine's, or the shared one; and what to change.

A program's own words in its log count first. Of what the kernel killed, the counters of the stage's control group tell
(``oom_kill`` of cgroup v2 and v1), else the kernel's log where it may be read, else the counter of the whole machine.
In a container that last one counts what happened to others too, so it only counts for a stage that SIGKILL ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GPU = re.compile(
    r"CUDA out of memory|HIP out of memory|OutOfMemoryError|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
    r"|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|RESOURCE_EXHAUSTED: (?:XLA:\w+: )?(?:Out of memory|Failed to allocate)|OOM when allocating tensor"
    r"|No available memory for the cache blocks|Not enough memory\. Please try to increase --mem-fraction-static"
)
_SHARED = re.compile(
    r"out of shared memory|insufficient shared memory|unable to (?:open|mmap) shared memory object .*No space left"
)
_MAIN = re.compile(
    r"^(?:\[[^\]]*\]:? ?)?(?:numpy\S*\.)?_?(?:Array)?MemoryError\b"
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    r"|std::bad_alloc|memory allocation of \d+ bytes failed|Cannot allocate memory|JavaScript heap out of memory"
    r"|DataLoader worker \(pid[^)]*\) is killed by signal: Killed"
)
_KILLED_IN_LOG = re.compile(r"Killed process \d+ \(([^)]*)\)")
_READ_BYTES = 64 * 1024
_SHOWN = 160  # characters of a line that are repeated in a reason

ADVICE = {
    "GPU memory": "make the batch smaller and accumulate gradients over more steps, or ask for a larger gpu_ram_gb in "
    "the workload's needs",
    "main memory": "load less at a time (a smaller batch, fewer workers that load data), or ask for a larger ram_gb in "
    "the workload's needs",
    "shared memory": "have fewer workers that load data, or none, since /dev/shm of this box is too small for them",
}
"""What to change, by the memory that was full."""


@dataclass(frozen=True)
class Kills:
    """What the kernel has counted until now. ``None`` is what cannot be read."""

    own: int | None
    """Processes of this control group that it killed for want of memory."""
    machine: int | None
    """The same of the whole machine."""


def kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Kills:
    """Return the counters of this process' control group and of the machine."""
    return Kills(_own(proc, cgroups), _count(proc / "vmstat"))


def why(log: Path, begin: int, exit_code: int, before: Kills, kernel: int | None = None) -> str | None:
    """Return why a failed stage counts as out of memory, with what to change, ``None`` where nothing says so.

    ``log`` is read from byte ``begin`` on, where the attempt began; ``before`` is what was counted then. ``kernel`` is
    the kernel's log as :func:`kernel_log` opened it then.
    """
    text = _tail(log, begin)
    for memory, pattern in (("GPU memory", _GPU), ("shared memory", _SHARED), ("main memory", _MAIN)):
        lines = [line.strip() for line in text.splitlines() if pattern.search(line.strip())]
        if lines:
            return f"it ran out of {memory} (its log says: {lines[-1][:_SHOWN].rstrip('.')}); {ADVICE[memory]}"
    said = _killed(exit_code, before, kernel)
    return f"it ran out of main memory ({said}); {ADVICE['main memory']}" if said else None


def _killed(exit_code: int, before: Kills, kernel: int | None) -> str | None:
    now = kills()
    if before.own is not None and now.own is not None and now.own > before.own:
        return "the kernel killed a process of it"
    if exit_code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return None
    names = _named(kernel) if kernel is not None else []
    if names:
        return f"the kernel killed {names[-1]}"
    if before.own is None and before.machine is not None and now.machine is not None and now.machine > before.machine:
        return "SIGKILL ended it when the kernel killed for want of memory on this machine"
    return None


@contextlib.contextmanager
def kernel_log(file: Path = Path("/dev/kmsg")) -> Iterator[int | None]:
    """Open the kernel's log at its end, so that what comes later can be read; ``None`` where that is not allowed."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        os.lseek(handle, 0, os.SEEK_END)
        yield handle
    finally:
        os.close(handle)


def _named(kernel: int) -> list[str]:
    """Return the names of the processes that the kernel says it killed, since its log was opened."""
    found: list[str] = []
    while True:
        try:
            record = os.read(kernel, 8192)
        except BrokenPipeError:
            continue  # the kernel has overwritten what was not read yet
        except OSError:
            return found  # nothing more, or a log that cannot be read
        if not record:
            return found
        found += _KILLED_IN_LOG.findall(record.decode(errors="replace"))


def _own(proc: Path, cgroups: Path) -> int | None:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # In a container the path may be the host's name for what is the root here.
        if controllers == "":
            places = [cgroups / path.lstrip("/") / "memory.events", cgroups / "memory.events"]
        elif "memory" in controllers.split(","):
            folder = cgroups / "memory"
            places = [folder / path.lstrip("/") / "memory.oom_control", folder / "memory.oom_control"]
        else:
            continue
        for place in places:
            if (count := _count(place)) is not None:
                return count
    return None


def _count(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


def _tail(log: Path, begin: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(begin, size - _READ_BYTES))
        return stream.read(_READ_BYTES).decode(errors="replace")
    return ""
