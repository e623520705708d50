"""What the emulated APIs of Vast and Vultr answer: errors, pages, states, quirks (docs/reference)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Apis, StandInEngine
from starlette.testclient import TestClient

from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.engine import ContainerSpec, EngineError
from gpuyard.sandbox.model import Phase, World
from gpuyard.sandbox.server import build
from gpuyard.sandbox.web import Rate, Spacing

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExa test"


def error(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


# -- Vast --------------------------------------------------------------------------------------------------------------


def test_vast_keys_and_paths(apis: Apis) -> None:
    get = apis.client.get
    missing = get("/api/v0/users/current")
    assert (error(missing), missing.json()["msg"]) == ((403, "auth_error"), "This action requires login.")
    wrong = get("/api/v0/users/current", headers={"Authorization": "Bearer wrong"})
    assert (error(wrong), wrong.json()["msg"]) == ((404, "auth_error"), "Invalid user key")
    assert get("/api/v0/users/current", params={"api_key": apis.cloud.settings.vast_key}).status_code == 200
    assert get("/api/v0/users/current/", params={"api_key": apis.cloud.settings.vast_key}).status_code == 200
    assert apis.client.post("/api/v0/bundles", json={}).json()["offers"]  # searching needs no key
    unrouted = get("/api/v0/nonsense/")
    assert (error(unrouted), unrouted.json()["msg"]) == (
        (501, "not_emulated"),
        "The sandbox has no route GET /api/v0/nonsense.",
    )
    assert apis.client.post("/api/v0/bundles/", content=b"{").status_code == 400


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"disk": 4}, "invalid_args"),
        ({"disk": 10_000}, "invalid_args"),
        ({"disk": "much"}, "invalid_args"),
        ({"image": ""}, "invalid_args"),
        ({"label": "x" * 257}, "label_too_long"),
        ({"onstart": "x" * 4097}, "invalid_args"),
        ({"env": {"X": "y" * 40_000}}, "invalid_args"),
        ({"env": ["A=b"]}, "invalid_args"),
    ],
)
def test_vast_refuses_bad_creates_before_renting(apis: Apis, body: dict[str, Any], code: str) -> None:
    wanted = {"image": "vastai/pytorch", "disk": 20, **body}
    assert error(apis.vast("PUT", "/v0/asks/11402000/", wanted)) == (400, code)
    assert apis.cloud.world.rentals == []


def test_a_vast_ask_is_rented_once_and_listed_anew_after_destroying(apis: Apis) -> None:
    contract = apis.rent_vast(11402000)
    again = apis.vast("PUT", "/v0/asks/11402000/", {"image": "i", "disk": 20})
    assert error(again) == (410, "no_such_ask")
    assert again.json()["ask_id"] == 11402000
    query = {"machine_id": {"eq": 11402}}
    assert [offer["rentable"] for offer in apis.vast("POST", "/v0/bundles", query).json()["offers"]] == [False]
    apis.vast("DELETE", f"/v0/instances/{contract}/")
    offer = apis.vast("POST", "/v0/bundles", query).json()["offers"][0]
    assert (offer["rentable"], offer["id"]) == (True, 11402001)
    assert error(apis.vast("PUT", "/v0/asks/11402000/", {"image": "i", "disk": 20})) == (410, "no_such_ask")


def test_vast_destroyed_is_null_and_unknown_is_404(apis: Apis) -> None:
    contract = apis.rent_vast()
    assert apis.vast("DELETE", f"/v0/instances/{contract}/").json()["success"] is True
    assert apis.vast("GET", f"/v0/instances/{contract}/").json() == {"instances": None}
    assert error(apis.vast("GET", "/v0/instances/1/")) == (404, "no_such_instance")
    assert error(apis.vast("DELETE", f"/v0/instances/{contract}/")) == (404, "no_such_instance")
    assert error(apis.vast("GET", "/v0/instances/")) == (410, "deprecated_endpoint")


def test_vast_pages_of_25_by_key(apis: Apis) -> None:
    template = apis.cloud.world.find("vast", str(apis.rent_vast(label="many")))
    assert template is not None
    apis.cloud.world.rentals.clear()
    for number in range(60):
        copy = type(template)(**{name: getattr(template, name) for name in template.__slots__})
        copy.id, copy.label = str(1000 + number), f"label-{number % 2}"
        apis.cloud.world.rentals.append(copy)
    first = apis.vast("GET", "/v1/instances/", params={"limit": "100"}).json()
    assert [row["id"] for row in first["instances"]] == list(range(1000, 1025))
    assert first["total_instances"] == 60
    # The row that the token names goes away before the next page is asked for.
    apis.cloud.world.rentals = [rental for rental in apis.cloud.world.rentals if rental.id != "1024"]
    second = apis.vast("GET", "/v1/instances/", params={"after_token": first["next_token"]}).json()
    assert [row["id"] for row in second["instances"]] == list(range(1025, 1050))
    third = apis.vast("GET", "/v1/instances/", params={"after_token": second["next_token"]}).json()
    assert [row["id"] for row in third["instances"]] == list(range(1050, 1060))
    assert third["next_token"] is None
    assert len(apis.vast("GET", "/v1/instances/", params={"limit": "0"}).json()["instances"]) == 5

    wanted = {"select_filters": json.dumps({"label": {"in": ["label-1"]}}), "order_by": '[{"col":"id","dir":"desc"}]'}
    found = apis.vast("GET", "/v1/instances/", params={**wanted, "select_cols": '["label"]'}).json()
    assert found["instances_found"] == 30
    assert found["label_counts"] == {"label-1": 30}
    assert found["instances"][0] == {"id": 1059, "label": "label-1"}
    for bad, code in (
        ({"select_filters": '{"dph_total": {"gt": 1}}'}, "invalid_request"),
        ({"select_filters": "nonsense"}, "invalid_request"),
        ({"after_token": "nonsense"}, "invalid_token"),
    ):
        assert error(apis.vast("GET", "/v1/instances/", params=bad)) == (400, code)


def test_vast_states_by_time(apis: Apis) -> None:
    contract = apis.rent_vast()
    begun = apis.clock.now

    def status(seconds: float) -> str | None:
        apis.clock.now = begun + seconds
        return str(apis.vast("GET", f"/v0/instances/{contract}/").json()["instances"]["actual_status"])

    assert [status(0), status(3), status(6), status(9.9)] == ["None", "created", "loading", "loading"]
    rental = apis.cloud.world.find("vast", str(contract))
    assert rental is not None
    rental.phase = Phase.RUNNING
    row = apis.vast("GET", f"/v0/instances/{contract}/").json()["instances"]
    assert "volume_info" not in row
    assert {"start_date", "extra_env"} <= set(row)  # the published client cannot do without
    assert row["public_ipaddr"].endswith("\n")
    assert row["ports"] == {}  # no direct run type was asked for
    assert "volume_info" in apis.vast("GET", "/v1/instances/").json()["instances"][0]


def test_vast_account_keys(apis: Apis) -> None:
    assert apis.vast("GET", "/v0/ssh/").status_code == 404
    assert error(apis.vast("POST", "/v0/ssh/", {"ssh_key": "nonsense"})) == (400, "invalid_args")
    key = apis.vast("POST", "/v0/ssh/", {"ssh_key": KEY}).json()["key"]
    assert apis.vast("POST", "/v0/ssh/", {"ssh_key": KEY}).json()["key"]["id"] == key["id"]
    assert [item["public_key"] for item in apis.vast("GET", "/v0/ssh/").json()] == [KEY]
    assert apis.vast("DELETE", f"/v0/ssh/{key['id']}/").json() == {"success": True}
    assert error(apis.vast("DELETE", f"/v0/ssh/{key['id']}/")) == (400, "no_ssh_key")


# -- Vultr -------------------------------------------------------------------------------------------------------------


def test_vultr_keys_and_paths(apis: Apis) -> None:
    get = apis.client.get
    for path in ("/regions", "/plans", "/plans-metal", "/os", "/regions/ewr/availability"):
        assert get(f"/v2{path}").status_code == 200, path
    assert (get("/v2/instances").status_code, get("/v2/instances").json()["error"]) == (401, "Invalid API token.")
    assert get("/v2/regions/ewr").json() == {"error": "Not found.", "status": 404}
    assert apis.client.put("/v2/regions").status_code == 405


def test_vultr_wants_json_declared(apis: Apis) -> None:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.vultr_key}"}
    body = json.dumps({"name": "n", "ssh_key": KEY})
    assert apis.client.post("/v2/ssh-keys", content=body, headers=headers).status_code == 400
    declared = {**headers, "Content-Type": "application/json; charset=utf-8"}
    assert apis.client.post("/v2/ssh-keys", content=body, headers=declared).status_code == 201


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"plan": "vcg-nothing"}, "Invalid plan chosen."),
        ({"plan": "vbm-112c-2048gb-8-a100-gpu"}, "Invalid plan chosen."),
        ({"region": "xyz"}, "Invalid location chosen."),
        ({"region": "sjc"}, "Plan is not available in the selected region."),
        ({"os_id": 1}, "Invalid OS."),
        ({"os_id": None}, "Exactly one of os_id, image_id, app_id, snapshot_id, iso_id is required."),
        ({"image_id": "docker"}, "Exactly one of os_id, image_id, app_id, snapshot_id, iso_id is required."),
        ({"user_data": "#!/bin/sh"}, "Script must be base64 encoded"),
        ({"sshkey_id": ["none"]}, "Invalid SSH key ID."),
    ],
)
def test_vultr_refuses_bad_creates_before_renting(apis: Apis, change: dict[str, Any], text: str) -> None:
    wanted = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136, **change}
    assert apis.vultr("POST", "/instances", wanted).json() == {"error": text, "status": 400}
    assert apis.cloud.world.rentals == []


def test_vultr_pages(apis: Apis) -> None:
    seen: list[str] = []
    cursor = ""
    while True:
        page = apis.vultr("GET", "/plans", params={"per_page": 4, "cursor": cursor}).json()
        seen += [plan["id"] for plan in page["plans"]]
        assert page["meta"]["total"] == 11
        cursor = page["meta"]["links"]["next"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == 11
    assert apis.vultr("GET", "/regions", params={"per_page": 2}).json()["meta"]["total"] == 3  # page size and one more
    assert apis.vultr("GET", "/regions").json()["meta"] == {"total": 6, "links": {"next": "", "prev": ""}}
    bad = apis.vultr("GET", "/plans", params={"per_page": 501}).json()["error"]
    assert bad == "per_page must be an number between 1 and 500"
    assert apis.vultr("GET", "/plans", params={"cursor": "nonsense"}).json()["error"] == "invalid cursor"
    assert "vcg" in apis.vultr("GET", "/plans", params={"type": "gpu"}).json()["error"]


def test_vultr_catalogue_quirks(apis: Apis) -> None:
    plans = {plan["id"]: plan for plan in apis.vultr("GET", "/plans", params={"type": "vcg"}).json()["plans"]}
    assert plans["vcg-a16-2c-8g-2vram"]["gpu_count"] == "1/8"
    assert "" in plans["vcg-a16-6c-64g-16vram"]["locations"]
    metal = apis.vultr("GET", "/plans-metal").json()["plans_metal"]
    assert any(not plan["deploy_ondemand"] and plan["deploy_preemptible"] for plan in metal)
    stock = apis.vultr("GET", "/regions/sjc/availability", params={"type": "vcg"}).json()["available_plans"]
    assert stock == ["vcg-a40-4c-20g-8vram", "vcg-a100-12c-120g-80vram"]
    apis.rent_vultr(plan="vcg-a100-12c-120g-80vram", region="sjc")
    assert apis.cloud.statement()["billable"][0]["price_per_hour_usd"] == 2.522  # the region's own price


def test_vultr_instances_are_found_by_label_and_tag(apis: Apis) -> None:
    first = apis.rent_vultr(label="a-0", tags=["gpuyard", "run:a-0"])
    second = apis.rent_vultr(label="b-0")
    found = apis.vultr("GET", "/instances", params={"tag": "run:a-0"}).json()["instances"]
    assert [row["id"] for row in found] == [first]
    assert "default_password" not in found[0]
    patched = apis.vultr("PATCH", f"/instances/{second}", {"label": "c-0", "tags": ["x"]})
    assert (patched.status_code, patched.json()["instance"]["tags"]) == (202, ["x"])
    assert [row["id"] for row in apis.vultr("GET", "/instances", params={"label": "c-0"}).json()["instances"]] == [
        second
    ]


def test_a_halted_vultr_instance_bills_in_full(apis: Apis) -> None:
    instance = apis.rent_vultr()
    halted = apis.vultr("POST", f"/instances/{instance}/halt")
    assert (halted.status_code, halted.content) == (204, b"")
    apis.clock.now += 3600
    bill = apis.cloud.statement()
    assert bill["total_usd"] == pytest.approx(0.059)
    assert len(bill["billable"]) == 1
    apis.vultr("DELETE", f"/instances/{instance}")
    apis.clock.now += 3600
    assert apis.cloud.statement()["total_usd"] == pytest.approx(0.059)
    assert apis.cloud.statement()["billable"] == []


# -- both --------------------------------------------------------------------------------------------------------------


def test_the_state_file_brings_everything_back(apis: Apis) -> None:
    apis.vast("POST", "/v0/ssh/", {"ssh_key": KEY})
    apis.rent_vast(label="gpuyard/a-0/a")
    apis.rent_vultr(label="b-0")
    file = apis.cloud._file
    assert file.stat().st_mode & 0o777 == 0o600
    end = time.monotonic() + 60  # the boxes are being made meanwhile
    while World.load(file) != apis.cloud.world and time.monotonic() < end:
        pass
    assert World.load(file) == apis.cloud.world


def until(good: Callable[[], object]) -> None:
    """Wait for what happens in the sandbox's background."""
    end = time.monotonic() + 60
    while not good():
        assert time.monotonic() < end
        time.sleep(0.01)


