"""The emulated Vast.ai's stored variables and local volumes (docs/reference/vast.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Apis, serve

from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.model import Fault, World
from gpuyard.sandbox.server import build

ASK = 11402000
MACHINE = 11402
OFFER = 11402900
SECRET = "canary-value.1_2-3"


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error", "")


# -- stored variables --------------------------------------------------------------------------------------------------


def test_a_variable_is_never_shown_and_reaches_new_instances(apis: Apis) -> None:
    assert apis.vast("POST", "/v0/secrets/", {"key": "token", "value": SECRET}).json()["success"]
    before = apis.rent_vast()
    assert apis.vast("PUT", "/v0/secrets/", {"key": "TOKEN", "value": "new"}).json()["success"]
    assert apis.vast("GET", "/v0/secrets/").json()["secrets"] == {"TOKEN": "*****"}
    after = apis.rent_vast(12033000, env={"TOKEN": "of-the-call"})
    given = {rental.id: EMULATED["vast"].boot(rental).environment["TOKEN"] for rental in apis.cloud.world.rentals}
    assert given == {str(before): SECRET, str(after): "of-the-call"}
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    shown = apis.client.get("/sandbox/status", headers=headers).text + apis.vast("GET", "/v1/instances/").text
    assert SECRET not in shown and '"kind":"variable"' in shown
    assert apis.vast("DELETE", "/v0/secrets/", {"key": "TOKEN"}).json()["success"]
    assert apis.vast("GET", "/v0/secrets/").json()["secrets"] == {}
    assert "new" not in str(World.load(apis.cloud._file).holdings)


def test_what_is_wrong_with_a_variable_is_said_by_its_code(apis: Apis) -> None:
    assert apis.vast("POST", "/v0/secrets/", {"key": "A", "value": "x"}).status_code == 200
    for method, body, said in (
        ("POST", {"key": "a", "value": "x"}, "existing_key"),
        ("PUT", {"key": "B", "value": "x"}, "nonexistent_key"),
        ("DELETE", {"key": "B"}, "nonexistent_key"),
        ("POST", {"key": "B"}, "missing_input"),
        ("POST", {"value": "x"}, "missing_input"),
        ("POST", {"key": "B", "value": "a b"}, "invalid_args"),
        ("POST", {"key": "1B", "value": "a"}, "invalid_args"),
        ("POST", {"key": "B", "value": "a", "x": 1}, "invalid_args"),
    ):
        assert code(apis.vast(method, "/v0/secrets/", body)) == (400, said), body
    [one] = apis.cloud.world.holdings
    apis.cloud.world.holdings += [replace(one, id=f"N{number}", label=f"N{number}") for number in range(199)]
    assert code(apis.vast("POST", "/v0/secrets/", {"key": "MORE", "value": "x"})) == (400, "max_secrets")


# -- local volumes -----------------------------------------------------------------------------------------------------


def make(apis: Apis, **changes: Any) -> int:
    answer = apis.vast("PUT", "/v0/volumes/", {"id": OFFER, "size": 20, "name": "data", **changes})
    assert answer.status_code == 200, answer.text
    assert answer.json()["volume_name"] == f"V.{answer.json()['volume_id']}"
    return int(answer.json()["volume_id"])


def volumes(apis: Apis, kind: str = "local_volume") -> list[dict[str, Any]]:
    return list(apis.vast("GET", f"/v0/volumes?owner=me&type={kind}").json()["volumes"])


def test_offers_are_searched_with_the_filters_of_machines(apis: Apis) -> None:
    query = {"machine_id": {"eq": str(MACHINE)}, "disk_space": {"gte": "50"}, "allocated_storage": 20}
    [offer] = apis.vast("POST", "/v0/volumes/search/", query).json()["offers"]
    assert (offer["id"], offer["disk_space"], offer["storage_cost"]) == (OFFER, 90, 0.12)
    assert code(apis.vast("POST", "/v0/volumes/search/", {"nonsense": {"eq": 1}})) == (400, "invalid_args")
    found = apis.vast("POST", "/v0/bundles/", {"ask_contract_id": {"eq": ASK}}).json()["offers"][0]
    assert (found["avail_vol_ask_id"], found["avail_vol_size"]) == (OFFER, 90)


def test_a_volume_bills_until_it_is_deleted(apis: Apis) -> None:
    volume = make(apis)
    assert [(line["what"], line["price_per_hour_usd"]) for line in apis.cloud.statement()["billable"]] == [
        ("volume", pytest.approx(20 * 0.12 / 720))
    ]
    [row] = volumes(apis, "all_volume")
    assert (row["id"], row["label"], row["status"], row["type"]) == (volume, "data", "created", "machine")
    assert (row["machine_id"], row["disk_space"], row["instances"]) == (MACHINE, 20, [])
    assert volumes(apis, "network_volume") == []
    assert World.load(apis.cloud._file).holdings == apis.cloud.world.holdings
    assert apis.vast("DELETE", f"/v0/volumes/?id={volume}").status_code == 200
    assert volumes(apis) == apis.cloud.statement()["billable"] == []
    assert code(apis.vast("DELETE", f"/v0/volumes/?id={volume}")) == (404, "no_such_volume")


def test_several_share_an_offer_until_it_is_used_up(apis: Apis) -> None:
    make(apis, size=60)
    second = make(apis, size=30, name="")
    assert code(apis.vast("PUT", "/v0/volumes/", {"id": OFFER, "size": 1})) == (400, "invalid_args")
    assert apis.vast("POST", "/v0/volumes/search/", {"machine_id": {"eq": MACHINE}}).json()["offers"] == []
    assert apis.vast("DELETE", "/v0/volumes/", {"id": second}).status_code == 200  # as the documentation has it


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"id": OFFER, "name": "my-data"}, (422, "invalid_args")),
        ({"id": OFFER, "name": "d" * 65}, (422, "invalid_args")),
        ({"id": OFFER, "size": 0}, (400, "invalid_args")),
        ({"id": 1}, (404, "no_such_ask")),
        ({"id": str(OFFER)}, (400, "invalid_args")),
        ({}, (400, "invalid_args")),
    ],
)
def test_a_bad_order_makes_nothing(apis: Apis, body: dict[str, Any], said: tuple[int, str]) -> None:
    assert code(apis.vast("PUT", "/v0/volumes/", body)) == said
    assert apis.cloud.world.holdings == []


def test_one_instance_of_its_machine_has_it_and_holds_it_for_a_while(apis: Apis) -> None:
    volume = make(apis)
    linked = {"create_new": False, "volume_id": volume, "mount_path": "/data"}
    instance = apis.rent_vast(volume_info=linked)
    [listed] = apis.vast("GET", "/v1/instances/").json()["instances"]
    assert [one["id"] for one in listed["volume_info"]] == [volume]
    assert "volume_info" not in apis.vast("GET", f"/v0/instances/{instance}/").json()["instances"]
    [row] = volumes(apis)
    assert (row["status"], row["instances"]) == ("in-use", [instance])
    assert code(apis.vast("DELETE", f"/v0/volumes/?id={volume}")) == (400, "volume_in_use")
    assert apis.vast("DELETE", f"/v0/instances/{instance}/").status_code == 200
    assert code(apis.vast("DELETE", f"/v0/volumes/?id={volume}")) == (400, "volume_in_use")
    apis.clock.now += 20
    assert apis.vast("DELETE", f"/v0/volumes/?id={volume}").status_code == 200


def test_a_volume_can_be_made_with_its_instance(apis: Apis) -> None:
    new = {"create_new": True, "volume_id": OFFER, "mount_path": "/data", "size": 20, "name": "data"}
    apis.rent_vast(volume_info=new)
    assert [(row["label"], row["status"]) for row in volumes(apis)] == [("data", "in-use")]


def test_an_instance_that_cannot_have_it_is_not_rented(apis: Apis) -> None:
    volume = make(apis)
    linked = {"volume_id": volume, "mount_path": "/data"}
    for ask, info, status in (
        (12033000, linked, 400),  # another machine
        (12033000, {**linked, "create_new": True, "volume_id": OFFER}, 400),
        (ASK, {**linked, "volume_id": 7}, 404),
        (ASK, {**linked, "mount_path": "data"}, 400),
        (ASK, {**linked, "mount_path": "/../data"}, 400),
        (ASK, {**linked, "create_new": True, "volume_id": OFFER, "size": 1000}, 400),
        (ASK, "V.1", 400),
    ):
        answer = apis.vast("PUT", f"/v0/asks/{ask}/", {"image": "x/y", "disk": 20, "volume_info": info})
        assert answer.status_code == status, (info, answer.text)
    bulk = {"ids": [ASK, 12033000], "image": "x/y", "disk": 20, "volume_info": linked}
    assert code(apis.vast("POST", "/v0/asks/bulk/", bulk)) == (400, "invalid_args")
    assert apis.cloud.world.rentals == []


def test_a_lost_answer_has_made_it(apis: Apis, tmp_path: Path) -> None:
    apis.cloud.add_fault(Fault("lost-answer", "vast", 1))
    key = {"Authorization": f"Bearer {apis.cloud.settings.vast_key}"}
    with serve(build(apis.cloud, tmp_path)) as root, pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.put(f"{root}/api/v0/volumes/", json={"id": OFFER, "size": 20}, headers=key, timeout=60)
    assert [one.kind for one in apis.cloud.world.holdings] == ["volume"]
