# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A workload's volume where a machine gets one only when it is created (V5): made first, known, and never left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuyard import config
from gpuyard.errors import AmbiguousError, NoCapacityError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.providers.resources import Kind, ResourceSpec
from gpuyard.renting import ready

from .conftest import Verb, World, offer
from .shelf import FixedShelf
from .test_cloud_volume import FILE, WORKLOAD, launch


class AtBirth(FixedShelf):
    """Volumes that a machine gets when it is created, as at RunPod; those in us-1 cost twice as much."""

    at_create = True

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        price = super().price_per_month_usd(spec) or 0.0
        return price * 2 if spec.region == "us-1" else price

    def check_path(self, path: str) -> None:
        if path.startswith("/wrong"):
            raise UsageError(f"It cannot lie at {path}.")


@pytest.fixture
def born(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AtBirth:
    """Return the volumes of a cloud with two places; a machine has those with which it was created."""
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: "SHA256:x")
    monkeypatch.setattr(config, "known_clouds", lambda: [world.vast, world.vultr])
    monkeypatch.chdir(tmp_path)
    for folder in ("code", "workloads"):
        Path(folder).mkdir()
    Path("code/train.py").write_text("print()")
    Path(FILE).write_text(WORKLOAD.replace("cloud: {options: {block_type: hdd}}", "cloud: {}"))
    shelf = AtBirth(world.vast, Kind.FILESYSTEM)
    world.keys = {"vast"}
    world.vast.market = [
        offer("vast", "1", region="eu-1", price_per_hour_usd=1.0),
        offer("vast", "2", region="us-1", price_per_hour_usd=0.9),
    ]
    make = world.vast.create

    def create(chosen: Any, spec: Any, *, progress: Any = None) -> Any:
        shelf.asked.append(f"rent {chosen.id} with {' '.join(f'{one} {path}' for one, path in spec.mounts)}")
        made = replace(make(chosen, spec), region=chosen.region)
        world.vast.held[made.id] = made
        for one, _ in spec.mounts:
            shelf.held[one] = replace(shelf.held[one], attached_to=(made.id,))
        return made

    monkeypatch.setattr(world.vast, "create", create)
    return shelf


def writes(shelf: AtBirth) -> list[str]:
    return [asked for asked in shelf.asked if asked != "list"]


def test_v5_it_is_made_before_its_machine_and_the_box_knows_that_it_is_mounted(born: AtBirth, verb: Verb) -> None:
    dry = launch(verb, check=True)
    assert [call["url"] for call in dry["planned_calls"]] == [
        "https://cloud.invalid/filesystem",
        "https://cloud.invalid/asks/1",
    ]
    assert "at /mnt/cache" in dry["text"] and writes(born) == []
    made = launch(verb)
    assert not made.get("failed"), made
    assert writes(born) == ["create tiny-0", "rent 1 with fil-1 /mnt/cache"]
    assert born.made[0].ref == RunRef("tiny-0", "tiny") and born.made[0].region == "eu-1"
    assert made["hosts"][0]["volumes"] == {"cache": {"source": "mounted"}}
    again = launch(verb, run="tiny-0")
    assert not again["changed"] and again["hosts"][0]["volumes"] == made["hosts"][0]["volumes"]
    assert len(writes(born)) == 2


def test_x1_the_price_of_the_volume_decides_and_the_runner_up_says_so(born: AtBirth, verb: Verb) -> None:
    planned = verb("run_plan", workload=FILE, bucket="")
    # 0.9 + 200/730 against 1.0 + 100/730.
    assert [one["id"] for one in planned["plan"]["offers"]] == ["1", "2"]
    assert "With its volume, $0.1370 an hour, that is $1.1370 an hour" in planned["text"]
    assert "of which the volume is $0.1370" in planned["text"]
    assert planned["plan"]["volumes"][0]["price_per_month_usd"] == pytest.approx(100.0)


