# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that moves from machine to machine: planned, rented beside the machine that waits, and that one ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.gpuyard.cloud.plugins.lookup import play_options

from gpuyard import ssh
from gpuyard.api import closing, follow
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ending, watch

from .conftest import Verb, World, instance, offer

WORKLOAD = """
name: turns
repository: {path: code}
pools:
  train: {needs: {gpu_ram_gb: 80, disk_gb: 60}, market: on-demand}
  search: {needs: {gpu_ram_gb: 8}, market: interruptible}
setup_hours: {expected: 0.1, worst: 0.2}
stages:
  - {name: finetune, pool: train, command: "true", hours: {expected: 1, worst: 2}}
  - {name: search, pool: search, command: "true", hours: {expected: 4, worst: 8}}
"""
DEAR = offer("vast", "dear", gpu_name="A100", gpu_ram_gb=80.0, price_per_hour_usd=1.0)
CHEAP = offer("vultr", "cheap", gpu_ram_gb=16.0, market="interruptible", price_per_hour_usd=0.1)


@pytest.fixture
def options(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the options of a launch in a world with one machine for each pool."""
    (tmp_path / "code").mkdir()
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads/turns.yml").write_text(WORKLOAD)
    (tmp_path / "bucket").mkdir()
    monkeypatch.chdir(tmp_path)
    world.vast.market, world.vultr.market = [DEAR], [CHEAP]
    return {
        "workload": str(tmp_path / "workloads/turns.yml"),
        "run": "turns-0",
        "bucket": f"file://{tmp_path / 'bucket'}",
        "follow": True,
    }


def box(provider: str, number: str, node: str, **values: Any) -> Instance:
    """Return a machine of the run on a node."""
    return instance(provider, number, "turns-0", **{"ref": RunRef("turns-0", "turns", node), **values})


def waits(tmp_path: Path, *, outcome: str | None = "waiting") -> LocalStore:
    """Leave in the bucket what a machine leaves that waits for the search's."""
    store = LocalStore(tmp_path / "bucket")
    begun = checkpoints.write_record(store, "turns-0", "turns")
    store.put("turns-0/run.json", replace(begun, pools={"train": 1, "search": 1}).to_bytes())
    root = tmp_path / "persistent"
    root.mkdir(exist_ok=True)
    (root / "weights").write_text(str(outcome))
    done = {"iteration": 0, "stage": "search", "done": [[0, "finetune"]], "finished": False, "outcome": outcome}
    checkpoints.publish(store, "turns-0", root, progress=lambda _journal: done)
    return store


def plan(verb: Verb, options: dict[str, Any], **more: Any) -> tuple[dict[str, Any], str]:
    """Return the plan, and its text."""
    result = verb("run_plan", **{**options, **more})
    assert not result.get("failed"), result
    return result["plan"], result["text"]


def test_a_followed_run_begins_on_the_first_pools_machine_b2(verb: Verb, options: dict[str, Any]) -> None:
    """B2: the plan names the machine for each pool, and what moving costs and saves."""
    made, text = plan(verb, options)
    assert (made["node"], made["turn_pools"], made["behind"]) == ("train-0", ["train"], [])
    assert ([one["id"] for one in made["offers"]], made["disk_gb"]) == (["dear"], 60)
    assert plan(verb, options, disk_gb=90.0)[0]["disk_gb"] == 90
    # No one machine is on demand and interruptible at once, but an on-demand one with 80 GB will do for all.
    assert made["by_pools"]["taken"]["moves"] == 1
    assert "1 hand-over cost" in text and "in all it saves $" in text and "vultr cheap" in text
    assert "is expected to take" not in text  # which would be for one machine at one price
    # shutdown=true stays as well, unless that is left to the machine, which cannot move its run.
    assert plan(verb, options, follow=False, shutdown=True)[0]["turn_pools"] == []
    del options["follow"]
    assert plan(verb, options, shutdown=True)[0]["turn_pools"] == ["train"]


def test_a_run_that_nobody_follows_has_one_machine_for_all(verb: Verb, options: dict[str, Any]) -> None:
    made, text = plan(verb, options, follow=False)
    assert (made["node"], made["turn_pools"]) == ("main-0", [])
    assert [one["id"] for one in made["offers"]] == ["dear"]
    assert "since nobody follows the run: -e follow=true may move it" in text and "is expected to take" in text


def test_the_machine_that_waits_is_left_and_the_next_one_rented_beside_it(
    world: World, verb: Verb, options: dict[str, Any], tmp_path: Path
) -> None:
    waits(tmp_path)
    world.vast.held["1"] = box("vast", "1", "train-0")
    for mode, followed in (("launch", True), ("resume", True), ("launch", False)):
        made, text = plan(verb, options, mode=mode, follow=followed)
        assert (made["node"], made["behind"], made["instance"]) == ("search-0", ["train-0"], {})
        assert ([one["id"] for one in made["offers"]], made["disk_gb"]) == (["cheap"], 20)
        assert "The run leaves vast 1, RTX 4090 in Sweden, SE, running, which ends when the other machine" in text
    rent = {name: made[name] for name in ("run", "offers", "node", "provider")}
    rented = verb("instance", workload="turns", wait=False, bucket=options["bucket"], **rent)
    assert rented["rented"] and rented["actions"] == ["rent vultr 9cheap, RTX 4090 in Sweden, SE, running"], rented
    assert [one.ref.node for one in world.vultr.held.values() if one.ref] == ["search-0"]
    assert list(world.vast.held) == ["1"]
    # The same again rents nothing: another controller's command would find that machine, too.
    again = verb("instance", workload="turns", wait=False, bucket=options["bucket"], **rent)
    assert not again["changed"] and again["instance"]["id"] == rented["instance"]["id"]
    # And the plan goes on with it.
    made, text = plan(verb, options)
    assert (made["instance"]["id"], made["node"], made["turn_pools"]) == ("9cheap", "search-0", ["search"])
    assert made["behind"] == ["train-0"] and "nothing has to be rented" in text


def test_a_machine_that_has_not_saved_its_end_is_gone_on_with(
    world: World, verb: Verb, options: dict[str, Any], tmp_path: Path
) -> None:
    waits(tmp_path, outcome=None)
    world.vast.held["1"] = box("vast", "1", "train-0")
    made, text = plan(verb, options)
    assert (made["instance"]["id"], made["turn_pools"], made["behind"]) == ("1", ["train"], [])
    assert "rented for pool train. Where another pool's stage comes next, the run moves." in text
    assert "it waits until somebody follows the run" in plan(verb, options, follow=False)[1]


def test_what_is_left_goes_first_when_the_waiting_machine_was_lost(
    world: World, verb: Verb, options: dict[str, Any], tmp_path: Path
) -> None:
    waits(tmp_path)
    world.vast.held["1"] = box("vast", "1", "train-0", state=State.PREEMPTED)
    made, text = plan(verb, options, mode="resume")
    # It is on another node than the new one, so it ends as what the run leaves.
    assert (made["node"], made["behind"], made["replace_preempted"]) == ("search-0", ["train-0"], True)
    assert "What is left of the lost machine goes first: vast 1" in text


def test_pools_that_no_offer_fits_are_named_and_nothing_is_rented(
    world: World, verb: Verb, options: dict[str, Any]
) -> None:
    world.vultr.market = []
    result = verb("run_plan", **options)
    assert result["failed"] and result["msg"].startswith("Pool search: No offer fits.")
    assert world.vast.rented == []


# --- the machine that waits ---


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what each machine's stages do; stopping says that all is saved."""
    said: dict[str, str] = {}
    answer = {"ended": True, "saved": {"state": True, "sequence": 1, "why": "The bucket holds everything."}}
    monkeypatch.setattr(watch, "status", lambda one, _key, **_options: {"state": said[one.id]})
    monkeypatch.setattr(watch, "stop", lambda _one, _key, **_options: answer)
    monkeypatch.setattr(ssh, "host_key_fingerprint", lambda _one: "SHA256:x")
    return said


def end(verb: Verb, options: dict[str, Any]) -> dict[str, Any]:
    return verb("run_end", run="turns-0", only="left", node="train-0", bucket=options["bucket"])


@pytest.mark.parametrize(
    ("state", "goes"), [("waiting", True), ("not-started", True), ("running", False), ("interrupted", True)]
)
def test_only_a_machine_whose_stages_do_not_run_ends_and_its_run_goes_on(
    world: World, verb: Verb, options: dict[str, Any], states: dict[str, str], tmp_path: Path, state: str, goes: bool
) -> None:
    store = waits(tmp_path)
    world.vast.held["1"], world.vultr.held["2"] = box("vast", "1", "train-0"), box("vultr", "2", "search-0")
    states.update({"1": state})
    result = end(verb, options)
    assert (list(world.vast.held), list(world.vultr.held)) == ([] if goes else ["1"], ["2"])
    assert bool(result.get("failed")) is not goes
    (record,) = checkpoints.list_runs(store)
    assert record.outcome is None
    if not goes:
        assert "is kept, and bills 0.4000 USD an hour" in result["msg"]


@pytest.mark.parametrize(("outcome", "goes"), [("waiting", True), (None, False)])
def test_one_that_does_not_answer_ends_when_its_last_words_are_in_the_bucket(
    world: World,
    verb: Verb,
    options: dict[str, Any],
    states: dict[str, str],
    tmp_path: Path,
    outcome: str | None,
    goes: bool,
) -> None:
    waits(tmp_path, outcome=outcome)
    world.vast.held["1"] = box("vast", "1", "train-0")
    states["1"] = "unreachable"
    result = end(verb, options)
    assert (list(world.vast.held), bool(result.get("failed"))) == ([] if goes else ["1"], not goes)


# --- the modules of the last steps ---


def test_the_last_step_of_a_launch_that_nobody_follows(verb: Verb) -> None:
    said = verb("run_follow", run="a-0", states=["running"], price_per_hour_usd=0.25)
    assert said["text"].splitlines()[1] == "The machine bills 0.2500 USD an hour, also when the run has ended, until:"
    # The launch of a hand-over is followed by whoever began it, and a dry run has nothing to follow.
    assert verb("run_follow", run="a-0", follow=True, hand_over=True) == {"changed": False}
    assert verb("run_follow", run="a-0", shutdown=True, check=True) == {"changed": False}


def test_following_hands_on_what_it_was_given(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[follow.Follow] = []

    def stand_in(_world: follow.World, request: follow.Follow, **_: Any) -> follow.Followed:
        asked.append(request)
        return follow.Followed(request.run, "finished", 2, "It bills.")

    monkeypatch.setattr(follow, "follow", stand_in)
    said = verb("run_follow", run="a-0", shutdown=True, since=4, options={"sandbox": True})
    assert asked == [follow.Follow("a-0", True, 4, {"sandbox": True})]
    assert said == {"changed": True, "state": "finished", "hand_overs": 2, "text": "It bills."}


def test_giving_up_always_fails_and_destroys_nothing_in_a_dry_run(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[ending.Order] = []
    monkeypatch.setattr(closing.end, "end", lambda _site, order, **_: orders.append(order))
    failed = {"run": "a-0", "task": "Start the stages", "node": "main-0", "rented": True, "shutdown": True}
    result = verb("run_give_up", **failed)
    assert result["failed"] and result["msg"].endswith("The machine is destroyed, as shutdown=true asks for.")
    assert [order.node for order in orders] == ["main-0"]
    assert verb("run_give_up", check=True, **failed)["failed"] and len(orders) == 1


def test_the_options_of_a_launch_are_found_wherever_they_were_said(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader()
    variables = {
        "sandbox": True,
        "run": "a-0",
        "region": "",
        "gpu_count": trust_as_template("{{ n }}"),
        "n": 2,
        "colour": "red",
    }
    given = {"rust_dist_server": "x", "run": "", "colour": "red"}
    monkeypatch.setattr(play_options, "load_extra_vars", lambda _loader: given)
    found = play_options.LookupModule(loader, Templar(loader, variables)).run(["launch"], {**given, **variables})
    # Not what is no option, nor what was left empty.
    assert found == [{"sandbox": True, "run": "a-0", "gpu_count": 2, "rust_dist_server": "x"}]


def test_the_end_of_one_node_is_not_the_end_of_its_run(
    world: World, verb: Verb, options: dict[str, Any], states: dict[str, str], tmp_path: Path
) -> None:
    store = waits(tmp_path)
    world.vast.held["1"], world.vultr.held["2"] = box("vast", "1", "train-0"), box("vultr", "2", "search-0")
    ended = verb("run_end", run="turns-0", node="train-0", bucket=options["bucket"])
    assert ended["changed"] and (list(world.vast.held), list(world.vultr.held)) == ([], ["2"])
    assert [one.outcome for one in checkpoints.list_runs(store)] == [None]


def test_a_run_that_moves_ends_at_the_last_stage_that_is_wanted(verb: Verb, options: dict[str, Any]) -> None:
    """Whichever pool runs it: each of the machines knows all stages."""
    for last, count in (("finetune", 1), ("search", 2)):
        made, text = plan(verb, options, until_stage=last)
        assert made["choice"]["until_stage"] == last and f"To run are {count} stages, up to {last}." in text