def boot(apis: Apis) -> None:
    """Let everything that boots run."""
    apis.clock.now += apis.cloud.settings.boot_seconds
    until(lambda: all(rental.phase is not Phase.BOOTING for rental in apis.cloud.world.rentals))


@contextlib.contextmanager
def restarted(apis: Apis) -> Iterator[Apis]:
    """Yield the sandbox as its next process has it, on the same engine and with what was remembered."""
    cloud = Cloud(apis.cloud.engine, apis.cloud.settings, apis.cloud._file.parent, clock=apis.clock)
    with TestClient(build(cloud, apis.cloud._file.parent)) as client:
        yield Apis(client, cloud, apis.clock)


def test_a_box_that_ends_by_itself_is_not_running_and_a_start_starts_it(apis: Apis) -> None:
    apis.cloud.settings.boot_seconds = 0.1
    contract, instance = apis.rent_vast(label="--privileged"), apis.rent_vultr(label="-h x", hostname="box-1")
    boot(apis)
    engine = apis.cloud.engine
    assert isinstance(engine, StandInEngine)
    for name in engine.alive:
        engine.alive[name] = False

    def vast() -> dict[str, Any]:
        return dict(apis.vast("GET", f"/v0/instances/{contract}/").json()["instances"])

    def vultr() -> tuple[str, ...]:
        row = apis.vultr("GET", f"/instances/{instance}").json()["instance"]
        return tuple(row[name] for name in ("status", "power_status", "server_status"))

    until(lambda: vast()["actual_status"] == "exited")
    assert (vast()["cur_state"], vast()["intended_status"], "ports" in vast()) == ("running", "running", False)
    apis.clock.now += 2
    until(lambda: vultr() == ("active", "stopped", "ok"))
    assert len(apis.cloud.statement()["billable"]) == 3  # nobody stopped them: GPU, disk and instance cost as before
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    rows = apis.client.get("/sandbox/status", headers=headers).json()["instances"]
    assert [row["state"] for row in rows] == ["exited", "exited"]

    assert apis.vast("PUT", f"/v0/instances/{contract}/", {"state": "running"}).json()["success"]
    assert apis.vultr("POST", f"/instances/{instance}/start").status_code == 204
    boot(apis)
    assert (vast()["actual_status"], vultr()) == ("running", ("active", "running", "ok"))
    assert all(engine.alive.values())
    assert {spec.hostname for spec in engine.specs.values()} == {"privileged", "box-1"}

    # A start right after the end, before anybody has looked, starts it too.
    for name in engine.alive:
        engine.alive[name] = False
    assert apis.vast("PUT", f"/v0/instances/{contract}/", {"state": "running"}).json()["success"]
    assert apis.vultr("POST", f"/instances/{instance}/start").status_code == 204
    until(lambda: all(engine.alive.values()))


