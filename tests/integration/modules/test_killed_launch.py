# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller is killed at every step of a launch: what it rented is found by its label, and a teardown ends it.

Also what a teardown meets itself: a network that is gone, and a cloud that refuses to destroy.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import requests

from gpuyard import config, market
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Provider, Query
from gpuyard.renting import machine, survey
from gpuyard.sandbox.client import Control, load

from .conftest import Yard
from .test_converging import start
from .test_killed import kill_all

SANDBOX = ("-e", "sandbox=true")
LONGEST_S = 240
# A launch of a tiny workload takes some half a minute; which of its steps it is in at a second is nobody's choice.
RANDOM_S = (4.0, 20.0)
LEASE_S = 3.6


@dataclass(frozen=True)
class Step:
    """A moment of a launch: at which cloud, what makes the moment last, and how it is seen in what the play prints."""

    provider: str
    seen: str  # a part of a line; "": as soon as the machine is rented, before the answer is there
    fault: str = ""
    rented: int = 1


STEPS = {
    "before-the-create": Step("vultr", "Renting vultr", "no-network", rented=0),
    "between-create-and-answer": Step("vast", "", "slow-answer"),
    "while-it-boots": Step("runpod", "Rented runpod", "stuck-boot"),
    "while-it-waits-for-ssh": Step("vultr", "does not answer yet", "no-key"),
    "in-acceptance": Step("lambda", "answers over SSH"),
    "in-convergence": Step("vultr", "TASK [Bring the machine into shape"),
    "at-stage-start": Step("vultr", "TASK [gpuyard.cloud.stages :"),
}


def control(yard: Yard) -> Control:
    return Control(load(yard.folder / "home" / "sandbox"))


def clouds_of(yard: Yard) -> list[Provider]:
    return config.connect(sandbox=True, sandbox_state=yard.folder / "home" / "sandbox", env={})


def find(yard: Yard, run: str) -> list[str]:
    """Return the ids of what the clouds list under the run's label."""
    return [one.id for one in survey.find(clouds_of(yard), run)]


def killed(yard: Yard, moment: Callable[[str], bool], *words: str) -> str:
    """Start a launch and kill it with all its workers as soon as ``moment`` is true of what it has printed."""
    play = start(yard, "launch.yml", *SANDBOX, *words)
    printed = yard.folder / "printed"
    with printed.open("w") as file:
        copying = subprocess.Popen(["cat"], stdin=play.stdout, stdout=file)
        try:
            deadline = time.monotonic() + LONGEST_S
            while not moment(printed.read_text()):
                assert play.poll() is None and time.monotonic() < deadline, printed.read_text()
                time.sleep(0.02)
        finally:
            kill_all(play.pid)
            play.wait()
            copying.wait()
    said = printed.read_text()
    yard.printed.append(said)
    assert "PLAY RECAP" not in said
    return said


@pytest.mark.parametrize("name", STEPS)
def test_a_launch_killed_at_any_step_leaves_nothing_that_is_not_found(yard: Yard, name: str) -> None:
    step, run = STEPS[name], f"killed-{name}"[:40].rstrip("-")
    if step.fault:
        place = {"place": "create"} if step.fault == "no-network" else {}
        control(yard).fault(step.fault, step.provider, **place)
    words = ("-e", f"workload={yard.workload}", "-e", f"provider={step.provider}", "-e", f"run={run}")
    said = killed(yard, lambda seen: step.seen in seen if step.seen else bool(yard.rented()), *words)
    if not step.seen:
        assert "Rented" not in said
    rented = [one["id"] for one in yard.rented()]
    assert len(rented) == step.rented and find(yard, run) == rented
    if name == "while-it-boots":
        assert run in yard.ansible("ansible-playbook", "status.yml", *SANDBOX)
    # Where the killed launch has left a note, the teardown first waits until no machine can come of it any more.
    yard.ansible("ansible-playbook", "teardown.yml", *SANDBOX, "-e", f"run={run}", "-e", "lose=true")
    assert yard.rented() == [] and yard.billable() == [] and find(yard, run) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_launch_killed_at_a_random_second_is_seen_by_an_audit_and_ended_by_a_reaping(yard: Yard, seed: int) -> None:
    chance, run = random.Random(seed), f"killed-anywhen-{seed}"
    provider, seconds = chance.choice(["vast", "vultr", "lambda", "runpod"]), chance.uniform(*RANDOM_S)
    words = ("-e", f"workload={yard.workload}", "-e", f"provider={provider}", "-e", f"run={run}")
    until = time.monotonic() + seconds
    killed(yard, lambda seen: time.monotonic() > until, *words, "-e", f"lease_hours={LEASE_S / 3600}")
    rented = [one["id"] for one in yard.rented()]
    assert len(rented) <= 1 and find(yard, run) == rented
    audit = yard.ansible("ansible-playbook", "audit.yml", *SANDBOX)
    assert (run in audit) is bool(rented), (seconds, audit)
    time.sleep(LEASE_S)
    said = yard.ansible("ansible-playbook", "reap.yml", *SANDBOX, "-e", "lose=true", "-e", "format=json")
    assert '"problems": []' in said
    assert yard.rented() == [] and yard.billable() == [] and find(yard, run) == []
    assert "There is nothing to end." in yard.ansible("ansible-playbook", "audit.yml", *SANDBOX, "-e", "reap=true")


def test_a_cloud_that_refuses_to_destroy_is_asked_until_the_machine_is_gone(yard: Yard) -> None:
    """At every cloud, answering 429 and 5xx; the machines of another run and foreign ones stay as they are."""
    clouds, query = clouds_of(yard), Query()
    key = config.ssh_key().public_text
    spec = CreateSpec(RunRef("stays-0", "tiny"), key)
    others: list[tuple[str, str]] = []
    for cloud in clouds:
        offer, other = market.choose(cloud.offers(query), query)[:2]
        cloud.create(offer, spec)
        others.append(cloud.create(other, CreateSpec(RunRef("goes-on-0", "tiny"), key)).place)
        for kind in ("throttle", "server-error"):
            control(yard).fault(kind, cloud.name, place="destroy")
    info = load(yard.folder / "home" / "sandbox")
    foreign = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136, "label": "stays-0-of-somebody"}
    made = requests.post(
        f"{info.endpoints['vultr']}/instances",
        json=foreign,
        headers={"Authorization": f"Bearer {info.vultr_key}"},
        timeout=60,
    ).json()["instance"]["id"]
    outcome = machine.absent(clouds, "stays-0")
    assert len(outcome.actions) == len(clouds)
    assert control(yard).status()["faults"] == []
    assert sorted(one.place for one in survey.find(clouds)) == sorted(others)
    (vultr,) = [cloud for cloud in clouds if cloud.name == "vultr"]
    assert [one.id for one in vultr.instances() if one.ref is None] == [made]
    vultr.destroy(made)


def test_a_teardown_without_a_network_says_what_is_not_seen(yard: Yard) -> None:
    yard.task("instance", run="stays-2", workload="tiny", provider="vultr", wait=False)
    (only,) = find(yard, "stays-2")
    control(yard).fault("no-network", "vultr", 100)
    end = ("ansible-playbook", "teardown.yml", *SANDBOX, "-e", "run=stays-2", "-e", "lose=true")
    said = " ".join(yard.ansible(*end, status=2).split())
    assert "vultr could not be asked, so what is rented there is not seen, and may bill" in said
    control(yard).clear_faults()
    assert find(yard, "stays-2") == [only]
    yard.ansible(*end)
    assert yard.rented() == []
