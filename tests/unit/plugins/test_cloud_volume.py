# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A workload's volume at the cloud (V5): in the plan with its price, made once, attached, found by its own id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuyard import config
from gpuyard.errors import ProviderDownError
from gpuyard.formats.label import RunRef
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.renting import ready

from .conftest import Verb, World, offer
from .shelf import LiveShelf

WORKLOAD = """
name: tiny
repository: {path: code}
needs: {gpu_ram_gb: 8}
volumes: {cache: {mount: /mnt/cache, size_gb: 1000, cloud: {options: {block_type: hdd}}}}
stages: [{name: one, command: "true", hours: {expected: 7.3, worst: 14.6}}]
"""


FILE = "workloads/tiny.yml"


class Blocks(LiveShelf):
    """Volumes whose device is known once a machine has them, as at Vultr."""

    def attach(self, resource_id: str, instance_id: str, *, progress: Any = None) -> None:
        super().attach(resource_id, instance_id)
        device = {"device": f"/dev/disk/by-id/virtio-{resource_id}"}
        self.held[resource_id] = replace(self.held[resource_id], detail=device)


@pytest.fixture
def blocks(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Blocks:
    """Return Vultr's volumes; Vast rents out something cheaper, and has none."""
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: "SHA256:x")
    monkeypatch.setattr(config, "known_clouds", lambda: [world.vast, world.vultr])
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text("print()")
    (tmp_path / "workloads").mkdir()
    (tmp_path / FILE).write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    world.vast.market = [offer("vast", "1", price_per_hour_usd=0.1)]
    world.vultr.market = [
        offer("vultr", "a@ewr", region="ewr", price_per_hour_usd=1.0),
        offer("vultr", "a@sjc", region="sjc", price_per_hour_usd=1.2),
    ]
    # A machine is where its offer was.
    make = world.vultr.create

    def create(chosen: Any, spec: Any, *, progress: Any = None) -> Any:
        made = make(chosen, spec)
        del world.vultr.held[made.id]
        placed = replace(made, id=f"m{len(world.vultr.rented)}", region=chosen.region)
        world.vultr.held[placed.id] = placed
        return placed

    monkeypatch.setattr(world.vultr, "create", create)
    return Blocks(world.vultr, Kind.VOLUME)


def launch(verb: Verb, **options: Any) -> dict[str, Any]:
    return verb("run_launch", workload=FILE, bucket="", **options)


def writes(blocks: Blocks) -> list[str]:
    return [asked for asked in blocks.asked if asked != "list"]


def test_v5_the_plan_says_where_the_volume_will_be_and_what_it_costs(world: World, blocks: Blocks, verb: Verb) -> None:
    planned = verb("run_plan", workload=FILE, bucket="")
    (volume,) = planned["plan"]["volumes"]
    assert volume["provider"] == "vultr" and volume["region"] == "ewr" and volume["id"] == ""
    assert [one["provider"] for one in planned["plan"]["offers"]] == ["vultr", "vultr"]
    said = planned["text"]
    assert "Volume cache: 1000 GB at vultr in ewr, that is made for it, $100.00 a month ($0.1370 an hour)" in said
    assert planned["costs"]["volumes_usd"]["expected"] == pytest.approx(1.0, abs=0.05)
    assert planned["costs"]["all_usd"]["expected"] > planned["costs"]["machines_usd"]["expected"]
    dry = launch(verb, check=True)
    posts = [call["url"] for call in dry["planned_calls"]]
    assert posts == ["https://cloud.invalid/asks/a@ewr", "https://cloud.invalid/volume"]
    assert "would attach" in dry["text"] and writes(blocks) == [] and not world.vultr.held


def test_v5_a_launch_makes_it_once_and_the_box_finds_it_by_its_id(world: World, blocks: Blocks, verb: Verb) -> None:
    first = launch(verb)
    assert not first.get("failed"), first
    assert writes(blocks) == ["create tiny-0", "attach vol-1 m1"]
    (spec,) = blocks.made
    assert spec.ref == RunRef("tiny-0", "tiny") and spec.region == "ewr" and spec.options == {"block_type": "hdd"}
    assert first["hosts"][0]["volumes"] == {"cache": {"source": "/dev/disk/by-id/virtio-vol-1"}}
    # What is made at the cloud is the controller's business.
    assert first["plan"]["workload"]["volumes"]["cache"].keys() == {"mount", "source", "size_gb", "file_system"}
    again = launch(verb, run="tiny-0")
    assert not again.get("failed") and not again["changed"] and len(blocks.made) == 1
    assert again["hosts"][0]["volumes"] == first["hosts"][0]["volumes"]
    # The machine is lost: its successor is rented where the volume is, and gets it.
    world.vultr.held.clear()
    world.vultr.market = world.vultr.market[::-1]
    lost = launch(verb, run="tiny-0", from_stage="one")
    assert not lost.get("failed"), lost
    assert writes(blocks)[2:] == ["detach vol-1", "attach vol-1 m2"]


