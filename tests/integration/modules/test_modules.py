# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The neutral modules and the inventory against the sandbox, through ansible-playbook and ansible-inventory."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import BIN, BOOT_S, ROOT, WORKLOAD, Yard

PROVIDERS = ["vast", "vultr"]


def groups(yard: Yard, *words: str, **environment: str) -> dict[str, Any]:
    """Return the inventory as JSON."""
    found: dict[str, Any] = json.loads(yard.ansible("ansible-inventory", "--list", *words, **environment))
    return found


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_grid(yard: Yard, provider: str) -> None:
    present = {"run": "grid-0", "workload": "tiny", "provider": provider, "gpu_ram_gb": 8}
    absent = {"run": "grid-0", "state": "absent"}
    module = "gpuyard.cloud.instance"
    bad, planned, created, again, listed, predicted, gone, gone_again = yard.play(
        [
            {module: {"run": "grid-0", "state": "sideways"}},
            {module: present, "check_mode": True},
            {module: present},
            {module: present},
            {"gpuyard.cloud.instance_info": {"run": "grid-0"}},
            {module: absent, "check_mode": True},
            {module: absent},
            {module: absent},
        ],
        "--diff",
    )
    assert "state='sideways' must be one of: present, absent" in bad["msg"]
    assert planned["changed"]
    assert planned["planned_calls"][-1]["method"] in ("PUT", "POST")
    assert created["changed"]
    assert created["instance"]["state"] == "running"
    assert created["instance"]["emulated"] is True
    assert created["connection"]["ansible_user"] == "root"
    assert created["diff"]["before"]["machines"] == []
    assert not again["changed"]
    assert [one["id"] for one in listed["instances"]] == [created["instance"]["id"]] == [again["instance"]["id"]]
    assert predicted["changed"]
    assert predicted["planned_calls"][0]["method"] == "DELETE"
    assert gone["changed"]
    assert created["instance"]["id"] in gone["actions"][0]
    assert not gone_again["changed"]
    assert yard.rented() == []


def test_check_mode_writes_nothing(yard: Yard) -> None:
    (result,) = yard.play([{"gpuyard.cloud.instance": {"run": "dry-0", "workload": "tiny"}}], "--check")
    assert result["planned_calls"]
    assert yard.rented() == []


