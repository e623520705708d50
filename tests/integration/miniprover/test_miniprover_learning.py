"""The stages as the workload runs them: two iterations, in which the prover gets better; and the Rust unit tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "miniprover"


def test_the_unit_tests_of_the_crate(cargo: str, target: Path, prover: Path) -> None:
    command = [cargo, "test", "--release", "--locked", "--offline", "--target-dir", str(target)]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"test result: ok\. [1-9]\d* passed", done.stdout)


@pytest.fixture
def commands() -> dict[str, str]:
    """The stage commands of workloads/miniprover.yml, without the pace that is for watching."""
    workload = yaml.safe_load((ROOT / "workloads" / "miniprover.yml").read_text())
    return {stage["name"]: re.sub(r"--pace-ms \d+", "", stage["command"]) for stage in workload["stages"]}


def test_two_iterations_of_the_workload_prove_more_and_more(
    commands: dict[str, str], prover: Path, folder: Path
) -> None:
    (folder / "target" / "release").mkdir(parents=True)
    (folder / "target" / "release" / "prover").symlink_to(prover)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for iteration in "01":
        for stage, command in commands.items():
            environment = {**os.environ, "PATH": path, "ITERATION": iteration, "STAGE": stage}
            environment["GPUYARD_CHECKPOINT_COMMAND"] = f"echo {iteration} >> {folder}/flushes"
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, (stage, done.stdout, done.stderr)
    assert (folder / "flushes").read_text().split() == ["0"] * 8 + ["1"] * 8
    names = ("untrained", "iteration-0", "iteration-1")
    reports = [json.loads((folder / "eval_results" / f"{name}.json").read_text()) for name in names]
    untrained, first, second = (report["proved"] for report in reports)
    assert untrained * 1.5 < first <= second, reports
    nodes = [report["mean_nodes_of_theorems"] for report in reports]
    assert nodes[0] > nodes[1] > nodes[2], reports
    assert all(report["wrong"] == [] for report in reports)
    assert all(report["verified"] == report["proved"] + report["refuted"] for report in reports)


def test_export_refuses_an_unfinished_training_and_a_resumed_one_is_exported(prover: Path, folder: Path) -> None:
    environment = {**os.environ, "MINIPROVER_PROVER": str(prover)}

    def stage(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *words, "--iteration", "0"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert stage("miniprover.finetune", "--epochs", "1").returncode == 0
    script = (
        "from pathlib import Path; from miniprover.training import Training; p = Path('checkpoints/policy-0.npz');"
        "t = Training.load(p, seed=1); t.finished = False; t.save(p)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    refused = stage("miniprover.export")
    assert (refused.returncode, "not finished" in refused.stderr) == (1, True), refused.stderr
    assert not (folder / "models").exists()
    resumed = stage("miniprover.finetune", "--epochs", "2", "--resume")
    assert "resuming at step" in resumed.stdout, resumed.stderr
    exported = stage("miniprover.export")
    assert "agree with the prover" in exported.stdout, exported.stderr
