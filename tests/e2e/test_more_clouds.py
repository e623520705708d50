"""Lambda and RunPod through the plays: rented, lost, gone on with at the other one, torn down."""

from __future__ import annotations

from pathlib import Path

from yard import Yard

WORKLOAD = """\
name: wander
repository: {path: tree}
needs: {gpu_count: 1, gpu_ram_gb: 16, cpu_cores: 4, ram_gb: 16}
checkpoints: {every_s: 1}
persist: {directories: [results]}
iterations: 1
stages:
  - name: walk
    command: >-
      n=$(cat results/steps 2>/dev/null || echo 0);
      while [ $n -lt 100000 ]; do n=$((n + 1)); echo $n > results/steps.part; mv results/steps.part results/steps;
      echo "step $n on $GPUYARD_PROVIDER as $(id -un)"; sleep 0.2; done
    grace_s: 2
    resumable: true
"""


def test_a_run_goes_from_lambda_to_runpod(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/README").write_text("A repository.\n")
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads/wander.yml").write_text(WORKLOAD)
    workload = str(tmp_path / "workloads/wander.yml")
    yard.play("launch", provider="lambda", run="wander-0", workload=workload)
    machine = yard.machine("wander-0")
    assert (machine.provider, machine.ssh_user, machine.emulated) == ("lambda", "ubuntu", True)
    again = yard.play("launch", provider="lambda", run="wander-0", workload=workload)
    assert set(again.changed().values()) == {0}, again.text

    def steps() -> int:
        found = yard.published("wander-0", "results/steps")
        return int(next(iter(found.values()))) if found else 0

    yard.wait("a checkpoint", lambda: steps() > 5, seconds=300)
    assert "on lambda as root" in yard.play("logs", run="wander-0").text
    yard.control.preempt(run="wander-0")
    reached = steps()
    yard.play("resume_search", provider="runpod", run="wander-0")
    machine = yard.machine("wander-0")
    assert (machine.provider, machine.ssh_user) == ("runpod", "root") and machine.ssh_port != 22
    yard.wait("more steps", lambda: steps() > reached + 5, seconds=300)
    log = yard.play("logs", run="wander-0").text
    assert "on runpod as root" in log and "step 1 on runpod" not in log, "it goes on where it was"
    said = yard.play("teardown", run="wander-0")
    assert yard.instances("wander-0") == [] and yard.control.status()["bill"]["billable"] == [], said.text
