from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_box import Box

from gpuyard.box.stages import memory
from gpuyard.box.stages.memory import ADVICE, Kills
from gpuyard.renting import watch

NONE = Kills(None, None)


@pytest.mark.parametrize(
    ("line", "which"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "GPU memory"),
        ("[rank0]: torch.cuda.OutOfMemoryError: CUDA out of memory.", "GPU memory"),
        ("jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to", "GPU memory"),
        ("RuntimeError: CUDA error: out of memory", "GPU memory"),
        ("CUDA_ERROR_OUT_OF_MEMORY (error code 2)", "GPU memory"),
        ("MemoryError", "main memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 931. GiB for an array", "main memory"),
        ("memory allocation of 4294967296 bytes failed", "main memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "main memory"),
        ("RuntimeError: DataLoader worker (pid 71) is killed by signal: Killed.", "main memory"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
         "workers are out of shared memory.", "shared memory"),
        ("see the docs about OOM and MemoryError handling", None),
        ("allocating 2 GB of memory", None),
    ],
)  # fmt: skip
def test_a_programs_own_words(tmp_path: Path, line: str, which: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(f"step 1\n{line}\nmore\n")
    said = memory.why(log, 0, 1, NONE)
    if which is None:
        assert said is None
        return
    assert said is not None
    assert said.startswith(f"it ran out of {which} (its log says: {line[:40]}")
    assert said.endswith(ADVICE[which])


def test_what_an_earlier_attempt_said_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("CUDA out of memory\n")
    assert memory.why(log, log.stat().st_size, 1, NONE) is None


def counters(folder: Path, *, own: str, machine: int) -> tuple[Path, Path]:
    """Return a stand-in for /proc and /sys/fs/cgroup."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "vmstat").write_text(f"nr_free_pages 5\noom_kill {machine}\n")
    (proc / "self/cgroup").write_text({"v2": "0::/box\n", "v1": "4:cpu,memory:/box\n0::/\n", "none": "0::/\n"}[own])
    return proc, cgroups


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("v2", "box/memory.events"),
        ("v2", "memory.events"),  # a container calls the root what the host calls /box
        ("v1", "memory/box/memory.oom_control"),
        ("v1", "memory/memory.oom_control"),
    ],
)
def test_the_counters_of_the_control_group(tmp_path: Path, version: str, file: str) -> None:
    proc, cgroups = counters(tmp_path, own=version, machine=3)
    place = cgroups / file
    place.parent.mkdir(parents=True)
    place.write_text("low 0\noom 2\noom_kill 4\n")
    assert memory.kills(proc, cgroups) == Kills(4, 3)
    place.unlink()
    assert memory.kills(proc, cgroups) == Kills(None, 3)


@pytest.mark.parametrize(
    ("code", "before", "now", "kernel", "words"),
    [
        (1, Kills(1, 1), Kills(2, 2), b"", "the kernel killed a process of it"),
        (137, Kills(1, 1), Kills(1, 5), b"", None),  # somebody else's on the same machine
        (137, Kills(None, 1), Kills(None, 2), b"", "SIGKILL ended it when the kernel killed"),
        (1, Kills(None, 1), Kills(None, 2), b"", None),
        (
            137,
            NONE,
            NONE,
            b"3,1,2,-;Out of memory: Killed process 41 (python3) total-vm:1kB",
            "the kernel killed python3",
        ),
        (137, NONE, NONE, b"3,1,2,-;something else", None),
    ],
)
def test_what_the_kernel_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, before: Kills, now: Kills, kernel: bytes, words: str
) -> None:
    monkeypatch.setattr(memory, "kills", lambda: now)
    record = tmp_path / "kmsg"
    record.write_bytes(b"")
    with memory.kernel_log(record) as handle:
        record.write_bytes(kernel)
        said = memory.why(tmp_path / "no-log", 0, code, before, handle)
    assert (said is None) if words is None else (words in (said or ""))
    with memory.kernel_log(tmp_path / "none") as handle:
        assert handle is None


def test_a_run_says_it_wherever_one_looks(box: Box) -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    box.describe([{"name": "train", "command": f"echo '{line}'; exit 1"}])
    assert box.run() == 1
    status = box.status()
    reason = status["failure"]["reason"]
    assert reason.startswith(f"train ended with exit code 1: it ran out of GPU memory (its log says: {line}); make the")
    assert status["stages"][0]["reason"] == reason.rstrip(".")
    assert reason in box.call("status").stdout
    assert "it ran out of GPU memory" in (box.root / ".gpuyard/logs/0-train.log").read_text()
    assert "exit code 1: it ran out of GPU memory" in watch.failure_text(json.loads(json.dumps(status)))
    assert watch.tell(box.events("stage-end")[0]).endswith(ADVICE["GPU memory"])


@pytest.fixture
def narrow() -> Iterator[Path]:
    """Return a control group of 150 MB, of this machine's kernel."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    folder, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = folder / f"gpuyard-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text("150M")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control group can be made here that limits the memory")
    yield group
    group.rmdir()


def test_a_real_kernel_kills_for_want_of_memory(box: Box, narrow: Path) -> None:
    hungry = f"{sys.executable} -c 'held = bytearray(600_000_000)'"
    box.describe([{"name": "train", "command": f"{hungry}; echo went on >> marks"}])
    runner = [sys.executable, "-m", "gpuyard.box.stages", "run", "--settings", str(box.settings)]
    begin = f"echo $$ > {narrow}/cgroup.procs; exec {shlex.join(runner)}"
    assert subprocess.run(["bash", "-c", begin], env=box.env, capture_output=True, check=False).returncode == 1
    failure = box.status()["failure"]
    assert failure["exit_code"] == 137
    said = "it ran out of main memory (the kernel killed a process of it); load less"
    assert failure["reason"].startswith(f"train ended with exit code 137: {said}")
