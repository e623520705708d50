# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stopping a run that keeps its machine, and starting it: what is refused, what is told, what the ledger says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuyard import ssh
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import GpuyardError, NoCapacityError
from gpuyard.providers.base import Instance, Provider, State
from gpuyard.renting import ready, runs, watch

from .conftest import Verb, World, instance


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """Return the address of a bucket that this controller sees, too."""
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


class Boxes:
    """Machines whose stages answer as a test wants when they are asked to end."""

    def __init__(self, bucket: str, tmp_path: Path) -> None:
        self.store, self.root = LocalStore(Path(bucket.removeprefix("file://"))), tmp_path / "persistent"
        self.publishes, self.says = True, {"state": True, "sequence": 1, "why": "All is in the bucket, as 1."}
        self.stopped: list[str] = []
        self.root.mkdir()
        checkpoints.write_record(self.store, "a-0", "miniprover")

    def stop(self, one: Instance, _key: Any, **_options: Any) -> Mapping[str, Any]:
        """Stand in for :func:`gpuyard.renting.watch.stop`: publish, and say whether all is saved."""
        self.stopped.append(one.id)
        if self.publishes:
            (self.root / "weights").write_text(one.id)
            progress = {"iteration": 0, "stage": "search", "finished": False, "outcome": "interrupted"}
            checkpoints.publish(self.store, "a-0", self.root, progress=lambda _journal: progress)
        return {"changed": True, "ended": True, "saved": self.says}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch, bucket: str, tmp_path: Path) -> Boxes:
    """Return the machines' stages."""
    made = Boxes(bucket, tmp_path)
    monkeypatch.setattr(watch, "stop", made.stop)
    monkeypatch.setattr(ssh, "end_shared_connection", lambda *_: None)
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_more: "SHA256:x")
    return made


def vast(world: World, **values: Any) -> None:
    """Give run a-0 a machine whose disk costs a tenth of it."""
    world.vast.held["1"] = instance("vast", "1", "a-0", idle_price_per_hour_usd=0.04, **values)


def test_a_machine_is_stopped_only_when_the_bucket_holds_all(
    world: World, verb: Verb, boxes: Boxes, bucket: str
) -> None:
    vast(world)
    boxes.publishes = False
    done = verb("run_stop", run="a-0", bucket=bucket)
    assert done["failure"]["kind"] == "NotSavedError" and "there is no whole one" in done["msg"]
    assert (
        "is not stopped, and bills 0.4000 USD an hour" in done["msg"]
        and "stop.yml -e run=a-0 -e force=true" in done["msg"]
    )
    assert world.vast.held["1"].state is State.RUNNING

    boxes.publishes = True
    boxes.says = {"state": False, "sequence": None, "why": "The bucket does not answer."}
    assert "The bucket does not answer." in verb("run_stop", run="a-0", bucket=bucket)["msg"]
    boxes.says = {"state": True, "sequence": 1, "why": "All is in the bucket, as 1."}
    done = verb("run_stop", run="a-0", bucket=bucket)
    assert done["changed"] and world.vast.held["1"].state is State.STOPPED
    assert "bills 0.0400 USD an hour in place of 0.4000" in done["text"] and "start.yml -e run=a-0" in done["text"]
    (entry,) = runs.stored(boxes.store, costs=True).entries["a-0"]
    assert (entry.changes[-1].what, entry.changes[-1].price_per_hour_usd) == ("stopped", 0.04)
    # What is stopped already is told, and not asked again.
    count = len(boxes.stopped)
    assert not verb("run_stop", run="a-0", bucket=bucket)["changed"] and len(boxes.stopped) == count
    # All was saved before, so a teardown need not start it.
    assert verb("run_end", run="a-0", bucket=bucket)["changed"] and world.vast.held == {}


