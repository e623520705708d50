"""A run is gone on with, shown and ended by a controller that has only the keys, the bucket and the run's name."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from yard import CANARY, Said, Yard

WORKLOAD = """\
name: handed
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}
environment: {required: [HANDED_TOKEN]}
persist: {directories: [models]}
checkpoints: {every_s: 1}
stages:
  - {name: work, command: sh work.sh first, resume_command: sh work.sh again, resumable: true, grace_s: 2}
"""
WORK = 'echo "$1" >> models/log; echo "this is the $1 time"; [ "$1" = again ] || sleep 600\n'
TOKEN = {"HANDED_TOKEN": CANARY}


@dataclass
class Stranger:
    """A controller with a home and an SSH key of its own, in an empty folder."""

    yard: Yard
    folder: Path
    home: Path

    def play(self, verb: str, *, ok: bool = True, **extra: str) -> Said:
        """Run a play by the collection's name."""
        options = {"sandbox": "true", "sandbox_state": str(self.yard.state), **extra}
        words = [word for name, value in options.items() for word in ("-e", f"{name}={value}")]
        said = self.yard.run("ansible-playbook", f"gpuyard.cloud.{verb}", *words, cwd=self.folder, env=self.env)
        assert (said.code == 0) is ok, said.text
        assert "Traceback" not in said.text, said.text
        return said

    @property
    def env(self) -> dict[str, str]:
        return TOKEN | {"GPUYARD_HOME": str(self.home)}


@pytest.fixture
def stranger(yard: Yard, tmp_path: Path) -> Stranger:
    (tmp_path / "empty").mkdir()
    return Stranger(yard, tmp_path / "empty", tmp_path / "home")


@pytest.fixture
def workload(tmp_path: Path) -> str:
    for name in ("code", "workloads"):
        (tmp_path / "own" / name).mkdir(parents=True)
    (tmp_path / "own" / "code" / "work.sh").write_text(WORK)
    file = tmp_path / "own" / "workloads" / "handed.yml"
    file.write_text(WORKLOAD)
    return str(file)


def test_b26_e8_x15_a_stranger_goes_on_with_a_run_on_another_cloud(
    yard: Yard, stranger: Stranger, workload: str
) -> None:
    run = "handed-0"
    yard.play("launch", provider="vast", run=run, workload=workload, env=TOKEN)
    yard.wait("a checkpoint with work in it", lambda: yard.published(run, "models/log"), seconds=300)

    # The machine lives, and does not know the stranger's key; its cloud can add it.
    status = stranger.play("status").text
    assert re.search(rf"^ +{run} +running +iteration 0, work ", status, re.M), status
    assert "this is the first time" in stranger.play("logs", run=run).text
    by_name = ["ssh", "-F", str(stranger.home / "ssh_config"), run, "test -d /opt/gpuyard"]
    subprocess.run(by_name, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    sandbox = {"GPUYARD_SANDBOX": "1", "GPUYARD_SANDBOX_STATE": str(yard.state)}
    assert f"--{run}" in yard.run("ansible-inventory", "--graph", env=stranger.env | sandbox).text

    yard.control.preempt(run=run)
    assert "can go on" in stranger.play("status", run=run).text
    assert "this is the first time" in stranger.play("logs", run=run, stage="work").text
    resumed = stranger.play("resume_search", run=run, provider="vultr", follow="true")
    text = " ".join(resumed.text.split())
    assert f"Workload and source of run {run} come from the bucket, as it began with them." in text
    assert "The run is finished." in text
    assert yard.published(run, "models/log") == {"models/log": b"first\nagain\n"}
    assert yard.machine(run).provider == "vultr"

    # The first controller does not know the new machine, and its cloud adds no key to one that lives.
    assert re.search(rf"^ +{run} +finished ", yard.play("status", run=run).text, re.M)
    said = yard.play("logs", run=run, ok=False)
    assert "another controller has rented it, with a key of its own" in " ".join(said.text.split())
    stranger.play("teardown", run=run)
    assert yard.instances(run) == []
    assert yard.control.status()["bill"]["billable"] == []


def test_x4_two_controllers_that_launch_a_run_at_the_same_moment_rent_once(
    yard: Yard, stranger: Stranger, workload: str
) -> None:
    run = "at-once-0"
    options = {"provider": "vast", "run": run, "workload": workload}
    with ThreadPoolExecutor(max_workers=2) as pool:
        own = pool.submit(
            yard.run,
            "ansible-playbook",
            *("launch.yml", "-e", "sandbox=true"),
            *(word for name, value in options.items() for word in ("-e", f"{name}={value}")),
            env=TOKEN,
        )
        other = pool.submit(
            yard.run,
            "ansible-playbook",
            *("gpuyard.cloud.launch", "-e", "sandbox=true", "-e", f"sandbox_state={yard.state}"),
            *(word for name, value in options.items() for word in ("-e", f"{name}={value}")),
            cwd=stranger.folder,
            env=stranger.env,
        )
        both = [own.result(), other.result()]
    winner = [said for said in both if said.code == 0]
    assert len(winner) == 1, "\n".join(said.text for said in both)
    (loser,) = [said for said in both if said.code != 0]
    # Either it has waited for the other one, or it has seen that one's machine before it asked for any.
    words = " ".join(loser.text.split())
    assert "Another command has just rented" in words or "has got" in words, loser.text
    lines = [line for line in yard.control.status()["bill"]["lines"] if run in str(line)]
    assert len({line["id"] for line in lines}) <= 1, lines
    assert len(yard.instances(run)) == 1
    yard.play("teardown", run=run, lose="true")
