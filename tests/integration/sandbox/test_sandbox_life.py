"""Stopping, starting, ending, losing a rental, and the bill for it, at both providers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import requests
from conftest import BOOT_SECONDS, Sandbox, wait

from gpuyard.errors import UsageError
from gpuyard.sandbox.engine import Engine

# How far the lost answer got before the connection ended decides which of the two it is.
LOST = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def container_of(sandbox: Sandbox, rental_id: int | str) -> str:
    rows = sandbox.control.status()["instances"]
    return str(next(row["container"] for row in rows if row["id"] == str(rental_id)))


def assert_in_order(seen: Sequence[object], states: Sequence[object]) -> None:
    """Assert that nothing but ``states`` was seen, in that order and to the last.

    Each lasts a fraction of a second, so a slow machine can miss one; the unit tests have a clock that stands still.
    """
    assert seen[-1] == states[-1]
    assert list(seen) == [state for state in states if state in seen]


def test_vast_from_renting_to_destroying(sandbox: Sandbox, engine: Engine) -> None:
    contract = sandbox.rent_vast(label="gpuyard/life-0/life")
    statuses: list[str | None] = []

    def look() -> dict[str, object]:
        row = sandbox.vast_row(contract)
        if not statuses or statuses[-1] != row["actual_status"]:
            statuses.append(row["actual_status"])
        return row

    lines = sandbox.open_lines(contract)
    first = look()
    if first["actual_status"] != "running":  # a machine that stalls here sees the end of the boot only
        assert "ports" not in first
        assert lines == {"disk"}  # the GPU is not charged while loading
    row = wait(look, lambda seen: seen["actual_status"] == "running")
    assert_in_order(statuses, [None, "created", "loading", "running"])
    assert row["public_ipaddr"].endswith("\n")
    assert sandbox.open_lines(contract) == {"disk", "gpu"}
    sandbox.ssh_vast(row, "echo kept > /root/file")

    assert sandbox.vast("PUT", f"/api/v0/instances/{contract}/", {"state": "stopped"}).json()["success"]
    row = sandbox.vast_row(contract)
    assert (row["actual_status"], row["cur_state"], row["intended_status"]) == ("exited", "stopped", "stopped")
    assert sandbox.open_lines(contract) == {"disk"}
    name = container_of(sandbox, contract)
    wait(lambda: {"state": engine.state(name)}, lambda seen: not seen["state"].running)

    sandbox.vast("PUT", f"/api/v0/instances/{contract}/", {"state": "running"})
    statuses.clear()
    row = wait(look, lambda seen: seen["actual_status"] == "running")
    assert_in_order(statuses, ["exited", "loading", "running"])  # the stale word first
    assert sandbox.ssh_vast(row, "cat /root/file").stdout == "kept\n"

    assert sandbox.vast("DELETE", f"/api/v0/instances/{contract}/").json()["success"]
    assert engine.state(name) is None
    assert sandbox.vast("GET", f"/api/v0/instances/{contract}/").json() == {"instances": None}
    assert sandbox.vast("GET", "/api/v1/instances/").json()["instances"] == []
    assert sandbox.vast("DELETE", f"/api/v0/instances/{contract}/").status_code == 404
    lines = [line for line in sandbox.bill()["lines"] if line["id"] == str(contract)]
    assert [line["what"] for line in lines] == ["disk", "gpu", "gpu"]
    assert all(line["end"] is not None and line["amount_usd"] > 0 for line in lines)


def test_vultr_from_renting_to_deleting(sandbox: Sandbox, engine: Engine) -> None:
    instance = sandbox.rent_vultr(label="life-1", tags=["gpuyard", "run:life-1", "workload:life"])
    triples: list[tuple[str, ...]] = []

    def look() -> dict[str, str]:
        row = sandbox.vultr_row(instance)
        triple = (row["status"], row["power_status"], row["server_status"], row["main_ip"])
        if not triples or triples[-1] != triple:
            triples.append(triple)
        return row

    row = wait(
        look, lambda seen: (seen["status"], seen["power_status"], seen["server_status"]) == ("active", "running", "ok")
    )
    address = row["main_ip"]
    assert_in_order(
        triples,
        [
            ("pending", "running", "none", "0.0.0.0"),
            ("active", "stopped", "locked", address),
            ("active", "running", "installingbooting", address),
            ("active", "running", "ok", address),
        ],
    )
    assert sandbox.open_lines(instance) == {"instance"}
    name = container_of(sandbox, instance)

    answer = sandbox.vultr("POST", f"/instances/{instance}/halt")
    assert (answer.status_code, answer.content) == (204, b"")
    row = sandbox.wait_vultr(instance, "stopped")
    wait(lambda: {"state": engine.state(name)}, lambda seen: not seen["state"].running)
    assert sandbox.open_lines(instance) == {"instance"}  # a halted machine bills in full

    sandbox.vultr("POST", f"/instances/{instance}/start")
    sandbox.wait_vultr(instance)
    assert sandbox.ssh(address, 22, "echo in").stdout == "in\n"

    # It can also end by itself, and is not running then.
    sandbox.ssh(address, 22, "systemctl poweroff")
    sandbox.wait_vultr(instance, "stopped")
    sandbox.vultr("POST", f"/instances/{instance}/start")
    sandbox.wait_vultr(instance)
    assert sandbox.ssh(address, 22, "echo in").stdout == "in\n"

    assert sandbox.vultr("DELETE", f"/instances/{instance}").status_code == 204
    assert engine.state(name) is None
    assert sandbox.vultr("GET", f"/instances/{instance}").status_code == 404
    assert sandbox.vultr("DELETE", f"/instances/{instance}").status_code == 404
    assert sandbox.open_lines(instance) == set()


def test_keys_can_be_attached_to_a_running_vast_box(sandbox: Sandbox) -> None:
    account = sandbox.vast("GET", "/api/v0/ssh/").json()
    for key in account:
        sandbox.vast("DELETE", f"/api/v0/ssh/{key['id']}/")
    contract = sandbox.rent_vast()
    row = sandbox.wait_vast(contract)
    assert sandbox.ssh_vast(row, "true").returncode == 255
    assert sandbox.vast("POST", f"/api/v0/instances/{contract}/ssh/", {"ssh_key": sandbox.public_key}).ok
    assert sandbox.ssh_vast(row, "true").returncode == 0
    listed = sandbox.vast("GET", f"/api/v0/instances/{contract}/ssh/").json()["ssh_keys"]
    assert isinstance(listed, str)
    assert sandbox.public_key in listed


@pytest.mark.parametrize(("outcome", "intended"), [("", "stopped"), ("outbid", "running")])
def test_a_vast_preemption_kills_at_once_and_keeps_billing_the_disk(
    sandbox: Sandbox, engine: Engine, outcome: str, intended: str
) -> None:
    contract = sandbox.rent_vast(label="gpuyard/prey-0/prey", price=10)
    row = sandbox.wait_vast(contract)
    machine = row["machine_id"]
    sandbox.ssh_vast(row, "echo half > /root/work")
    name = container_of(sandbox, contract)
    assert sandbox.control.preempt(run="prey-0", outcome=outcome)["preempted"] == [
        {"provider": "vast", "id": str(contract)}
    ]
    state = engine.state(name)
    assert state is not None
    assert not state.running
    assert state.exit_code == 137  # SIGKILL
    row = sandbox.vast_row(contract)
    assert (row["cur_state"], row["actual_status"], row["intended_status"]) == ("stopped", "exited", intended)
    assert sandbox.open_lines(contract) == {"disk"}

    # Somebody else has the GPU now: a start is queued, and the machine is not offered.
    queued = sandbox.vast("PUT", f"/api/v0/instances/{contract}/", {"state": "running"})
    assert queued.status_code == 200
    assert queued.json()["success"] is False
    assert machine not in [offer["machine_id"] for offer in sandbox.offers()]
    sandbox.control.clear_faults()
    row = sandbox.wait_vast(contract)
    assert sandbox.ssh_vast(row, "cat /root/work").stdout == "half\n"


def test_a_vultr_preemption_takes_the_machine_away(sandbox: Sandbox, engine: Engine) -> None:
    instance = sandbox.rent_vultr(tags=["gpuyard", "run:prey-1", "workload:prey"])
    sandbox.wait_vultr(instance)
    name = container_of(sandbox, instance)
    sandbox.control.preempt(run="prey-1")
    assert sandbox.vultr("GET", f"/instances/{instance}").status_code == 404
    assert engine.state(name) is None
    assert sandbox.open_lines(instance) == set()

    suspended = sandbox.rent_vultr(tags=["gpuyard", "run:prey-2", "workload:prey"])
    sandbox.wait_vultr(suspended)
    sandbox.control.preempt(instance=suspended, outcome="suspended")
    assert sandbox.vultr_row(suspended)["status"] == "suspended"
    with pytest.raises(UsageError, match="gone or suspended, not as outbid"):
        sandbox.control.preempt(instance=sandbox.rent_vultr(), outcome="outbid")


def test_a_notice_lets_processes_catch_sigterm(sandbox: Sandbox, engine: Engine) -> None:
    contract = sandbox.rent_vast()
    row = sandbox.wait_vast(contract)
    trap = "trap 'sleep 0.5; date +%s > /root/flushed; exit' TERM; touch /root/ready; while :; do sleep 0.1; done"
    sandbox.ssh_vast(
        row, f'setsid bash -c "{trap}" >/dev/null 2>&1 </dev/null & until [ -e /root/ready ]; do sleep 0.1; done'
    )
    name = container_of(sandbox, contract)
    begun = time.monotonic()
    sandbox.control.preempt(instance=str(contract), notice_s=200)
    wait(lambda: sandbox.vast_row(contract), lambda seen: seen["cur_state"] == "stopped")
    assert time.monotonic() - begun < 150  # everything ended by itself before the notice did
    sandbox.control.clear_faults()
    sandbox.vast("PUT", f"/api/v0/instances/{contract}/", {"state": "running"})
    row = sandbox.wait_vast(contract)
    assert sandbox.ssh_vast(row, "test -s /root/flushed && echo flushed").stdout == "flushed\n"
    assert engine.state(name) is not None


def test_faults_happen_as_often_as_asked(sandbox: Sandbox) -> None:
    control = sandbox.control
    control.fault("no-capacity", "vast")
    ask = sandbox.offers()[0]["id"]
    body = {"image": "vastai/pytorch", "disk": 20, "label": "gpuyard/fault-0/fault"}
    refused = sandbox.vast("PUT", f"/api/v0/asks/{ask}/", body)
    assert (refused.status_code, refused.json()["error"]) == (410, "no_such_ask")
    assert sandbox.vast("GET", "/api/v1/instances/").json()["total_instances"] == 0

    control.fault("lost-answer", "vast")
    with pytest.raises(LOST):
        sandbox.vast("PUT", f"/api/v0/asks/{ask}/", body)
    assert [row["label"] for row in sandbox.vast("GET", "/api/v1/instances/").json()["instances"]] == [body["label"]]
    again = sandbox.vast("PUT", f"/api/v0/asks/{ask}/", body)
    assert (again.status_code, again.json()["error"]) == (410, "no_such_ask")  # an ask is rented once

    control.fault("throttle", "vast", 2)
    texts = [sandbox.vast("GET", "/api/v0/users/current") for _ in range(3)]
    assert [answer.status_code for answer in texts] == [429, 429, 200]
    assert texts[0].text == "API requests too frequent"

    wanted = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136, "label": "fault-1"}
    control.fault("no-capacity", "vultr")
    assert sandbox.vultr("POST", "/instances", wanted).status_code == 400
    control.fault("lost-answer", "vultr")
    with pytest.raises(LOST):
        sandbox.vultr("POST", "/instances", wanted)
    assert [row["label"] for row in sandbox.vultr("GET", "/instances").json()["instances"]] == ["fault-1"]
    control.fault("throttle", "vultr")
    control.fault("server-error", "vultr", 3)
    assert [sandbox.vultr("GET", "/account").status_code for _ in range(2)] == [429, 503]
    control.clear_faults()
    assert sandbox.vultr("GET", "/account").status_code == 200


def test_a_bid_that_is_too_low_leaves_a_stopped_instance_behind(sandbox: Sandbox) -> None:
    offer = sandbox.offers()[0]
    body = {"image": "vastai/pytorch", "disk": 20, "price": offer["min_bid"] / 2}
    refused = sandbox.vast("PUT", f"/api/v0/asks/{offer['id']}/", body)
    assert not refused.ok
    contract = refused.json()["new_contract"]
    assert sandbox.vast_row(contract)["cur_state"] == "stopped"
    assert sandbox.open_lines(contract) == {"disk"}
    careful = sandbox.vast(
        "PUT", f"/api/v0/asks/{sandbox.offers()[0]['id']}/", {**body, "price": 0.001, "cancel_unavail": True}
    )
    assert not careful.ok
    assert "new_contract" not in careful.json()


def test_booting_takes_the_configured_time(sandbox: Sandbox) -> None:
    begun = time.monotonic()
    sandbox.wait_vultr(sandbox.rent_vultr())
    assert time.monotonic() - begun >= BOOT_SECONDS
