# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a run that has more than machines: in which order things go, what stays, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.errors import LeakError, NothingBegunError, ProviderDownError, UnsupportedError
from gpuyard.providers.base import Instance
from gpuyard.providers.resources import Kind
from gpuyard.renting import belongings, limits, watch

from .conftest import MemoryShelf, Verb, World, instance, resource
from .test_run_end import ALL_SAVED, NOT_SAVED, Boxes, boxes, bucket, publish, store_of

__all__ = ["boxes", "bucket"]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the machines whose disks were to be written out."""
    asked: list[str] = []
    monkeypatch.setattr(watch, "settle", lambda one, _key: asked.append(one.id))
    return asked


@pytest.fixture
def rented(world: World, boxes: Boxes, settled: list[str]) -> World:
    """Return a world with a run that has a machine, whose work is saved, a volume, a snapshot and a key of its own."""
    world.vultr.held["1"] = instance("vultr", "1", "a-0")
    boxes.answers["1"] = ALL_SAVED
    world.vultr.shelve(
        resource("vultr", Kind.VOLUME, "v1", "a-0", attached_to=("1",)),
        resource("vultr", Kind.VOLUME, "v2", "b-0"),
        resource("vultr", Kind.VOLUME, "v3"),
    )
    world.vultr.shelve(resource("vultr", Kind.SNAPSHOT, "s1", "a-0"))
    world.vultr.shelve(resource("vultr", Kind.SSH_KEY, "k1", "a-0"), resource("vultr", Kind.SSH_KEY, "k2"))
    return world


def held(world: World) -> set[str]:
    """Return the ids of all resources at Vultr."""
    return {key for shelf in world.vultr.shelved.values() if isinstance(shelf, MemoryShelf) for key in shelf.held}


def test_storage_goes_before_the_machine_and_foreign_things_stay(
    rented: World, verb: Verb, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    result = verb("run_end", run="a-0", bucket=bucket)
    assert held(rented) == {"v2", "v3", "k2"} and rented.vultr.held == {}
    history = rented.vultr.history
    assert history[0] == "detach v1" and set(history[1:3]) == {"destroy v1", "destroy s1"}
    assert history[3:] == ["destroy instance 1", "destroy k1"]
    assert "destroy vultr volume v1, 1000 GB in ewr" in result["actions"]


def test_what_cannot_be_taken_from_a_living_machine_goes_after_it(rented: World, verb: Verb) -> None:
    volumes = rented.vultr.shelved[Kind.VOLUME]
    assert isinstance(volumes, MemoryShelf)
    volumes.errors["detach"] = UnsupportedError("Not here.")
    assert verb("run_end", run="a-0", bucket="", lose=True)["changed"]
    history = rented.vultr.history
    assert history.index("destroy instance 1") < history.index("destroy v1")
    assert "v1" not in held(rented)


def test_volumes_are_kept_named_and_remembered(
    rented: World, verb: Verb, bucket: str, tmp_path: Path, settled: list[str]
) -> None:
    publish(bucket, tmp_path)
    result = verb("run_end", run="a-0", bucket=bucket, keep_volumes=True)
    assert held(rented) == {"v1", "v2", "v3", "s1", "k2"} and rented.vultr.held == {}
    # What the machine has not yet written would be lost with it.
    assert settled == ["1"] and "detach v1" in rented.vultr.history
    assert "vultr volume v1, 1000 GB in ewr, which bills 100.00 USD a month" in result["text"]
    assert limits.read(store_of(bucket), "a-0").kept == ("vultr/snapshot/s1", "vultr/volume/v1")
    assert not verb("run_end", run="a-0", bucket=bucket)["actions"]
    assert {"v1", "s1"} <= held(rented)

    ended = verb("run_end", run="a-0", bucket=bucket, keep_volumes=False)
    assert len(ended["actions"]) == 2 and held(rented) == {"v2", "v3", "k2"}
    assert limits.read(store_of(bucket), "a-0").kept == ()


def test_they_stay_with_a_machine_that_is_kept(rented: World, verb: Verb, boxes: Boxes, bucket: str) -> None:
    boxes.answers["1"] = NOT_SAVED
    result = verb("run_end", run="a-0", bucket=bucket)
    assert result["failed"] and result["failure"]["kind"] == "NotSavedError"
    assert "With it stays vultr volume v1, 1000 GB in ewr, which bills 100.00 USD a month." in result["msg"]
    assert rented.vultr.history == []


def test_without_a_machine_storage_may_hold_the_only_copy(
    rented: World, verb: Verb, bucket: str, tmp_path: Path
) -> None:
    rented.vultr.held.clear()
    for address, why in ((bucket, "knows nothing of run a-0"), ("", "no machine that could say")):
        result = verb("run_end", run="a-0", bucket=address)
        assert result["failure"]["kind"] == "NotSavedError" and why in result["msg"]
        assert "bills 100.00 USD a month" in result["msg"] and {"v1", "s1"} <= held(rented)
    publish(bucket, tmp_path)
    assert verb("run_end", run="a-0", bucket=bucket)["changed"]
    assert held(rented) == {"v2", "v3", "k2"}


def test_one_that_cannot_be_ended_is_named_and_keeps_no_machine(rented: World, verb: Verb) -> None:
    volumes = rented.vultr.shelved[Kind.VOLUME]
    assert isinstance(volumes, MemoryShelf)
    volumes.errors["destroy"] = LeakError("volume v1 could not be confirmed destroyed.", instance_id="v1")
    result = verb("run_end", run="a-0", bucket="", lose=True)
    assert result["failure"]["kind"] == "LeakError" and result["failure"]["instance_id"] == "v1"
    assert rented.vultr.held == {} and "vultr volume v1, 1000 GB in ewr could not be ended" in result["msg"]
    assert rented.vultr.history.count("destroy v1") == 2  # before the machine, and when it was gone


def test_a_shelf_that_does_not_answer_is_named_when_it_bills(rented: World, verb: Verb) -> None:
    keys, volumes = rented.vultr.shelved[Kind.SSH_KEY], rented.vultr.shelved[Kind.VOLUME]
    assert isinstance(keys, MemoryShelf) and isinstance(volumes, MemoryShelf)
    keys.errors["all"] = ProviderDownError("503", provider="vultr")
    lines: list[str] = []
    assert verb("run_end", run="a-0", bucket="", lose=True, lines=lines)["changed"]
    assert any("could not be asked for its kind ssh-key" in line for line in lines)
    rented.vultr.held["1"] = instance("vultr", "1", "a-0")
    volumes.errors["all"] = ProviderDownError("503", provider="vultr")
    result = verb("run_end", run="a-0", bucket="", lose=True)
    assert "kind volume, so what is there is not seen, and may bill" in result["msg"]
    assert result["failure"]["kind"] == "LeakError" and rented.vultr.held == {}


def test_what_shows_up_at_the_last_look_is_a_leak(rented: World, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(instance_id: str, **_more: Any) -> None:
        rented.vultr.held.pop(instance_id)
        rented.vultr.held["2"] = instance("vultr", "2", "a-0")

    monkeypatch.setattr(rented.vultr, "destroy", forget)
    monkeypatch.setattr(belongings, "_LOOKS", 1)
    result = verb("run_end", run="a-0", bucket="", lose=True)
    assert result["failure"]["kind"] == "LeakError" and "Run a-0 still has vultr 2, RTX 4090" in result["msg"]


def test_check_mode_names_the_calls_and_makes_none(rented: World, verb: Verb) -> None:
    result = verb("run_end", run="a-0", bucket="", check=True)
    urls = [call["url"].rpartition("invalid/")[2] for call in result["planned_calls"]]
    assert sorted(urls) == ["instances/1", "snapshots/s1", "ssh-keys/k1", "volumes/v1"]
    kept = verb("run_end", run="a-0", bucket="", check=True, keep_volumes=True)
    assert len(kept["planned_calls"]) == 2 and rented.vultr.history == []


def test_one_node_or_one_machine_takes_nothing_of_the_run_with_it(rented: World, verb: Verb, boxes: Boxes) -> None:
    boxes.answers["1"] = NothingBegunError("No stage has begun.")
    assert verb("run_end", run="a-0", node="main-0", bucket="")["changed"]
    assert rented.vultr.history == ["destroy instance 1"]
    wrong = verb("run_end", run="a-0", node="main-0", keep_volumes=True, bucket="")
    assert "keep_volumes=true says what outlives a run" in wrong["msg"]


def test_a_list_that_lags_is_asked_again(world: World) -> None:
    answers: list[list[Instance]] = [[instance("vultr", "1", "a-0")], []]
    world.vultr.instances = lambda: answers.pop(0)  # type: ignore[method-assign]
    pauses: list[float] = []
    assert belongings.left([world.vultr], "a-0", [], pace.Clock(sleep=pauses.append)) == []
    assert len(pauses) == 1
