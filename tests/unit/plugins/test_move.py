# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that is moved (E8): saved first, never on two machines at work, and still there when any step fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuyard import ssh
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import NoCapacityError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ready, watch
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

from .conftest import Verb, World, instance, offer

WORKLOAD = """
name: mover
repository: {path: code}
needs: {gpu_ram_gb: 8}
stages:
  - {name: train, command: "true", resumable: false}
  - {name: look, command: "true"}
"""


class Stages:
    """The stages on the machines: asked to end they publish, unless a test says that they cannot."""

    def __init__(self, store: LocalStore, root: Path) -> None:
        self.store, self.root = store, root
        self.publishes = True
        self.ended: list[str] = []
        self.publish("")

    def publish(self, words: str) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / "weights").write_text(words)
        progress = {"iteration": 0, "stage": "train", "done": [], "finished": False, "outcome": "interrupted"}
        checkpoints.publish(self.store, "mover-0", self.root, progress=lambda _journal: progress)

    def stop(self, one: Instance, _key: Any, **_options: Any) -> Mapping[str, Any]:
        """Stand in for :func:`gpuyard.renting.watch.stop`."""
        self.ended.append(one.id)
        if self.publishes:
            self.publish("at its end")
            return {"ended": True, "saved": {"state": True, "sequence": 2, "why": "All is saved, as checkpoint 2."}}
        return {"ended": True, "saved": {"state": False, "sequence": None, "why": "The bucket does not answer."}}