def test_progress_is_shown_while_it_runs(yard: Yard) -> None:
    play = yard.folder / "slow.yml"
    play.write_text(
        "[{hosts: localhost, gather_facts: false, tasks: [{gpuyard.cloud.instance: "
        "{run: live-0, workload: tiny, provider: vast, sandbox: true}}]}]"
    )
    with subprocess.Popen(
        [BIN / "ansible-playbook", str(play)], cwd=ROOT, env=yard.environment, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        seen = [(time.monotonic(), line.strip()) for line in running.stdout]
    rented = next(moment for moment, line in seen if line.startswith("Rented vast instance"))
    answered = next(moment for moment, line in seen if "answers over SSH" in line)
    assert running.returncode == 0
    # Lines that were kept back until the end would come in the same moment.
    assert answered - rented > BOOT_S / 10


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_lost_answer_makes_one_machine(yard: Yard, provider: str) -> None:
    yard.fault("lost-answer", provider)
    result = yard.task("instance", run="lost-0", workload="tiny", provider=provider)
    assert result["changed"]
    (only,) = yard.rented()
    assert only["id"] == result["instance"]["id"]


def test_the_next_offer_is_taken_when_one_is_gone(yard: Yard) -> None:
    yard.fault("no-capacity", "vast", 2)
    result = yard.task("instance", run="next-0", workload="tiny", provider="vast", wait=False)
    assert result["changed"]
    assert len(yard.rented()) == 1


def test_nothing_to_be_had(yard: Yard) -> None:
    yard.fault("no-capacity", "vast", 99)
    result = yard.task("instance", run="none-0", workload="tiny", provider="vast")
    assert result["failed"]
    assert result["failure"]["kind"] == "NoCapacityError"
    assert "Nothing" in result["msg"]
    assert yard.rented() == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_throttling_is_waited_for(yard: Yard, provider: str) -> None:
    yard.fault("throttle", provider, 2)
    result = yard.task("instance", run="slow-0", workload="tiny", provider=provider, wait=False)
    assert result["changed"]
    assert len(yard.rented()) == 1


def test_a_lost_machine_is_replaced_only_when_told(yard: Yard) -> None:
    first = yard.task("instance", run="gone-0", workload="tiny", provider="vast")
    yard.gpuyard("sandbox", "fault", "preempt", "--run", "gone-0")
    options = {"run": "gone-0", "workload": "tiny", "provider": "vast"}
    refused, planned, replaced = yard.play(
        [
            {"gpuyard.cloud.instance": options},
            {"gpuyard.cloud.instance": {**options, "replace_preempted": True}, "check_mode": True},
            {"gpuyard.cloud.instance": {**options, "replace_preempted": True}},
        ]
    )
    assert "resume_search.yml -e run=gone-0" in refused["msg"]
    assert planned["planned_calls"][0]["method"] == "DELETE"
    assert replaced["instance"]["id"] != first["instance"]["id"]
    assert [one["id"] for one in yard.rented()] == [replaced["instance"]["id"]]


def test_plan_rent_and_list(yard: Yard) -> None:
    planned = yard.task("run_plan", workload=yard.workload)["plan"]
    assert planned["run"] == "tiny-0"
    assert planned["bucket"]["url"] == "s3://gpuyard"
    prices = [offer["price_per_hour_usd"] for offer in planned["offers"]]
    assert prices == sorted(prices)
    assert {offer["provider"] for offer in planned["offers"]} == {*PROVIDERS, "lambda", "runpod"}
    options = {"run": "tiny-0", "workload": "tiny", "offers": planned["offers"], "disk_gb": planned["disk_gb"]}
    rented, again, runs = yard.play(
        [
            {"gpuyard.cloud.instance": options},
            {"gpuyard.cloud.run_plan": {"workload": yard.workload}},
            {"gpuyard.cloud.run_info": {}},
        ]
    )
    assert rented["instance"]["price_per_hour_usd"] == pytest.approx(prices[0], rel=0.01)
    assert again["plan"]["instance"]["id"] == rented["instance"]["id"]
    assert again["plan"]["connection"] == rented["connection"]
    # The bucket also knows what the runs of other tests have cost.
    living = [(one["run"], one["state"]) for one in runs["runs"] if one["instances"]]
    assert living == [("tiny-0", "not-started")]


def test_inventory(yard: Yard) -> None:
    for provider in PROVIDERS:
        yard.task("instance", run=f"{provider}-0", workload="tiny", provider=provider, gpu_ram_gb=8)
    found = groups(yard)  # nobody says sandbox here: there is no key of any cloud, and the sandbox runs
    assert set(found["gpuyard"]["hosts"]) == {"vast-0", "vultr-0"}
    assert found["provider_vast"]["hosts"] == found["run_vast_0"]["hosts"] == ["vast-0"]
    assert found["state_running"]["hosts"] == found["workload_tiny"]["hosts"] == ["vast-0", "vultr-0"]
    assert {name.split("_")[0] for name in found} >= {"provider", "run", "workload", "gpu", "region", "state"}
    facts = json.loads(yard.ansible("ansible-inventory", "--host", "vultr-0"))
    assert facts["gpuyard_emulated"] is True
    assert facts["gpuyard_provider"] == "vultr"
    assert "gpuyard" in groups(yard, GPUYARD_SANDBOX="1")
    assert "gpuyard" not in groups(yard, "-e", "sandbox=false")
    assert "gpuyard" not in groups(yard, "-e", f"sandbox_state={yard.folder / 'another'}")
    only = groups(yard, "-e", "provider=vultr", "-e", "sandbox=true")
    assert only["gpuyard"]["hosts"] == ["vultr-0"]
    graph = yard.ansible("ansible-inventory", "--graph")
    assert "@run_vultr_0" in graph
    # The connection variables are enough: the host key is pinned, and only that key is accepted.
    reached = yard.ansible(
        "ansible", "gpuyard", "-m", "ansible.builtin.ping", "-e", "ansible_python_interpreter=/usr/bin/python3"
    )
    assert reached.count("pong") == 2
    known = yard.folder / "home" / "known_hosts"
    kept = known.read_text()
    known.write_text("")
    fresh = {"ANSIBLE_SSH_ARGS": "-o ControlPath=none"}  # not over the connection that is still open
    refused = yard.ansible("ansible", "vast-0", "-m", "ansible.builtin.ping", status=4, **fresh)
    known.write_text(kept)
    assert "Host key verification failed" in refused


def test_a_sandbox_that_does_not_run_has_no_hosts(yard: Yard) -> None:
    nowhere = str(yard.folder / "nowhere")
    printed = yard.ansible("ansible-inventory", "--graph", GPUYARD_SANDBOX="1", GPUYARD_SANDBOX_STATE=nowhere)
    assert "@gpuyard" not in printed
    assert "WARNING" not in printed


def test_without_a_key_one_sentence_names_both_ways_out(yard: Yard) -> None:
    result = yard.task("instance_info", sandbox=False)
    assert "VAST_API_KEY or VULTR_API_KEY" in result["msg"]
    assert "sandbox=true" in result["msg"]


def test_an_unknown_provider(yard: Yard) -> None:
    result = yard.task("offer_info", provider="vlutr")
    assert "provider='vlutr' is not known; choose one of: vast, vultr" in result["msg"]


def test_the_environment_of_a_task_counts(yard: Yard) -> None:
    (result,) = yard.play([{"gpuyard.cloud.offer_info": {}, "environment": {"GPUYARD_PROVIDER": "vultr"}}])
    assert {offer["provider"] for offer in result["offers"]} == {"vultr"}


def test_a_module_as_a_process_of_its_own(yard: Yard) -> None:
    """The action plugins run a module's function in Ansible's process; the module also works without them."""
    arguments = {"ANSIBLE_MODULE_ARGS": {"sandbox": True, "provider": "vast", "gpu_ram_gb": 8}}
    code = (
        f"from ansible.plugins.loader import init_plugin_loader; init_plugin_loader(['{ROOT / 'collections'}']); "
        "import runpy; runpy.run_module('ansible_collections.gpuyard.cloud.plugins.modules.offer_info', "
        "run_name='__main__')"
    )
    done = subprocess.run(
        [BIN / "python", "-c", code, json.dumps(arguments)],
        cwd=ROOT,
        env=yard.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["offers"][0]["provider"] == "vast"


def test_x11_a_machine_that_fails_its_test_goes_back_and_its_host_is_left_out(yard: Yard) -> None:
    """The whole way: rented, tested over SSH, destroyed, billed until then, remembered; the next offer is taken."""
    yard.fault("bad-gpu", "vast")
    launch = {"gpuyard.cloud.run_launch": {"workload": yard.workload, "provider": "vast", "run": "fit-0"}}
    another = {"gpuyard.cloud.run_launch": {**launch["gpuyard.cloud.run_launch"], "run": "fit-1"}, "check_mode": True}
    launched, planned = yard.play([launch, another])
    label = "gpuyard/fit-0/"
    (kept,) = [row for row in yard.rented() if row["label"].startswith(label)]
    assert launched["changed"] and launched["hosts"][0]["instance"]["id"] == kept["id"]
    lines = json.loads(yard.gpuyard("sandbox", "bill", "--json"))["lines"]
    ended = [line for line in lines if line["label"].startswith(label) and line["end"] is not None]
    gone = {line["id"] for line in ended} - {kept["id"]}
    assert len(gone) == 1
    said = yard.printed[-1]
    assert f"vast instance {gone.pop()} is not what was offered: gpu count: 0 instead of 1. Giving it back." in said
    assert f"vast instance {kept['id']} is what was offered: gpu count 1" in said
    # The bucket was reached from the box, by signed addresses, which nobody sees.
    assert "network " in said.split("is what was offered", 1)[1].split("\n")[0] and "Signature" not in said
    assert planned["planned_calls"] and "failed us on" in said


def test_x11_a_slow_disk_is_refused_where_the_workload_says_what_is_slow(yard: Yard) -> None:
    """The kernel really slows the box's disk down, and the measurement on the box finds it."""
    yard.fault("slow-disk", "vast")
    workload = Path(yard.workload).with_name("quick.yml")
    workload.write_text(yaml.safe_dump({**WORKLOAD, "name": "quick", "health": {"disk_mb_s": 8}}))
    launched = yard.task("run_launch", workload=str(workload), provider="vast", run="quick-0")
    label = "gpuyard/quick-0/"
    (kept,) = [row for row in yard.rented() if row["label"].startswith(label)]
    assert launched["hosts"][0]["instance"]["id"] == kept["id"]
    lines = json.loads(yard.gpuyard("sandbox", "bill", "--json"))["lines"]
    (gone,) = {line["id"] for line in lines if line["label"].startswith(label)} - {kept["id"]}
    assert all(line["end"] is not None for line in lines if line["id"] == gone)
    said = yard.printed[-1]
    found = re.search(rf"vast instance {gone} is not what was offered: disk: ([\d.]+) MB/s instead of at least 8", said)
    assert found and float(found[1]) < 5, said
    assert f"vast instance {kept['id']} is what was offered: gpu count 1" in said
    assert re.search(r"Host \d+ of vast is left out of the choice for 30 days", said)