def test_v5_a_kept_one_is_the_accounts_and_decides_the_region(world: World, blocks: Blocks, verb: Verb) -> None:
    Path(FILE).write_text(WORKLOAD.replace("cloud: {", "cloud: {keep: true, "))
    blocks.put("gpuyard-tiny-cache", ours=True, region="sjc", size_gb=500.0, price_per_month_usd=50.0)
    planned = verb("run_plan", workload=FILE, bucket="")
    assert [one["id"] for one in planned["plan"]["offers"]] == ["a@sjc"]
    assert "vol-1, which is there, $50.00 a month" in planned["text"] and "it stays after the run" in planned["text"]
    assert any("bills until it is deleted" in note for note in planned["costs"]["notes"])
    launch(verb)
    assert writes(blocks) == ["grow vol-1 1000", "attach vol-1 m1"]
    other = launch(verb, run="tiny-1")
    assert "is attached to machine m1 of run tiny-0, which lives" in other["msg"]
    world.vultr.held.clear()
    world.vultr.market = world.vultr.market[:1]
    nowhere = launch(verb, run="tiny-2")
    assert "Volume cache is at Vultr in sjc (vol-1), and nothing that fits" in nowhere["msg"] and not world.vultr.held


def test_v5_a_machine_whose_volume_cannot_be_had_is_named_and_gone_on_with(
    world: World, blocks: Blocks, verb: Verb
) -> None:
    blocks.refusal = ProviderDownError("Vultr does not answer.", provider="vultr")
    lines: list[str] = []
    failed = launch(verb, lines=lines)
    assert failed["msg"] == "Vultr does not answer."
    assert "stays, and bills: `ansible-playbook launch.yml -e run=tiny-0` goes on with it" in lines[-1]
    blocks.refusal = None
    assert launch(verb, run="tiny-0")["hosts"][0]["volumes"] and len(world.vultr.rented) == 1


def test_v5_a_second_one_that_another_controller_made_at_the_same_moment_is_named(
    blocks: Blocks, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = blocks.create

    def create(spec: ResourceSpec, *, progress: Any = None) -> Resource:
        blocks.put("gpuyard/tiny-0/tiny", ref=spec.ref, ours=True)
        return make(spec, progress=progress)

    monkeypatch.setattr(blocks, "create", create)
    failed = launch(verb)
    assert "Vultr has 2 of it, vol-1, vol-2, and all of them bill" in failed["msg"]
    assert not any(asked.startswith("attach") for asked in blocks.asked)


def test_v1_a_cloud_that_has_no_volumes_is_refused_before_it_is_asked(world: World, blocks: Blocks, verb: Verb) -> None:
    refused = launch(verb, provider="vast")
    assert "volumes.cache.cloud: Vast cannot give a volume to a machine; Vultr can." in refused["msg"]
    assert not world.vast.rented


@pytest.mark.parametrize(
    ("volumes", "said"),
    [
        (
            "{a: {mount: /a, size_gb: 1, cloud: {}}, b: {mount: /b, size_gb: 1, source: x, cloud: {}}}",
            "both with cloud",
        ),
        ("{a: {mount: /a, size_gb: 1, source: local-nvme, cloud: {}}}", "leave out source"),
        ("{a: {mount: /a, size_gb: 1, cloud: {keep: true}}}\npools: {main: {nodes: 2}}", "only one machine"),
        ("{a: {mount: /a, size_gb: 1, cloud: {kept: true}}}", "kept"),
    ],
)
def test_what_a_workload_cannot_mean_is_said(blocks: Blocks, verb: Verb, volumes: str, said: str) -> None:
    line = next(line for line in WORKLOAD.splitlines() if line.startswith("volumes"))
    Path(FILE).write_text(WORKLOAD.replace(line, f"volumes: {volumes}"))
    assert said in launch(verb)["msg"]


def test_each_node_of_several_gets_its_own(world: World, blocks: Blocks, verb: Verb) -> None:
    Path(FILE).write_text(WORKLOAD + "pools: {main: {nodes: 2}}\n")
    made = launch(verb)
    assert not made.get("failed"), made
    assert [spec.ref.node for spec in blocks.made if spec.ref] == ["main-0", "main-1"]
    assert [one["volumes"]["cache"]["source"][-5:] for one in made["hosts"]] == ["vol-1", "vol-2"]
