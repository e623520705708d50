"""What the emulated Lambda answers: keys, errors, states, quirks (docs/reference/lambda.md)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from conftest import Apis

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExa test"
LAUNCH = {"region_name": "us-east-1", "instance_type_name": "gpu_1x_a10", "ssh_key_names": ["mine"]}


def call(apis: Apis, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.lambda_key}"}
    return apis.client.request(method, f"/lambda/api/v1{path}", json=body, headers=headers)


def error(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def key(apis: Apis) -> str:
    answer = call(apis, "POST", "/ssh-keys", {"name": "mine", "public_key": PUBLIC})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["id"])


def launch(apis: Apis, **changes: Any) -> str:
    answer = call(apis, "POST", "/instance-operations/launch", {**LAUNCH, **changes})
    assert answer.status_code == 200, answer.text
    [instance_id] = answer.json()["data"]["instance_ids"]
    return str(instance_id)


def test_one_code_for_no_key_and_a_wrong_one(apis: Apis) -> None:
    get = apis.client.get
    none = get("/lambda/api/v1/instances")
    wrong = get("/lambda/api/v1/instances", headers={"Authorization": "Bearer wrong"})
    assert error(none) == error(wrong) == (401, "global/invalid-api-key")
    assert none.json()["error"]["message"] != wrong.json()["error"]["message"]
    basic = base64.b64encode(f"{apis.cloud.settings.lambda_key}:".encode()).decode()
    assert get("/lambda/api/v1/instances", headers={"Authorization": f"Basic {basic}"}).json() == {"data": []}
    assert get("/lambda/api/v1/instances", headers={"Authorization": "Basic !"}).status_code == 401


def test_types_are_an_object_and_the_sold_out_stay_in_it(apis: Apis) -> None:
    data = call(apis, "GET", "/instance-types").json()["data"]
    assert data["gpu_1x_a100"]["regions_with_capacity_available"] == []
    a10 = data["gpu_1x_a10"]
    assert a10["instance_type"]["price_cents_per_hour"] == 75 and "regions" not in a10["instance_type"]
    assert a10["regions_with_capacity_available"][0] == {"name": "us-east-1", "description": "Virginia, USA"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"region_name": "mars"}, (400, "global/invalid-parameters")),
        ({"instance_type_name": "gpu_9x"}, (404, "global/object-does-not-exist")),
        ({"ssh_key_names": []}, (400, "global/invalid-parameters")),
        ({"ssh_key_names": ["mine", "mine"]}, (400, "global/invalid-parameters")),
        ({"ssh_key_names": ["nobody's"]}, (404, "global/object-does-not-exist")),
        ({"quantity": 2}, (400, "global/invalid-parameters")),
        ({"name": "x" * 65}, (400, "global/invalid-parameters")),
        ({"tags": [{"key": "Run", "value": "x"}]}, (400, "global/invalid-parameters")),
        ({"tags": [{"key": "run"}]}, (400, "global/invalid-parameters")),
        ({"tags": "run"}, (400, "global/invalid-parameters")),
        ({"user_data": "#cloud-config\n"}, (400, "global/invalid-parameters")),
        ({"file_system_names": ["data"]}, (404, "global/object-does-not-exist")),
        ({"instance_type_name": "gpu_1x_a100"}, (400, "instance-operations/launch/insufficient-capacity")),
    ],
)
def test_a_bad_launch_rents_nothing(apis: Apis, key: str, changes: dict[str, Any], code: tuple[int, str]) -> None:
    assert error(call(apis, "POST", "/instance-operations/launch", {**LAUNCH, **changes})) == code
    assert apis.cloud.world.rentals == []


def test_an_instance_boots_gets_its_address_late_and_leaves_the_list_at_its_end(apis: Apis, key: str) -> None:
    tags = [{"key": "run", "value": "a:b"}]
    instance = launch(apis, tags=tags, name="n", quantity=1)
    row = call(apis, "GET", f"/instances/{instance}").json()["data"]
    assert (row["status"], row["name"], row["tags"]) == ("booting", "n", tags) and "ip" not in row
    assert not row["actions"]["terminate"]["available"]
    apis.clock.now += 5
    assert call(apis, "GET", f"/instances/{instance}").json()["data"]["ip"].startswith("127.77.")
    renamed = call(apis, "POST", f"/instances/{instance}", {"name": "m"}).json()["data"]
    assert renamed["name"] == "m"
    ended = call(apis, "POST", "/instance-operations/terminate", {"instance_ids": [instance]}).json()["data"]
    assert [one["status"] for one in ended["terminated_instances"]] == ["terminated"]
    assert call(apis, "GET", "/instances").json() == {"data": []}
    assert call(apis, "GET", f"/instances/{instance}").json()["data"]["status"] == "terminated"
    apis.clock.now += 6
    assert error(call(apis, "GET", f"/instances/{instance}")) == (404, "global/object-does-not-exist")
    again = call(apis, "POST", "/instance-operations/terminate", {"instance_ids": [instance]})
    assert error(again) == (404, "global/object-does-not-exist")


def test_it_bills_from_the_launch_to_the_end(apis: Apis, key: str) -> None:
    instance = launch(apis)
    apis.clock.now += 1800
    call(apis, "POST", "/instance-operations/terminate", {"instance_ids": [instance]})
    apis.clock.now += 1800
    [line] = [line for line in apis.cloud.statement()["lines"] if line["provider"] == "lambda"]
    assert (line["seconds"], line["amount_usd"]) == (1800, 0.375)
    assert apis.cloud.statement()["billable"] == []


def test_what_goes_wrong_on_command(apis: Apis, key: str) -> None:
    from gpuyard.sandbox.model import Fault

    for kind, code in (
        ("throttle", (429, "global/too-many-requests")),
        ("server-error", (500, "global/internal-error")),
        ("no-capacity", (400, "instance-operations/launch/insufficient-capacity")),
    ):
        apis.cloud.add_fault(Fault(kind, "lambda", 1))
        assert error(call(apis, "POST", "/instance-operations/launch", LAUNCH)) == code
    assert apis.cloud.world.rentals == []
    launch(apis)
    assert len(apis.cloud.world.rentals) == 1


def test_launches_are_twelve_seconds_apart_where_limits_are_kept(apis: Apis, key: str) -> None:
    apis.cloud.settings.rate_limits = True
    apis.clock.now += 1
    launch(apis)
    apis.clock.now += 2
    assert error(call(apis, "POST", "/instance-operations/launch", LAUNCH)) == (429, "global/too-many-requests")
    apis.clock.now += 12
    launch(apis)
    assert error(call(apis, "GET", "/instances")) == (429, "global/too-many-requests"), "one request a second"


def test_keys_are_named_and_a_name_is_used_once(apis: Apis, key: str) -> None:
    assert error(call(apis, "POST", "/ssh-keys", {"name": "mine", "public_key": PUBLIC})) == (409, "global/duplicate")
    assert error(call(apis, "POST", "/ssh-keys", {"name": ""})) == (400, "global/invalid-parameters")
    assert call(apis, "GET", "/ssh-keys").json()["data"] == [{"id": key, "name": "mine", "public_key": PUBLIC}]
    assert call(apis, "DELETE", f"/ssh-keys/{key}").status_code == 200
    assert error(call(apis, "DELETE", f"/ssh-keys/{key}")) == (404, "global/object-does-not-exist")


def test_what_is_not_emulated_is_said(apis: Apis) -> None:
    assert error(call(apis, "GET", "/audit-events")) == (501, "sandbox/not-emulated")
    assert call(apis, "GET", "/file-systems").json() == call(apis, "GET", "/filesystems").json() == {"data": []}
    assert {region["name"] for region in call(apis, "GET", "/regions").json()["data"]} >= {"us-east-1"}
    assert call(apis, "GET", "/images").json()["data"][0]["family"] == "lambda-stack-22-04"