def test_a_box_that_was_half_made_when_the_server_died_is_made_whole(apis: Apis) -> None:
    engine = apis.cloud.engine
    assert isinstance(engine, StandInEngine)
    copied: list[str] = []
    object.__setattr__(engine, "copy_in", lambda container, tar: copied.append(container))
    apis.cloud._start_container = lambda rental, **_: None  # type: ignore[method-assign]
    apis.vast("POST", "/v0/ssh/", {"ssh_key": KEY})
    contract, instance = apis.rent_vast(env={"A": "b"}, onstart="true"), apis.rent_vultr()
    first, second = apis.cloud.world.rentals
    # Of the first there is a container without its files, of the second nothing.
    engine.create(ContainerSpec(name=first.container, image="x", labels={}, network="x"))
    apis.cloud.save()
    apis.cloud.settings.boot_seconds = 0.1
    with restarted(apis) as after:
        boot(after)
        assert after.vast("GET", f"/v0/instances/{contract}/").json()["instances"]["actual_status"] == "running"
        assert after.vultr("GET", f"/instances/{instance}").json()["instance"]["power_status"] == "running"
    assert sorted(copied) == sorted([first.container, second.container])
    assert engine.specs[first.container].environment["A"] == "b"


def test_a_box_that_cannot_be_made_is_failed_and_a_lost_one_too(apis: Apis) -> None:
    def broken(spec: ContainerSpec) -> None:
        raise ValueError("embedded null byte")

    engine = apis.cloud.engine
    assert isinstance(engine, StandInEngine)
    object.__setattr__(engine, "create", broken)
    failed = apis.rent_vast()
    until(lambda: apis.cloud.world.rentals[0].phase is Phase.FAILED)
    row = apis.vast("GET", f"/v0/instances/{failed}/").json()["instances"]
    assert row["actual_status"] == "created"
    assert row["status_msg"].startswith("OCI runtime create failed")
    object.__delattr__(engine, "create")

    # A box that does not start again after the sandbox's own restart does not keep the others down.
    def stuck(container: str) -> None:
        raise EngineError("podman start failed: no space left on device")

    apis.cloud.world.rentals[0].phase, apis.cloud.world.rentals[0].made = Phase.RUNNING, True
    apis.cloud.save()
    engine.create(ContainerSpec(name=apis.cloud.world.rentals[0].container, image="x", labels={}, network="x"))
    object.__setattr__(engine, "start", stuck)
    with restarted(apis) as after:
        row = after.vast("GET", f"/v0/instances/{failed}/").json()["instances"]
        assert row["status_msg"].endswith("no space left on device")
    object.__delattr__(engine, "start")

    apis.cloud.settings.boot_seconds = 0.1
    lost = apis.rent_vast(14260000)
    boot(apis)
    engine.remove(apis.cloud.world.rentals[1].container)
    apis.clock.now += 2
    until(lambda: apis.vast("GET", f"/v0/instances/{lost}/").json()["instances"]["actual_status"] == "created")
    assert {line["what"] for line in apis.cloud.statement()["billable"]} == {"disk"}


