"""Claims and releases a box that the user owns: what stands there for a cloud's "create" and "destroy".

The controller sends this file's source over SSH as ``python3 -c``, as root, before anything of gpuyard is on the box:
Python 3.10, standard library, no import of gpuyard. It answers with one JSON object. Nothing here ends, restarts or
switches off the box.

The claim is ``own.json`` in gpuyard's folder. It is linked into place, which fails where there is one, so that of two
controllers only one gets the box.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CLAIM = "own.json"
RELEASED = ".gpuyard/tmp/released"  # below the persistent root; nothing below .gpuyard/tmp is ever published
_END_S = 10.0


def current(root: Path) -> dict[str, Any]:
    """Return the claim that the box has, ``{}`` when it is free."""
    try:
        claim = json.loads((root / CLAIM).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"id": "?", "label": ""}  # whoever wrote it, the box is not free
    return claim if isinstance(claim, dict) else {"id": "?", "label": ""}


def claim(root: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Claim the box unless somebody else has; return the claim that it has then."""
    root.mkdir(parents=True, exist_ok=True)
    fresh = root / f".{CLAIM}.{os.getpid()}"
    fresh.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    try:
        os.link(fresh, root / CLAIM)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    return current(root)


def release(root: Path, claim_id: str) -> dict[str, Any]:
    """End what the claim's run does here, remove its settings, secrets and code, and then the claim.

    What its stages have written is moved aside, to :data:`RELEASED` below the persistent root, where no later run takes
    it for its own. Nothing happens when the box has another claim or none. Returns the claim that it has then.
    """
    if current(root).get("id") != claim_id:
        return current(root)
    run = root / "run"
    workload = _read(run / "workload.json")
    name = str(workload.get("name") or "")
    if name:
        subprocess.run(["tmux", "kill-session", "-t", f"={name}"], capture_output=True, check=False)
    _end(run, claim_id)
    persist = workload.get("persist") or {}
    if persist.get("root"):
        _move_aside(Path(persist["root"]), [str(path) for path in persist.get("directories") or ()], claim_id)
    # A later run begins as on a new machine: the fingerprint goes, so that the roles look at everything.
    (root / "converged.json").unlink(missing_ok=True)
    if name:
        shutil.rmtree(root / "src" / name, ignore_errors=True)
        for record in (root / "src").glob(f".{name}.*"):
            record.unlink(missing_ok=True)
    shutil.rmtree(run, ignore_errors=True)
    if run.exists():
        raise OSError(f"{run}, which holds the run's settings and secrets, cannot be removed")
    (root / CLAIM).unlink()
    return current(root)


def facts() -> dict[str, Any]:
    """Return what the box is: its GPUs, and memory and free disk in GB."""
    found: dict[str, Any] = {"gpu_count": 0, "gpu_name": "", "gpu_ram_gb": 0.0}
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False)
        rows = [line.rpartition(",") for line in answer.stdout.splitlines() if not answer.returncode and "," in line]
        if rows:
            memory = min(float(row[2]) for row in rows)
            found |= {"gpu_count": len(rows), "gpu_name": rows[0][0].strip(), "gpu_ram_gb": round(memory / 1024, 1)}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        pass  # a box without a GPU, or with a driver that does not answer
    memory_kb = int(Path("/proc/meminfo").read_text(encoding="utf-8").split("MemTotal:")[1].split()[0])
    free = shutil.disk_usage("/opt").free
    return found | {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(memory_kb / 2**20, 1),
        "disk_gb": round(free / 1e9, 1),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _end(run: Path, claim_id: str) -> None:
    """End the runner and everything that it has started, and come back when it is gone."""
    deadline = time.monotonic() + _END_S
    while processes := list(_processes(run, claim_id)):
        late = time.monotonic() > deadline
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline + _END_S:
            raise OSError(f"the run's processes {processes} do not end")
        time.sleep(0.2)


def _processes(run: Path, claim_id: str) -> Iterator[int]:
    """Yield the run's processes: each stage is told which instance it is on, and the runner names its settings."""
    mark = f"GPUYARD_INSTANCE_ID={claim_id}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        if int(place.name) in (os.getpid(), os.getppid()):
            continue
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            ours = mark in (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        runs = b"gpuyard.box.monitor" in words or (b"gpuyard.box.stages" in words and b"run" in words)
        if ours or (runs and str(run).encode() in words):
            yield int(place.name)


def _move_aside(root: Path, directories: list[str], claim_id: str) -> None:
    """Move what the run has written below its persistent root to where nothing is published."""
    scratch = root / RELEASED.rpartition("/")[0]
    for path in scratch.glob("*"):
        if path.name != Path(RELEASED).name:  # caches of what was published
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    aside = root / RELEASED / claim_id
    state = [f".gpuyard/{path.name}" for path in (root / ".gpuyard").glob("*") if path.name != scratch.name]
    for name in [*directories, *state]:
        source, target = root / name, aside / name
        if source.exists() and not (source.is_dir() and not any(source.iterdir())):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)


def main(arguments: list[str]) -> int:
    """Answer ``look``, ``facts``, ``claim CLAIM`` or ``release ID``, each behind gpuyard's folder on the box."""
    root, action, *words = arguments
    answer: dict[str, Any] = {}
    try:
        if action == "claim":
            answer["claim"] = claim(Path(root), json.loads(words[0]))
        elif action == "release":
            answer["claim"] = release(Path(root), words[0])
        else:
            answer["claim"] = current(Path(root))
        if action == "facts":
            answer["facts"] = facts()
    except OSError as error:
        print(f"gpuyard: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
