"""What the emulated RunPod answers: keys, errors, states, quirks (docs/reference/runpod.md)."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Apis

from gpuyard.sandbox.model import Fault

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExa test"
POD = {
    "name": "gpuyard/run-0/work",
    "image": "runpod/pytorch:2.4.0",
    "gpu": {"id": "NVIDIA RTX A4000", "count": 1},
    "disk": 20,
    "ports": ["22/tcp", "8888/http"],
    "env": {"PUBLIC_KEY": PUBLIC},
}


def call(apis: Apis, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.runpod_key}"}
    return apis.client.request(method, f"/runpod/v2{path}", json=body, headers=headers)


def rent(apis: Apis, **changes: Any) -> str:
    answer = call(apis, "POST", "/pods", {**POD, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_errors_are_problems(apis: Apis) -> None:
    answer = apis.client.get("/runpod/v2/pods")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert call(apis, "GET", "/pods/none").json() == {
        "title": "Not Found",
        "status": 404,
        "detail": "resource not found",
    }
    assert call(apis, "GET", "/billing").status_code == 501


def test_the_catalogue_says_where_so_many_are(apis: Apis) -> None:
    def places(query: str) -> dict[str, list[str]]:
        rows = call(apis, "GET", f"/catalog/gpus?include=AVAILABILITY&product=POD&{query}").json()["gpus"]
        return {row["id"]: [centre["id"] for centre in row["dataCenters"]] for row in rows}

    assert places("cloud=COMMUNITY&count=1")["NVIDIA GeForce RTX 3090"] == ["US-TX-1", "CA-MTL-1"]
    assert places("cloud=SECURE&count=1")["NVIDIA B200"] == []
    assert places("cloud=SECURE&count=9")["NVIDIA GeForce RTX 3090"] == []
    plain = call(apis, "GET", "/catalog/gpus").json()["gpus"][0]
    assert "dataCenters" not in plain and "where" not in plain
    assert call(apis, "GET", "/catalog/gpus?include=AVAILABILITY").status_code == 422


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"name": ""}, 422),
        ({"image": None}, 422),
        ({"gpu": None}, 422),
        ({"gpu": {"id": "GPU"}}, 422),
        ({"gpu": {"id": "NVIDIA RTX A4000", "count": 99}}, 422),
        ({"ports": ["8888/http"]}, 422),
        ({"ports": ["22/udp"]}, 422),
        ({"unknown": 1}, 422),
        ({"cloud": "MINE"}, 400),
        ({"disk": None}, 400),
        ({"gpu": {"id": "NVIDIA RTX A4000", "minRamPerGpu": 500}}, 400),
        ({"gpu": {"id": "NVIDIA B200"}}, 400),
        ({"dataCenterIds": ["US-CA-2"]}, 400),
    ],
)
def test_a_bad_create_rents_nothing(apis: Apis, changes: dict[str, Any], status: int) -> None:
    answer = call(apis, "POST", "/pods", {**POD, **changes})
    assert answer.status_code == status, answer.text
    assert apis.cloud.world.rentals == []


def test_a_pod_runs_with_a_direct_address_and_is_deleted(apis: Apis) -> None:
    pod = rent(apis)
    row = call(apis, "GET", f"/pods/{pod}").json()
    assert (row["status"], row["ssh"]["direct"], row["runtime"], row["cost"]) == ("PROVISIONING", None, None, 0)
    assert apis.cloud.world.rentals[0].public_keys == [PUBLIC]
    assert call(apis, "POST", f"/pods/{pod}/action", {"action": "stop"}).status_code == 409
    assert call(apis, "DELETE", f"/pods/{pod}").status_code == 204
    assert call(apis, "GET", f"/pods/{pod}").status_code == 404
    assert apis.cloud.statement()["billable"] == []


def test_only_with_start_ssh_all_keys_of_the_account_come_in(apis: Apis) -> None:
    assert call(apis, "PUT", "/account/ssh-keys", {"keys": [PUBLIC]}).json() == {"keys": [PUBLIC]}
    rent(apis, env={})
    rent(apis, env={}, startSsh=True)
    assert [rental.public_keys for rental in apis.cloud.world.rentals] == [[], [PUBLIC]]
    assert call(apis, "PUT", "/account/ssh-keys", {"keys": "x"}).status_code == 422


def test_the_list_has_pages_where_they_are_asked_for(apis: Apis) -> None:
    ids = [rent(apis) for _ in range(3)]
    first = call(apis, "GET", "/pods?limit=2").json()
    assert [pod["id"] for pod in first["pods"]] == ids[:2] and first["pagination"]["hasNextPage"]
    rest = call(apis, "GET", f"/pods?limit=2&cursor={first['pagination']['nextCursor']}").json()
    assert [pod["id"] for pod in rest["pods"]] == ids[2:] and not rest["pagination"]["hasNextPage"]
    assert len(call(apis, "GET", "/pods").json()["pods"]) == 3


def test_what_goes_wrong_on_command(apis: Apis) -> None:
    for kind, status in (("throttle", 429), ("server-error", 500), ("no-capacity", 400)):
        apis.cloud.add_fault(Fault(kind, "runpod", 1))
        answer = call(apis, "POST", "/pods", POD)
        assert answer.status_code == status and ("retry-after" in answer.headers) == (status == 429)
    assert apis.cloud.world.rentals == []