def test_a_start_after_a_bid_that_was_too_low_makes_the_box(apis: Apis) -> None:
    apis.cloud.settings.boot_seconds = 0.1
    wanted = {"image": "vastai/pytorch", "disk": 20, "price": 0.001}
    contract = apis.vast("PUT", "/v0/asks/11402000/", wanted).json()["new_contract"]
    assert apis.vast("PUT", f"/v0/instances/{contract}/", {"state": "running"}).json()["success"]
    boot(apis)
    assert apis.vast("GET", f"/v0/instances/{contract}/").json()["instances"]["actual_status"] == "running"


def test_rate_limits_only_when_asked(apis: Apis) -> None:
    assert [apis.vast("GET", "/v1/instances/").status_code for _ in range(3)] == [200] * 3
    apis.cloud.settings.rate_limits = True
    answers = [apis.vast("GET", "/v1/instances/") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].text == "API requests too frequent: endpoint threshold=1.0"
    searches = [apis.vast("POST", "/v0/bundles/", {}).status_code for _ in range(12)]
    assert searches == [200] * 10 + [429] * 2
    statuses = [apis.vultr("GET", "/account").status_code for _ in range(40)]
    assert statuses == [200] * 30 + [429] * 10
    apis.clock.now += 1
    assert apis.vultr("GET", "/account").status_code == apis.vast("GET", "/v1/instances/").status_code == 200


