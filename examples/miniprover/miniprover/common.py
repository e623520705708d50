# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are, how the prover is called, and how its traces are read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The folders that a cloud run keeps on its persistent volume.
MODELS = Path("models")
CHECKPOINTS = Path("checkpoints")
TRAJECTORIES = Path("trajectories")
EVAL_RESULTS = Path("eval_results")

TRAIN = [Path("data/train.txt")]
HELD_OUT = [Path("data/heldout.txt"), Path("data/pelletier.txt"), Path("data/pigeonhole.txt")]
BOOTSTRAP = TRAJECTORIES / "bootstrap" / "traces.jsonl"

INTERRUPTED = 130


def prover_command() -> str:
    """The prover's path: what the build made, or what MINIPROVER_PROVER says."""
    return os.environ.get("MINIPROVER_PROVER", "target/release/prover")


def run_prover(*arguments: str | Path, text: str | None = None) -> str:
    """Run the prover to its end and return its standard output; what goes wrong ends this program with one sentence."""
    command = [prover_command(), *map(str, arguments)]
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}; build it with `cargo build --release --locked`") from None
    if done.returncode == INTERRUPTED or done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode:
        raise SystemExit(f"`{' '.join(command[:2])}` failed with exit code {done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Choice:
    """One lesson: of these rows of features, the one at ``best`` was right."""

    rows: np.ndarray
    best: int


def features(rows: list[str]) -> np.ndarray:
    """Decode feature vectors (one character a feature) into a matrix of small whole numbers."""
    codes = np.array([list(row.encode("ascii")) for row in rows], dtype=np.int64)
    return np.where(codes >= ord("a"), codes - ord("a") + 10, codes - ord("0"))


def trace_files(iteration: int) -> list[Path]:
    """What there is to learn from at ``iteration``: the unguided start, and the searches of all iterations before."""
    return [BOOTSTRAP, *(TRAJECTORIES / f"iteration-{i}" / "traces.jsonl" for i in range(iteration))]


def read_traces(paths: Iterable[Path]) -> list[dict]:
    """The shortest known proof of every theorem, in the order of first appearance."""
    best: dict[str, dict] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            trace = json.loads(line)
            if trace["steps"] and len(trace["steps"]) <= len(best.get(trace["id"], trace)["steps"]):
                best[trace["id"]] = trace
    return list(best.values())


def policy_choices(traces: Iterable[dict]) -> Iterator[Choice]:
    """What the policy learns: which of the possible cuts the proof made."""
    for trace in traces:
        for step in trace["steps"]:
            if len(step["x"]) > 1:
                yield Choice(features(step["x"]), step["y"])


def energy_choices(traces: Iterable[dict]) -> Iterator[Choice]:
    """What the energy model learns: which of several states lay on the way to the proof. It stands first."""
    for trace in traces:
        for step in trace["steps"]:
            # The goal itself has no open branch, hence no features; and no comparison, no lesson.
            if step["pos"] and any(step["neg"]):
                yield Choice(features([step["pos"], *filter(None, step["neg"])]), 0)