def test_v5_the_next_offer_elsewhere_gets_its_own_and_none_is_left_over(
    world: World, born: AtBirth, verb: Verb
) -> None:
    world.vast.refusals["1"] = NoCapacityError("Sold out.", provider="vast")
    made = launch(verb)
    assert not made.get("failed"), made
    assert [one.split(" with")[0] for one in writes(born)] == [
        "create tiny-0",
        "rent 1",
        "destroy fil-1",
        "create tiny-0",
        "rent 2",
    ]
    assert list(born.held) == ["fil-2"] and born.held["fil-2"].region == "us-1"


def test_v5_no_machine_leaves_no_volume(world: World, born: AtBirth, verb: Verb) -> None:
    world.vast.refusals = {"1": NoCapacityError("Sold out.", provider="vast")}
    world.vast.market = world.vast.market[:1]
    failed = launch(verb)
    assert failed["msg"] == "Sold out." and not born.held and writes(born)[-1] == "destroy fil-1"


def test_v5_one_that_was_there_stays_when_no_machine_is_to_be_had(world: World, born: AtBirth, verb: Verb) -> None:
    born.put("gpuyard/tiny-0/tiny", ref=RunRef("tiny-0", "tiny"), ours=True, region="eu-1", size_gb=1000.0)
    world.vast.refusals = {"1": NoCapacityError("Sold out.", provider="vast")}
    assert launch(verb)["failed"] and list(born.held) == ["fil-1"]


def test_v5_after_a_lost_answer_it_stays_with_the_machine_that_may_be_there(
    world: World, born: AtBirth, verb: Verb
) -> None:
    world.vast.refusals = {"1": AmbiguousError("No answer.", provider="vast")}
    assert launch(verb)["failed"] and list(born.held) == ["fil-1"]


def test_v5_a_size_that_it_lacks_and_a_path_where_it_cannot_lie_are_said_before_anything_is_made(
    born: AtBirth, verb: Verb
) -> None:
    text = Path(FILE).read_text()
    Path(FILE).write_text(text.replace("/mnt/cache", "/wrong/cache"))
    assert "volumes.cache.mount: It cannot lie at /wrong/cache. Nothing was rented." in launch(verb)["msg"]
    Path(FILE).write_text(text)
    born.put("gpuyard/tiny-0/tiny", ref=RunRef("tiny-0", "tiny"), ours=True, region="eu-1", size_gb=10.0)
    assert "cannot make a volume larger" in launch(verb)["msg"] and not writes(born)


def test_v5_a_machine_that_was_created_without_it_is_said(born: AtBirth, verb: Verb) -> None:
    launch(verb)
    born.held.clear()
    said = launch(verb, run="tiny-0")["msg"]
    assert "was created without the volume cache" in said and "teardown.yml -e run=tiny-0" in said


def test_v5_where_it_is_decides_the_offer_and_elsewhere_nothing_is_rented(
    world: World, born: AtBirth, verb: Verb
) -> None:
    born.put("gpuyard/tiny-0/tiny", ref=RunRef("tiny-0", "tiny"), ours=True, region="us-1", size_gb=1000.0)
    world.vast.market = world.vast.market[:1]
    assert "Volume cache is at Vast in us-1 (fil-1), and nothing that fits" in launch(verb, run="tiny-0")["msg"]
    assert not writes(born)


def test_v5_two_controllers_that_make_one_at_the_same_moment_are_told_of_both(
    world: World, born: AtBirth, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = born.create

    def create(spec: ResourceSpec, *, progress: Any = None) -> Any:
        born.put("gpuyard/tiny-0/tiny", ref=spec.ref, ours=True, region="eu-1", size_gb=1000.0)
        return make(spec, progress=progress)

    monkeypatch.setattr(born, "create", create)
    said = launch(verb)["msg"]
    assert "has 2 of it, fil-1, fil-2" in said and not world.vast.rented
    # What this command has made is gone again; the other command's is the one that remains.
    assert list(born.held) == ["fil-1"]
