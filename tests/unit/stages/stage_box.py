"""A stand-in for a rented box, and for a prover, for the tests of the stage runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpuyard
from gpuyard.box.stages import BoxSpec, load_spec

RUN = "canyon-0"
CANARY = "canary-wandb-77d1f0c9a2e4"
SOURCE = str(Path(gpuyard.__file__).parents[1])


def wait_for(condition: Callable[[], Any], *, seconds: float = 120, what: str = "") -> Any:
    """Return the condition's first true value, or fail."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s for {what or condition}"
        time.sleep(0.05)


def mark(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "command": f"echo $ITERATION-{name} >> marks", **fields}


def until(condition: str) -> str:
    """Return the command of a stage that takes until the shell command ``condition`` succeeds, two minutes at most."""
    return f"for i in $(seq 1200); do if {condition}; then exit 0; fi; sleep 0.1; done; exit 9"


@dataclass
class Box:
    """A stand-in for a rented box: the folders of one, on this machine, with real processes."""

    base: Path
    root: Path
    settings: Path
    repository: Path
    sockets: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def spec(self) -> BoxSpec:
        return load_spec(self.settings)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONPATH": SOURCE, "TMUX_TMPDIR": str(self.sockets)}

    def describe(
        self, stages: list[dict[str, Any]], *, bucket: str = "", turn_pools: Sequence[str] = (), **fields: Any
    ) -> None:
        self.settings.mkdir(parents=True, exist_ok=True)
        workload = {
            "name": "canyon",
            "environment": {"required": ["WANDB_API_KEY"], "set": {"COLOUR": "red and blue"}},
            "persist": {"root": str(self.root), "directories": ["models", "trajectories"]},
            "checkpoints": {"every_s": 0, "keep_last": 3, "keep_every": 0},
            "iterations": 1,
            "stages": stages,
            **fields,
        }
        (self.settings / "workload.json").write_text(json.dumps(workload))
        (self.settings / "settings.json").write_text(
            json.dumps(
                {
                    "run": RUN,
                    "bucket": bucket,
                    "repository": str(self.repository),
                    "path": ["/opt/own/bin"],
                    "turn_pools": list(turn_pools),
                }
            )
        )
        (self.settings / "secrets.env").write_text(f"WANDB_API_KEY='{CANARY}'\n")

    def start(self, *arguments: str, module: str = "gpuyard.box.stages") -> subprocess.Popen[bytes]:
        """Start a command in the background, with its output in a file ``screen``."""
        with (self.base / "screen").open("ab") as screen:
            process = subprocess.Popen(
                [sys.executable, "-m", module, arguments[0], "--settings", str(self.settings), *arguments[1:]],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
            )
        self.processes.append(process)
        return process

    def call(self, *arguments: str, module: str = "gpuyard.box.stages") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, arguments[0], "--settings", str(self.settings), *arguments[1:]],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def run(self, *arguments: str) -> int:
        return self.start("run", *arguments).wait(timeout=180)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.call("status", "--json").stdout)
        return answer

    @property
    def screen(self) -> str:
        return (self.base / "screen").read_text()

    @property
    def marks(self) -> list[str]:
        """What the stages appended to the file ``marks`` of the repository."""
        file = self.repository / "marks"
        return file.read_text().splitlines() if file.exists() else []

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        file = self.root / ".gpuyard/journal.jsonl"
        # The last line may be just being written.
        events = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in events if kind in (None, event["event"])]

    def outcomes(self) -> list[tuple[int, str, str]]:
        return [(event["iteration"], event["stage"], event["outcome"]) for event in self.events("stage-end")]


def alive(pid: int | str) -> bool:
    """Tell whether a process runs. One that has ended and that nobody has fetched yet does not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


PROVER = '''
"""Stands in for a prover: SIGINT makes it finish its theorem and flush, SIGTERM kills it at once.

The theorem whose number is in the file `hold` takes until SIGINT comes, unless the search is resumed."""
import os, signal, sys, time
stopping = False
def stop(number, frame):
    global stopping
    stopping = True
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
results = os.path.join(os.environ["GPUYARD_PERSIST"], "trajectories", "results")
os.makedirs(os.path.dirname(results), exist_ok=True)
done = set()
resumed = "--resume-from" in sys.argv
held = int(open("hold").read()) if os.path.exists("hold") and not resumed else None
if resumed and os.path.exists(results):
    done = set(open(results).read().split())
total, flush_every, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
buffer = []
def flush():
    with open(results, "a") as out:
        out.write("".join(f"{n}\\n" for n in buffer))
    buffer.clear()
for number in range(total):
    if str(number) in done:
        continue
    print("theorem", number)
    open("searched", "a").write(f"{number}\\n")
    time.sleep(seconds)
    while number == held and not stopping:
        time.sleep(0.02)
    buffer.append(number)
    if len(buffer) >= flush_every or stopping:
        flush()
    if stopping:
        print("flushed, leaving")
        sys.exit(0)
flush()
'''