def test_force_stops_what_is_not_saved_and_a_teardown_then_keeps_it(
    world: World, verb: Verb, boxes: Boxes, bucket: str
) -> None:
    vast(world)
    boxes.publishes = False
    boxes.says = {"state": False, "sequence": None, "why": "The bucket does not answer."}
    assert verb("run_stop", run="a-0", bucket=bucket, force=True)["changed"]
    assert world.vast.held["1"].state is State.STOPPED
    assert "is stopped, so its work cannot be saved" in verb("run_end", run="a-0", bucket=bucket)["msg"]


def test_what_cannot_be_stopped_or_saves_nothing_is_refused_before_anything(
    world: World, verb: Verb, boxes: Boxes, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vultr.held["2"] = instance("vultr", "2", "a-0")  # which costs as much when it is stopped
    said = verb("run_stop", run="a-0", bucket=bucket)["msg"]
    assert "bills a stopped machine in full (0.4000 USD an hour)" in said and "teardown.yml -e run=a-0" in said
    assert "-e force=true" in said and boxes.stopped == []
    assert verb("run_stop", run="a-0", bucket=bucket, force=True, check=True)["actions"] == [
        "end the stages on vultr 2 in good order, and stop it"
    ]
    monkeypatch.setattr(type(world.vultr), "stop", Provider.stop)
    said = verb("run_stop", run="a-0", bucket=bucket, force=True)["msg"]
    assert "Vultr cannot stop an instance without destroying it" in said and boxes.stopped == []


def test_only_a_run_with_a_machine_is_stopped_or_started(world: World, verb: Verb, boxes: Boxes, bucket: str) -> None:
    vast(world)
    for name in ("run_stop", "run_start"):
        assert "the runs with machines are: a-0" in verb(name, bucket=bucket)["msg"]
        said = verb(name, run="b-0", bucket=bucket)["msg"]
        assert "Run b-0 has no machine" in said and "the runs with machines are: a-0" in said
        world.vultr.held["7"] = instance("vultr", "7", "c-0", state=State.PREEMPTED)
        assert "Run c-0 has lost its machine" in verb(name, run="c-0", bucket=bucket)["msg"]
    assert "wait_s=0 must be" in verb("run_stop", run="a-0", bucket=bucket, wait_s=0)["msg"]


def test_a_start_that_finds_no_gpu_says_what_it_costs_and_where_the_run_can_go_on(
    world: World, verb: Verb, boxes: Boxes, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vast(world)
    assert verb("run_stop", run="a-0", bucket=bucket)["changed"]
    start = world.vast.start

    def refuse(instance_id: str) -> None:
        raise NoCapacityError("Required resources are currently unavailable, state change queued.", provider="vast")

    monkeypatch.setattr(world.vast, "start", refuse)
    done = verb("run_start", run="a-0", bucket=bucket)
    assert done["failure"]["kind"] == "NoCapacityError"
    assert "stays stopped, and bills 0.0400 USD an hour" in done["msg"]
    assert "move.yml -e run=a-0 -e provider=…" in done["msg"]

    monkeypatch.setattr(world.vast, "start", start)
    assert verb("run_start", run="a-0", bucket=bucket, check=True)["actions"] == ["start vast 1"]
    assert verb("run_start", run="a-0", bucket=bucket)["changed"] and world.vast.held["1"].state is State.RUNNING
    (entry,) = runs.stored(boxes.store, costs=True).entries["a-0"]
    assert entry.changes[-1].what == "running"
    assert "No machine of run a-0 is stopped" in verb("run_start", run="a-0", bucket=bucket)["text"]


def test_a_machine_on_which_nothing_has_begun_and_one_that_is_out_of_reach(
    world: World, verb: Verb, bucket: str, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vast(world)

    def lost(*_args: Any, **_more: Any) -> Any:
        raise GpuyardError("The connection is lost.")

    monkeypatch.setattr(watch, "stop", lost)
    done = verb("run_stop", run="a-0", bucket=bucket)
    assert "vast 1: The connection is lost. So vast 1" in done["msg"] and world.vast.held["1"].runs