def test_spacing_and_rates_let_calls_through_again() -> None:
    now = [0.0]
    spacing, rate = Spacing(lambda: now[0]), Rate(2, 1.0, lambda: now[0])
    assert [spacing.allows("create", 4.5), spacing.allows("create", 4.5), spacing.allows("list", 1)] == [
        True,
        False,
        True,
    ]
    assert [rate.allows() for _ in range(3)] == [True, True, False]
    now[0] = 4.5
    assert spacing.allows("create", 4.5)
    assert rate.allows()


def test_the_control_api_wants_its_key(apis: Apis) -> None:
    assert apis.client.get("/sandbox/status").status_code == 401
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    assert apis.client.get("/sandbox/status", headers=headers).json()["instances"] == []
    missing = apis.client.post("/sandbox/preempt", json={"run": "none-0"}, headers=headers)
    assert (missing.status_code, missing.json()["detail"]) == (
        404,
        "The sandbox has no run none-0 that could be preempted.",
    )


def test_a_vultr_box_has_an_address_of_its_own_where_port_22_is_taken_on_every_loopback_address(
    apis: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuyard.sandbox.boxes.port_is_free", lambda *_, **__: False)
    instance = apis.rent_vultr()
    rental = apis.cloud.world.living("vultr")[0]
    end = time.monotonic() + 120
    while not rental.bridged and time.monotonic() < end:
        apis.vultr("GET", f"/instances/{instance}")
    apis.clock.now += 9.0
    assert apis.vultr("GET", f"/instances/{instance}").json()["instance"]["main_ip"] == "10.9.8.7"
    (spec,) = apis.cloud.engine.specs.values()  # type: ignore[attr-defined]
    assert spec.ports == []
