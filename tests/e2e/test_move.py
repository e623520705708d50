"""A run goes from an own box to a cloud, back, and to another cloud, is stopped and started, and loses a machine."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from own_box import make
from yard import Yard

from gpuyard.renting.runs import stored
from gpuyard.sandbox import images

WORKLOAD = """\
name: mover
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 1, disk_gb: 1}
persist:
  directories: [models, results]
  rules: [{path: results/**, kind: results}]
checkpoints: {every_s: 1}
setup_hours: {expected: 0.01, worst: 0.05}
stages:
  - {name: work, command: sh work.sh, resumable: true, grace_s: 2, hours: {expected: 0.1, worst: 0.2}}
"""
STEPS = 6
# A step for each time that the stage goes on somewhere; the result says nothing of where.
WORK = f"""\
n=$(cat models/log 2>/dev/null | wc -l)
n=$((n + 1))
echo "step $n" >> models/log
[ "$n" -eq {STEPS} ] || exec sleep 600
sha256sum < models/log > results/digest
"""


def steps(yard: Yard, run: str, count: int) -> None:
    """Wait until that many steps are in the bucket: each was made once."""
    wanted = "".join(f"step {number + 1}\n" for number in range(count)).encode()
    yard.wait(f"step {count}", lambda: yard.published(run, "models/log") == {"models/log": wanted}, seconds=300)


def test_e8_x14_moves_stop_start_a_loss_and_the_report(yard: Yard, tmp_path: Path) -> None:
    """E8: own, cloud, own, other cloud, with the result of a run that never moved. X14: the report is the ledger's."""
    tower, variables = make(yard, "tower", images.ML_IMAGE, "root")
    (yard.state / "own.yml").write_text(json.dumps({"own": {"hosts": {"tower": variables}}}))
    for name in ("code", "workloads"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "work.sh").write_text(WORK)
    file = tmp_path / "workloads" / "mover.yml"
    file.write_text(WORKLOAD)
    run = "mover-0"
    yard.wait("the box's SSH server", lambda: tower.run("pgrep -x sshd || true"))
    try:
        yard.play("launch", run=run, workload=str(file), box="tower")
        steps(yard, run, 1)
        assert "is there already (own tower-" in yard.play("move", run=run, box="tower", ok=False).text

        moved = yard.play("move", run=run, provider="vast").text
        assert moved.index("The bucket holds everything") < moved.index("Renting vast")
        assert [one.provider for one in yard.instances(run)] == ["vast"]
        assert "own.json" not in tower.run("ls /opt/gpuyard")
        steps(yard, run, 2)

        stopped = yard.play("stop", run=run).text
        price = re.search(r"bills (\S+) USD an hour in place of (\S+), for its disk", stopped)
        assert price and float(price[1]) < float(price[2]) / 2
        assert [line["what"] for line in yard.control.status()["bill"]["billable"]] == ["disk"]
        yard.play("start", run=run)
        steps(yard, run, 3)

        yard.play("move", run=run, box="tower")
        assert [one.provider for one in yard.instances(run)] == ["own"]
        assert yard.control.status()["bill"]["billable"] == []
        steps(yard, run, 4)
        yard.play("move", run=run, provider="vultr")
        steps(yard, run, 5)

        yard.control.preempt(run=run)
        yard.play("resume_search", run=run, provider="vultr", follow="true")
        digest = hashlib.sha256("".join(f"step {number + 1}\n" for number in range(STEPS)).encode()).hexdigest()
        results = tmp_path / "results"
        yard.play("sync", run=run, to=str(results), what="results")
        assert (results / "results/digest").read_text() == f"{digest}  -\n"
        assert [str(one.relative_to(results)) for one in results.rglob("*") if one.is_file()] == ["results/digest"]

        yard.play("teardown", run=run, report=str(tmp_path / "mover.html"))
    finally:
        tower.engine.remove(tower.container)

    bill = yard.control.status()["bill"]
    entries = stored(yard.store, costs=True).entries[run]
    assert bill["billable"] == [] and all(one.ended for one in entries)
    yard.play("report", run=run, report=str(tmp_path / "mover.json"))
    made = json.loads((tmp_path / "mover.json").read_text())
    assert made["usd"] == pytest.approx(sum(one.cost_usd(made["until"]) for one in entries))
    # No cloud says when it took a machine away, so what a lost one cost is a lower bound.
    assert made["usd"] <= bill["total_usd"] + 0.01 and made["usd"] == pytest.approx(bill["total_usd"], abs=0.05)
    assert (made["losses"], len(made["machines"]), made["restarts"]) == (1, 5, STEPS - 1)
    assert 0 < made["idle_share"] < 1 and made["planned"]["hours"]["expected"] == pytest.approx(0.11)
    page = (tmp_path / "mover.html").read_text()
    assert "<svg" in page and "lost, last seen alive" in page and f"{made['usd']:.4f}" in page
    # It is on no two machines at work: each machine was left before the stages began on the next one.
    own = sorted(entries, key=lambda one: one.began_at)
    assert [one.provider for one in own] == ["own", "vast", "own", "vultr", "vultr"]
