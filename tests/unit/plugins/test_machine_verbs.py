# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verbs for the machine of a run that lives: another bid, a reboot, what its provider keeps of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpuyard import ssh
from gpuyard.errors import UnreachableError
from gpuyard.providers.base import State
from gpuyard.renting import machine, ready

from .conftest import Verb, World, instance


@pytest.fixture
def spot(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world with one interruptible machine; 0.1 of its price is its disk."""
    held = world.vast.held
    held["1"] = instance(
        "vast", "1", "a-0", market="interruptible", price_per_hour_usd=0.4, idle_price_per_hour_usd=0.1
    )

    def change_bid(instance_id: str, bid: float) -> None:
        world.vast.history.append(f"bid {instance_id} {bid:g}")
        held[instance_id] = replace(held[instance_id], price_per_hour_usd=bid + 0.1)

    monkeypatch.setattr(world.vast, "change_bid", change_bid, raising=False)
    return world


def test_another_bid_is_made_once_and_said_with_its_price(spot: World, verb: Verb) -> None:
    dry = verb("run_bid", run="a-0", bid=0.5, check=True, bucket="")
    assert dry["changed"] and "would bid $0.5000 an hour for vast 1" in dry["text"] and spot.vast.history == []
    done = verb("run_bid", run="a-0", bid=0.5, bucket="")
    assert done["changed"] and done["price_per_hour_usd"] == pytest.approx(0.6) and spot.vast.history == ["bid 1 0.5"]
    assert "costs $0.6000 an hour now, with its disk." in done["text"]
    again = verb("run_bid", run="a-0", bid=0.5, bucket="")
    assert not again["changed"] and len(spot.vast.history) == 1


def test_one_that_was_outbid_is_said_to_come_back_by_its_cloud(spot: World, verb: Verb) -> None:
    spot.vast.held["1"] = replace(spot.vast.held["1"], state=State.PREEMPTED)
    assert "It is preempted: its cloud brings it back" in verb("run_bid", run="a-0", bid=0.5, bucket="")["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "", "bid": 1.0}, "For which run?"),
        ({"run": "a-0", "bid": 0.0}, "bid=0 must be a number of dollars an hour above 0."),
        ({"run": "b-0", "bid": 1.0}, "Run b-0 has no machine"),
        ({"run": "c-0", "bid": 1.0}, "Vultr takes no bids."),
        ({"run": "d-0", "bid": 1.0}, "say which is meant with node, one of main-0, main-1."),
    ],
)
def test_what_cannot_be_bid_for_is_one_sentence(spot: World, verb: Verb, options: dict[str, Any], words: str) -> None:
    spot.vultr.held["2"] = instance("vultr", "2", "c-0")
    for number in (0, 1):
        made = instance("vast", f"d{number}", "d-0")
        assert made.ref
        spot.vast.held[made.id] = replace(made, ref=replace(made.ref, node=f"main-{number}"))
    assert words in verb("run_bid", bucket="", **options)["msg"] and spot.vast.history == []


@pytest.fixture
def boots(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is asked of a machine that begins anew at the third look after it was told to."""
    asked: list[str] = []
    world.vast.held["1"] = instance("vast", "1", "a-0")
    monkeypatch.setattr(world.vast, "reboot", lambda one: asked.append(f"reboot {one}"), raising=False)
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: asked.append("answers"))

    def look(command: list[str], **_: Any) -> str | None:
        asked.append("note" if ">/tmp" in command[-1] else "look")
        return None if asked[-1] == "note" or asked.count("look") > 2 else "not yet"

    monkeypatch.setattr(ssh, "try_once", look)
    monkeypatch.setattr(ssh, "end_shared_connection", lambda *_: None)
    return asked


def test_a_reboot_is_over_when_the_machine_has_begun_anew_and_answers(boots: list[str], verb: Verb) -> None:
    dry = verb("instance", run="a-0", state="rebooted", check=True, bucket="")
    assert dry["changed"] and boots == []
    done = verb("instance", run="a-0", state="rebooted", bucket="")
    assert done["changed"] and done["actions"] == ["reboot vast 1"]
    assert boots == ["note", "reboot 1", "look", "look", "look", "answers"]


def test_a_machine_that_does_not_run_or_a_cloud_that_cannot_is_one_sentence(
    world: World, boots: list[str], verb: Verb
) -> None:
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    assert "Vultr cannot reboot an instance." in verb("instance", run="b-0", state="rebooted", bucket="")["msg"]
    world.vast.stop("1")
    said = verb("instance", run="a-0", state="rebooted", bucket="")["msg"]
    assert "does not run, so it cannot be rebooted: state=started starts it." in said
    assert "reboot 1" not in boots


def test_a_machine_that_never_begins_anew_is_named(boots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "try_once", lambda *_args, **_more: "not yet")
    with pytest.raises(UnreachableError, match="vast instance 1 has not rebooted within 0 s"):
        ready.wait_boot(instance("vast", "1"), _key(), timeout_s=0.0, clock=machine.pace.Clock(sleep=lambda _: None))


def _key() -> Any:
    return machine.SshKey(machine.ssh.Path("/keys/id"), "ssh-ed25519 AAAA x")


def test_the_providers_log_needs_neither_ssh_nor_a_bucket(
    world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    monkeypatch.setattr(world.vast, "logs", lambda one, lines: [f"{one} {lines}"], raising=False)
    monkeypatch.setattr(ssh, "try_once", lambda *_args, **_more: pytest.fail("nobody connects"))
    assert verb("stage_log", run="a-0", source="provider", bucket="")["lines"] == ["1 50"]
    said = verb("stage_log", run="a-0", source="provider", stage="one", bucket="")["msg"]
    assert "stage cannot go with source=provider" in said
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    assert "Vultr keeps no logs" in verb("stage_log", run="b-0", source="provider", bucket="")["msg"]