@pytest.fixture
def options(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the options of a move to the second cloud of a world with an offer at each."""
    (tmp_path / "code").mkdir()
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads/mover.yml").write_text(WORKLOAD)
    (tmp_path / "bucket").mkdir()
    monkeypatch.chdir(tmp_path)
    world.vast.market = [offer("vast", "near")]
    world.vultr.market = [offer("vultr", "far")]
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_more: "SHA256:x")
    monkeypatch.setattr(ssh, "host_key_fingerprint", lambda _one: "SHA256:x")
    return {
        "workload": str(tmp_path / "workloads/mover.yml"),
        "run": "mover-0",
        "bucket": f"file://{tmp_path / 'bucket'}",
        "mode": "resume",
        "move": True,
        "provider": "vultr",
    }


@pytest.fixture
def stages(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Return the stages of a run that has begun."""
    store = LocalStore(tmp_path / "bucket")
    begun = checkpoints.write_record(store, "mover-0", "mover")
    store.put("mover-0/run.json", replace(begun, pools={"main": 1}).to_bytes())
    made = Stages(store, tmp_path / "persistent")
    monkeypatch.setattr(watch, "stop", made.stop)
    monkeypatch.setattr(watch, "status", lambda *_args, **_more: {"state": "interrupted"})
    return made


def box(provider: str, number: str, node: str = "main-0", **values: Any) -> Instance:
    """Return a machine of the run on a node."""
    return instance(provider, number, "mover-0", ref=RunRef("mover-0", "mover", node), **values)


def nodes(world: World) -> dict[str, str]:
    """Return the run's machines, by id, with the node on each label."""
    held = [*world.vast.held.values(), *world.vultr.held.values()]
    return {one.id: one.ref.node for one in held if one.ref}


def test_a_run_moves_and_can_move_back_e8(
    world: World, verb: Verb, options: dict[str, Any], stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E8: the other machine is rented beside the old one when all is saved; the old one then ends, and back again."""
    world.vast.held["1"] = box("vast", "1")
    planned = verb("run_launch", **options, check=True)
    assert (nodes(world), stages.ended) == ({"1": "main-0"}, []) and planned["plan"]["behind"] == ["main-0"]
    lines: list[str] = []
    moved = verb("run_launch", **options, lines=lines)
    assert not moved.get("failed"), moved
    text = "\n".join(lines)
    assert stages.ended == ["1"] and nodes(world) == {"1": "main-0", "9far": "main-1"}
    assert text.index("as checkpoint 2") < text.index("Renting vultr far")
    assert "Stage train, where the run is, cannot be resumed, so it begins again on the other machine." in text
    assert (moved["plan"]["behind"], moved["plan"]["checkpoint"]) == (["main-0"], 2)
    (host,) = moved["hosts"]
    assert (host["node"], host["stages"], host["restore"]) == ("main-1", {"node": "", "pools": [], "place": ""}, True)

    # The controller dies here. Any launch goes on with the new machine, and ends the old one first.
    again = {name: value for name, value in options.items() if name not in ("move", "provider", "mode")}
    going_on = verb("run_launch", **again)
    assert not going_on["changed"] and (going_on["plan"]["node"], going_on["plan"]["behind"]) == ("main-1", ["main-0"])
    verb("run_end", run="mover-0", node="main-0", only="left", bucket=options["bucket"])
    assert nodes(world) == {"9far": "main-1"}
    # It is one run of one node, whatever its label is.
    (status,) = verb("run_info", bucket=options["bucket"])["runs"]
    assert len(status["nodes"]) == 1 and status["state"] == "interrupted"
    assert not verb("run_launch", **again)["changed"]

    back = verb("run_launch", **{**options, "provider": "vast"})
    assert nodes(world) == {"9far": "main-1", "9near": "main-0"} and back["plan"]["behind"] == ["main-1"]

    # Lost after a move, it resumes as any run, and what is left of the machine ends.
    del world.vast.held["9near"]
    world.vultr.held["9far"] = replace(world.vultr.held["9far"], state=State.PREEMPTED)
    resumed = verb("run_plan", **again, mode="resume")["plan"]
    assert (resumed["node"], resumed["behind"]) == ("main-0", ["main-1"])


def test_what_is_not_saved_is_not_moved_and_nothing_is_rented(
    world: World, verb: Verb, options: dict[str, Any], stages: Stages
) -> None:
    world.vast.held["1"] = box("vast", "1")
    stages.publishes = False
    result = verb("run_launch", **options)
    assert result["failure"]["kind"] == "NotSavedError"
    assert "vast 1: The bucket does not answer. So run mover-0 is not moved, and nothing was rented." in result["msg"]
    assert "The run still has vast 1" in result["msg"] and "launch.yml -e run=mover-0` goes on there" in result["msg"]
    assert nodes(world) == {"1": "main-0"} and world.vultr.rented == []


def test_a_machine_that_cannot_be_had_leaves_the_run_where_it_is(
    world: World, verb: Verb, options: dict[str, Any], stages: Stages
) -> None:
    world.vast.held["1"] = box("vast", "1")
    world.vultr.refusals["far"] = NoCapacityError("Sold out.", provider="vultr")
    said = verb("run_launch", **options)["msg"]
    assert "The run still has vast 1" in said and "bills 0.4000 USD an hour" in said
    assert "move.yml -e run=mover-0 -e provider=…` tries again" in said and nodes(world) == {"1": "main-0"}


def test_a_stopped_machine_is_left_when_all_was_saved_before(
    world: World, verb: Verb, options: dict[str, Any], stages: Stages
) -> None:
    """The way out where the GPU of a stopped machine is let to somebody else."""
    world.vast.held["1"] = box("vast", "1", state=State.STOPPED, idle_price_per_hour_usd=0.04)
    said = verb("run_launch", **options)["msg"]
    assert "nothing says that the bucket holds all" in said and "start.yml -e run=mover-0` goes on there" in said
    Ledger(Notebook(lambda: stages.store)).stopped(world.vast.held["1"])
    assert verb("run_launch", **options)["changed"] and stages.ended == []
    verb("run_end", run="mover-0", node="main-0", only="left", bucket=options["bucket"])
    assert nodes(world) == {"9far": "main-1"}


def test_a_move_that_cannot_be_is_one_sentence_and_touches_nothing(
    world: World, verb: Verb, options: dict[str, Any], stages: Stages
) -> None:
    def said(**more: Any) -> str:
        result = verb("run_launch", **{**options, **more})
        assert result["failed"] and stages.ended == [] and world.vultr.rented == []
        return str(result["msg"])

    assert "Run mover-0 has no machine that it could leave: `ansible-playbook resume_search.yml" in said()
    world.vast.held["1"] = box("vast", "1")
    assert "Where is run mover-0 to move?" in said(provider="")
    assert "Run mover-0 is there already (vast 1" in said(provider="vast")
    assert "Which run is to move?" in said(run="")
    assert "There is no run other-0" in said(run="other-0")
    assert "Run mover-0 cannot be moved: its work travels through the bucket, and there is no bucket" in said(bucket="")
    assert "is a folder on the machine itself" in said(bucket="file:///nowhere")
    assert "No offer fits" in said(gpu_ram_gb=900.0)
    assert "provider and offer are not said beside it" in said(box="mine")
