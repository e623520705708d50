# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes, snapshots, SSH keys and accounts by the neutral modules, over clouds in memory (V1, V5, V17)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuyard import config
from gpuyard.api import resources
from gpuyard.errors import AuthenticationError, LeakError, ProviderDownError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Rights
from gpuyard.providers.resources import Kind

from .conftest import Verb, World, instance
from .shelf import FixedShelf, LiveShelf

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGpbBXyfQJ0mFb9gUO1CVvGqv2m4wq0V1D2oYzqJ7nBd me@laptop"


@dataclass
class Yard:
    """The clouds, Vultr's volumes, which go to machines that live, and RunPod-like filesystems of Vast."""

    world: World
    volumes: LiveShelf
    filesystems: FixedShelf


@pytest.fixture
def yard(world: World, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(config, "known_clouds", lambda: [world.vast, world.vultr])
    monkeypatch.setattr(resources, "LOOK_EVERY_S", 0.0)
    return Yard(world, LiveShelf(world.vultr, Kind.VOLUME), FixedShelf(world.vast, Kind.FILESYSTEM))


def test_v5_a_volume_is_made_once_grown_and_never_shrunk(yard: Yard, verb: Verb) -> None:
    yard.volumes.ready_at_once = False
    wanted = {"provider": "vultr", "name": "cache", "size_gb": 1000, "region": "sjc", "options": {"tier": "hdd"}}
    lines: list[str] = []
    made = verb("volume", lines=lines, **wanted)
    assert made["changed"] and made["actions"] == [
        "make block storage gpuyard-cache at Vultr, 1000 GB, $100.00 a month"
    ]
    assert lines == ["Make block storage gpuyard-cache at Vultr, 1000 GB, $100.00 a month."]
    (volume,) = made["resources"]
    assert volume["name"] == "gpuyard-cache" and volume["ready"] and volume["price_per_month_usd"] == 100.0
    assert made["diff"] == {
        "before": {"resources": []},
        "after": {"resources": ["vultr volume gpuyard-cache (vol-1, 1000 GB)"]},
    }
    assert yard.volumes.made[0].options == {"tier": "hdd"}
    assert not verb("volume", **wanted)["changed"]
    grown = verb("volume", **{**wanted, "size_gb": 1500})
    assert grown["changed"] and grown["resources"][0]["size_gb"] == 1500
    smaller = verb("volume", **wanted)
    assert not smaller["changed"] and "keeps its 1500 GB" in smaller["text"]
    assert [said for said in yard.volumes.asked if said != "list"] == ["create gpuyard-cache", "grow vol-1 1500"]


def test_a_name_finds_what_somebody_else_called_so_and_does_not_delete_it(yard: Yard, verb: Verb) -> None:
    yard.volumes.put("cache", size_gb=10.0)
    yard.volumes.put("gpuyard/a-0/tiny", ref=RunRef("a-0", "tiny"), size_gb=10.0)
    assert not verb("volume", provider="vultr", name="cache", size_gb=10)["changed"]
    refused = verb("volume", provider="vultr", name="cache", state="absent")
    assert refused["failed"] and "was not made by gpuyard" in refused["msg"] and "foreign=true" in refused["msg"]
    assert verb("volume", provider="vultr", name="cache", state="absent", foreign=True)["changed"]
    assert list(yard.volumes.held) == ["vol-2"]


def test_two_of_one_name_are_named_and_none_is_made(yard: Yard, verb: Verb) -> None:
    yard.volumes.put("gpuyard-cache")
    yard.volumes.put("cache")
    refused = verb("volume", provider="vultr", name="cache", size_gb=10)
    assert "2 where one is meant, volume called cache: vol-1, vol-2. All of them bill." in refused["msg"]
    assert not yard.volumes.made


def test_a_volume_of_a_run_is_labelled_with_it_and_ended_with_it(yard: Yard, verb: Verb) -> None:
    unknown = verb("volume", provider="vultr", run="a-0", size_gb=10)
    assert unknown["failed"] and "-e workload=… does" in unknown["msg"]
    yard.world.vultr.held["7"] = instance("vultr", "7", "a-0")
    made = verb("volume", provider="vultr", run="a-0", size_gb=10)
    assert made["resources"][0]["run"] == "a-0" and made["resources"][0]["workload"] == "miniprover"
    assert not verb("volume", provider="vultr", run="a-0", size_gb=10)["changed"]
    yard.volumes.put("gpuyard-cache", ours=True)
    assert verb("volume", run="a-0", state="absent")["actions"] == [
        "delete vultr volume gpuyard/a-0/miniprover (vol-1, 10 GB)"
    ]
    assert list(yard.volumes.held) == ["vol-2"]
    assert not verb("volume", run="a-0", state="absent")["changed"]


def test_v5_a_volume_goes_to_a_living_machine_and_back(yard: Yard, verb: Verb) -> None:
    yard.world.vultr.held["7"] = instance("vultr", "7", "a-0", region="sjc")
    yard.world.vultr.held["8"] = instance("vultr", "8", region="ewr")
    made = verb("volume", provider="vultr", name="cache", size_gb=10, region="sjc", attached_to="a-0")
    assert made["resources"][0]["attached_to"] == ["7"]
    assert not verb("volume", name="cache", state="attached", attached_to="7")["changed"]
    busy = verb("volume", name="cache", state="absent")
    assert "attached to machine 7, which may be writing" in busy["msg"] and yard.volumes.held
    taken = verb("volume", name="cache", state="attached", attached_to="8")
    assert "state=detached takes it away first" in taken["msg"]
    assert verb("volume", name="cache", state="detached")["changed"]
    assert not verb("volume", name="cache", state="detached")["changed"]
    far = verb("volume", name="cache", state="attached", attached_to="8")
    assert "is in sjc, and machine 8 in ewr" in far["msg"]
    gone = verb("volume", name="cache", state="attached", attached_to="b-0")
    assert gone["msg"] == "attached_to=b-0: Vultr has no living machine of that id or run."
    assert verb("volume", name="cache", state="absent")["changed"] and not yard.volumes.held
    none = verb("volume", name="cache", state="attached", attached_to="7")
    assert "There is no volume called cache; -e state=present makes one." in none["msg"]


def test_check_mode_asks_and_writes_nothing(yard: Yard, verb: Verb) -> None:
    yard.world.vultr.held["7"] = instance("vultr", "7", "a-0", region="sjc")
    wanted = {"provider": "vultr", "name": "cache", "size_gb": 10, "region": "sjc", "attached_to": "7"}
    planned = verb("volume", check=True, **wanted)
    assert planned["changed"] and planned["planned_calls"][0]["method"] == "POST"
    assert planned["text"].startswith("would make block storage") and "would attach" in planned["text"]
    verb("volume", **{**wanted, "attached_to": ""})
    before = dict(yard.volumes.held)
    for state in ("attached", "absent", "present"):
        options = {"size_gb": 20, "region": "sjc"} if state == "present" else {}
        said = verb("volume", check=True, name="cache", provider="vultr", state=state, attached_to="7", **options)
        assert said["changed"], said
    assert yard.volumes.held == before


def test_v1_what_a_cloud_cannot_do_is_refused_before_it_is_asked(yard: Yard, verb: Verb) -> None:
    yard.filesystems.put("gpuyard-cache", size_gb=10.0, ours=True)
    live = verb("volume", provider="vast", name="other", size_gb=10, attached_to="a-0")
    assert live["msg"] == "Vast cannot attach a volume to a machine that lives; Vultr can."
    assert live["failure"]["kind"] == "UnsupportedError" and yard.filesystems.asked == []
    larger = verb("volume", provider="vast", name="cache", size_gb=20)
    assert larger["msg"] == "Vast cannot make a volume larger; Vultr can."
    none = verb("snapshot", provider="vast", name="x", instance="7")
    assert none["msg"] == "Vast keeps no snapshots with gpuyard; no cloud can."
    kind = verb("volume", provider="vast", kind="volume", name="x", size_gb=1)
    assert kind["msg"] == "Vast keeps no volumes with gpuyard; Vultr can."
    which = verb("volume", name="x", size_gb=1)
    assert which["msg"] == "vast and vultr keep volumes or filesystems: say which is meant, -e provider=vast."
    moved = verb("volume", provider="vultr", name="x", size_gb=1, region="sjc")
    assert moved["changed"]
    assert "cannot move" in verb("volume", provider="vultr", name="x", region="ewr")["msg"]


def test_a_volume_that_never_is_ready_and_one_that_cannot_be_deleted_are_named(yard: Yard, verb: Verb) -> None:
    yard.volumes.put("gpuyard-slow", ours=True, ready=False, status_text="pending")
    yard.volumes.get = lambda resource_id: yard.volumes.held[resource_id]  # type: ignore[method-assign]
    late = verb("volume", provider="vultr", name="slow", timeout=0)
    assert "vultr volume gpuyard-slow (vol-1) is not ready after 0 s (pending), and it may bill" in late["msg"]
    yard.volumes.put("gpuyard/a-0/tiny", ref=RunRef("a-0", "tiny"))
    yard.volumes.put("gpuyard/a-0/tiny/b-0", ref=RunRef("a-0", "tiny", "b-0"))
    yard.volumes.refusal = LeakError("It may keep billing.", provider="vultr", instance_id="x")
    leak = verb("volume", run="a-0", state="absent")
    assert leak["failure"]["kind"] == "LeakError"
    assert yard.volumes.asked[-2:] == ["destroy vol-2", "destroy vol-3"]  # the first leak keeps no other one


def test_volumes_of_all_clouds_are_listed_with_owner_and_price(yard: Yard, verb: Verb) -> None:
    yard.volumes.put("theirs", size_gb=50.0)
    yard.volumes.put("gpuyard-cache", ours=True, size_gb=1000.0, price_per_month_usd=100.0)
    yard.filesystems.put("gpuyard/a-0/tiny", ref=RunRef("a-0", "tiny"), region="EU-1")
    names = [one["name"] for one in verb("volume_info")["resources"]]
    assert names == ["gpuyard/a-0/tiny", "gpuyard-cache"]
    everything = verb("volume_info", foreign=True)
    assert "not ours" in everything["text"] and "100.00" in everything["text"]
    assert [one["name"] for one in verb("volume_info", run="a-0")["resources"]] == ["gpuyard/a-0/tiny"]
    assert verb("volume_info", name="nothing")["text"] == "There is none."

    def down() -> list[object]:
        raise ProviderDownError("Vast does not answer.", provider="vast")

    yard.filesystems.all = down  # type: ignore[assignment]
    assert verb("volume_info")["msg"] == "Vast does not answer."
    partial = verb("volume_info", partial=True)
    assert [one["name"] for one in partial["resources"]] == ["gpuyard-cache"] and "vast" in partial["unanswered"]


def test_a_snapshot_is_of_the_machine_of_a_run_and_made_once(yard: Yard, verb: Verb) -> None:
    shelf = FixedShelf(yard.world.vultr, Kind.SNAPSHOT)
    unsaid = verb("snapshot", provider="vultr", name="built")
    assert "What is the snapshot of?" in unsaid["msg"]
    gone = verb("snapshot", provider="vultr", name="built", run="a-0")
    assert gone["msg"] == "run=a-0: Vultr has no living machine of that id or run."
    yard.world.vultr.held["7"] = instance("vultr", "7", "a-0")
    made = verb("snapshot", provider="vultr", name="built", run="a-0")
    assert made["changed"] and shelf.made[0].source == "7" and shelf.made[0].name == "gpuyard-built"
    assert not verb("snapshot", provider="vultr", name="built", run="a-0")["changed"]
    assert [one["name"] for one in verb("snapshot_info")["resources"]] == ["gpuyard-built"]
    assert verb("snapshot", name="built", state="absent")["changed"] and not shelf.held


def test_an_ssh_key_is_known_by_its_content(yard: Yard, verb: Verb, tmp_path: Path) -> None:
    vultr, vast = FixedShelf(yard.world.vultr, Kind.SSH_KEY), FixedShelf(yard.world.vast, Kind.SSH_KEY)
    vast.put("old name", detail={"public_key": " ".join(KEY.split()[:2])})
    (tmp_path / "id.pub").write_text(KEY + "\n")
    added = verb("ssh_key", name="laptop", public_key_file=str(tmp_path / "id.pub"))
    assert added["actions"] == ["make SSH key laptop at Vultr"] and vultr.made[0].content == KEY
    assert not verb("ssh_key", name="laptop", public_key=KEY)["changed"]
    other = verb("ssh_key", name="laptop", public_key="ssh-ed25519 AAAAC3other me")
    assert "has another SSH key called laptop" in other["msg"]
    assert "That is a private key" in verb("ssh_key", public_key="-----BEGIN OPENSSH PRIVATE KEY-----\nx")["msg"]
    planned = verb("ssh_key", check=True, state="absent", public_key=KEY)
    assert len(planned["planned_calls"]) == 2 and vultr.held and vast.held
    assert verb("ssh_key", state="absent", public_key=KEY)["changed"] and not vultr.held and not vast.held
    # By default that is the key with which gpuyard reaches its machines.
    assert verb("ssh_key")["changed"] and vultr.made[-1].content == config.ssh_key().public_text


def test_v17_an_account_says_what_it_bills_and_what_is_wrong_with_its_key(yard: Yard, verb: Verb) -> None:
    yard.world.vultr.held["7"] = instance("vultr", "7", "a-0", price_per_hour_usd=1.0)
    yard.volumes.put("gpuyard-cache", price_per_month_usd=73.0)
    yard.volumes.put("unpriced")
    yard.world.vultr.credit_usd = lambda: 41.5  # type: ignore[method-assign]
    yard.world.vultr.rights = lambda: Rights(("billing",), "provisioning")  # type: ignore[method-assign]
    yard.world.vultr.ssh_keys = lambda: [KEY, "ssh-rsa AAAA12345678"]  # type: ignore[method-assign]
    refusal = AuthenticationError("Vast refused: Unauthorized IP address: 192.0.2.1", provider="vast", status=401)

    def refuse() -> None:
        raise refusal

    for name in ("instances", "credit_usd"):
        setattr(yard.world.vast, name, refuse)
    yard.filesystems.all = refuse  # type: ignore[assignment,method-assign]
    vast, vultr = verb("account_info")["accounts"]
    assert vast["key_valid"] is False and "192.0.2.1" in vast["problem"]
    assert "VAST_API_KEY" in vast["hint"] and "lists the addresses that may use it" in vast["hint"]
    assert vultr["key_valid"] and vultr["credit_usd"] == 41.5 and vultr["instances"] == 1
    assert vultr["billed_per_hour_usd"] == pytest.approx(1.1) and list(vultr["unpriced"]) == ["unpriced"]
    assert list(vultr["ssh_keys"]) == ["me@laptop", "ssh-rsa …12345678"] and vultr["can_rent"] is False
    assert "lacks the right provisioning" in vultr["hint"]
    shown = verb("account_info")
    assert "41.50" in shown["text"] and "refused" in shown["text"] and KEY.split()[1] not in json.dumps(shown)
    assert shown["without_key"] == ["lambda", "runpod", "skypilot"]


def test_every_cloud_can_be_looked_at_without_a_key() -> None:
    known = config.known_clouds()
    assert {cloud.name for cloud in known} == set(config.CLOUDS) - {"own"}
    assert all(isinstance(cloud.shelves(), dict) for cloud in known)
