"""Boxes of the user's own: a run goes from one to a cloud and back, and each box stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_box import OwnBox, make
from yard import CANARY, Yard

from gpuyard.sandbox import images

WORKLOAD = """\
name: moved
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 1, disk_gb: 1}
environment: {required: [MOVED_TOKEN]}
persist: {directories: [models]}
checkpoints: {every_s: 1}
stages:
  - {name: work, command: sh work.sh first, resume_command: sh work.sh again, resumable: true, grace_s: 2}
"""
# Its result is whole when three machines have worked on it, one after the other.
WORK = 'echo "$1" >> models/log; [ "$(wc -l < models/log)" -eq 3 ] || sleep 600\n'
FLOCK = """\
name: flock
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 1, disk_gb: 1}
checkpoints: {every_s: 1}
pools: {search: {nodes: 2}}
stages:
  - {name: work, pool: search, grace_s: 2, command: 'echo on >> $GPUYARD_PERSIST/found; sleep 600'}
"""
TOKEN = {"MOVED_TOKEN": CANARY}


@pytest.fixture(scope="module")
def own(yard: Yard) -> Iterator[dict[str, OwnBox]]:
    """Two own boxes in the sandbox's inventory: one reached as root, one with systemd as a user with sudo."""
    made = {
        "tower": make(yard, "tower", images.ML_IMAGE, "root"),
        "desk": make(yard, "desk", images.VM_IMAGE, "me"),
    }
    hosts = {name: variables for name, (_, variables) in made.items()}
    # One that is switched off never hides the others.
    hosts["attic"] = {**hosts["tower"], "ansible_port": 9}
    (yard.state / "own.yml").write_text(json.dumps({"own": {"hosts": hosts}}))
    yield {name: box for name, (box, _) in made.items()}
    for box, _ in made.values():
        box.engine.remove(box.container)


@pytest.fixture
def workload(tmp_path: Path) -> str:
    for name in ("code", "workloads"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "work.sh").write_text(WORK)
    file = tmp_path / "workloads" / "moved.yml"
    file.write_text(WORKLOAD)
    return str(file)


def is_free(box: OwnBox) -> None:
    """The box is on, and holds nothing of a run but what its stages have written."""
    assert "own.json" not in box.run("ls /opt/gpuyard")
    assert box.run("ls -d /opt/gpuyard/run /opt/gpuyard/src/moved 2>/dev/null || true") == ""
    assert box.run(f"grep -rl {CANARY} /opt /mnt /root /home /etc /tmp /var 2>/dev/null || true") == ""
    assert box.run("pgrep -f [g]puyard.box || true") == ""
    assert "rust" in box.run("ls /opt/gpuyard /opt/gpuyard/venv/bin") or box.run("ls /opt/gpuyard/venv/bin/python")


def test_x7_e8_from_an_own_box_to_a_cloud_and_back(yard: Yard, own: dict[str, OwnBox], workload: str) -> None:
    run = "moved-0"
    before = {name: box.since() for name, box in own.items()}
    tower = {"gpu_count": "1", "offer": "tower"}
    launched = yard.play("launch", run=run, workload=workload, env=TOKEN, **tower)
    text = " ".join(launched.text.split())
    assert "Own box tower is run moved-0's until" in text and "it costs nothing" in text, launched.text
    assert yard.machine(run).provider == "own"
    yard.wait("a checkpoint with work in it", lambda: yard.published(run, "models/log"), seconds=300)
    status = " ".join(yard.play("status").text.split())
    assert "own tower-" in status and "Own box attic does not answer" in status, status
    assert "this" not in yard.play("logs", run=run).text
    assert f"--{run}" in yard.run("ansible-inventory", "--graph", env={"GPUYARD_SANDBOX": "1"}).text

    # The box is given up; a run that was torn down goes on where it is named.
    yard.play("teardown", run=run)
    is_free(own["tower"])
    assert own["tower"].run("cat /mnt/persistent/.gpuyard/tmp/released/tower-*/models/log") == "first\n"
    yard.play("resume_search", run=run, provider="vast", env=TOKEN)
    assert yard.machine(run).provider == "vast"
    yard.wait("work on the cloud", lambda: yard.published(run, "models/log") == {"models/log": b"first\nagain\n"})
    yard.play("teardown", run=run)

    # And back, to the box of a user with sudo.
    yard.play("resume_search", run=run, provider="own", offer="desk", follow="true", env=TOKEN)
    assert yard.published(run, "models/log") == {"models/log": b"first\nagain\nagain\n"}
    assert yard.machine(run).way.name == "desk"  # type: ignore[union-attr]
    assert "finished" in yard.play("status", run=run).text
    yard.play("teardown", run=run)
    is_free(own["desk"])
    assert {name: box.since() for name, box in own.items()} == before
    spent = [entry for entry in yard.control.status()["bill"]["lines"] if "own" in str(entry.get("provider"))]
    assert not spent
    for printed in yard.printed:
        assert CANARY not in printed


def test_x7_several_own_boxes_serve_one_pool(yard: Yard, own: dict[str, OwnBox], tmp_path: Path) -> None:
    """A box for each node; too few boxes for the nodes; and one box that falls silent."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "README").write_text("A repository.\n")
    workload = tmp_path / "flock.yml"
    workload.write_text(FLOCK)
    few = tmp_path / "few.yml"
    few.write_text(FLOCK.replace("nodes: 2", "nodes: 3"))
    run = "flock-0"

    def said(verb: str, *, ok: bool = True, **options: str) -> str:
        return " ".join(yard.play(verb, ok=ok, run=run, **options).text.split())

    too_few = said("launch", ok=False, provider="own", workload=str(few))
    assert "Only 2 of the 3 nodes of pool search can be had: 2 offers fit, and no machine serves two nodes." in too_few
    assert yard.instances(run) == []
    launched = said("launch", provider="own", workload=str(workload))
    held = {one.way.name: one.ref.node for one in yard.instances(run) if one.way and one.ref}
    assert set(held) == {"tower", "desk"} and set(held.values()) == {"search-0", "search-1"}
    assert "It has boxes of yours only, which cost nothing and are the run's until:" in launched
    assert set(yard.play("launch", provider="own", workload=str(workload), run=run).changed().values()) == {0}
    for node in held.values():
        yard.wait(f"work of {node}", lambda node=node: yard.published(f"{run}/nodes/{node}", "found"), seconds=300)
    assert "own tower-" in said("status") and "work" in said("logs", node=held["desk"])

    own["desk"].engine.stop(own["desk"].container, grace_s=0)  # its owner switches it off
    try:
        assert f"{run}.{held['desk']} is on own box desk, which does not answer" in said("status")
        refused = said("resume_search", ok=False)
        assert f"Node {held['desk']} of run {run} is on own box desk, which does not answer" in refused
    finally:
        own["desk"].engine.start(own["desk"].container)
    # Where a system boots, the stage goes on by itself.
    yard.wait("the box", lambda: "own box desk, which does not answer" not in said("status"), seconds=60)
    ended = said("teardown")
    assert "has cost nothing in all, on 2 machines" in ended
    for box in own.values():
        is_free(box)


def test_x7_an_own_box_that_is_off_is_not_lost(yard: Yard, own: dict[str, OwnBox], workload: str) -> None:
    run = "moved-1"
    yard.play("launch", run=run, workload=workload, provider="own", offer="tower", env=TOKEN)
    yard.wait("a checkpoint with work in it", lambda: yard.published(run, "models/log"), seconds=300)
    own["tower"].engine.stop(own["tower"].container, grace_s=0)  # its owner switches it off
    try:
        status = " ".join(yard.play("status", run=run).text.split())
        assert "unreachable" in status and "it is not lost, and costs nothing" in status, status
        for verb in ("resume_search", "launch"):
            said = " ".join(yard.play(verb, run=run, ok=False, env=TOKEN).text.split())
            assert "is on own box tower, which does not answer" in said and "Switch it on and try again" in said, said
    finally:
        own["tower"].engine.start(own["tower"].container)
    states = {"interrupted", "running"}  # the second where its system starts it again
    yard.wait("the box", lambda: states & {*yard.play("status", run=run).text.split()}, seconds=60)
    yard.play("teardown", run=run)
    is_free(own["tower"])


def test_x7_two_controllers_never_get_one_box(own: dict[str, OwnBox]) -> None:
    """Many claims at the same moment on a real box: one of them gets it."""
    source = Path(__file__).resolve().parents[2] / "src/gpuyard/box/own.py"
    root = "/tmp/claimed"
    claims = [f'{{"id": "tower-{number}", "label": ""}}' for number in range(8)]
    box = own["tower"]
    command = [box.engine.binary, "exec", box.container, "python3", "-c", source.read_text(), root]
    environment = {**os.environ, **box.engine.environment}
    started = [
        subprocess.Popen([*command, "claim", claim], stdout=subprocess.PIPE, env=environment, text=True)
        for claim in claims
    ]
    answers = [json.loads(process.communicate()[0])["claim"]["id"] for process in started]
    assert len(set(answers)) == 1
