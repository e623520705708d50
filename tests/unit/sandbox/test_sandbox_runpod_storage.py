"""The emulated RunPod's network volumes and SSH keys (docs/reference/runpod.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Apis
from test_sandbox_runpod import PUBLIC, call, rent

from gpuyard.sandbox.model import Fault, World

VOLUME = {"name": "data", "size": 100, "dataCenter": "EU-RO-1"}


def make(apis: Apis, **changes: Any) -> str:
    answer = call(apis, "POST", "/network-volumes", {**VOLUME, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def billed(apis: Apis) -> list[float]:
    return [line["price_per_hour_usd"] for line in apis.cloud.statement()["billable"]]


def test_a_volume_bills_until_it_is_deleted(apis: Apis) -> None:
    volume = make(apis)
    assert billed(apis) == [pytest.approx(7 / 720)]
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    [shown] = apis.client.get("/sandbox/status", headers=headers).json()["holdings"]
    assert (shown["id"], shown["kind"], shown["label"], shown["size_gb"]) == (volume, "filesystem", "data", 100)
    assert World.load(apis.cloud._file).holdings == apis.cloud.world.holdings
    assert call(apis, "PATCH", f"/network-volumes/{volume}", {"size": 2000}).json()["size"] == 2000
    assert billed(apis) == [pytest.approx(120 / 720)]
    apis.clock.now += 720 * 3600
    assert call(apis, "DELETE", f"/network-volumes/{volume}").status_code == 204
    assert call(apis, "GET", f"/network-volumes/{volume}").status_code == 404
    bill = apis.cloud.statement()
    assert (bill["billable"], bill["total_usd"]) == ([], pytest.approx(120))
    assert call(apis, "GET", "/network-volumes").json()["networkVolumes"] == []


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"name": ""}, 422),
        ({"size": None}, 422),
        ({"size": 9}, 422),
        ({"size": 5000}, 422),
        ({"size": 10.5}, 422),
        ({"type": "FAST"}, 422),
        ({"dataCenter": ""}, 422),
        ({"dataCenter": "MOON-1"}, 400),
        ({"unknown": 1}, 422),
    ],
)
def test_a_bad_order_makes_nothing(apis: Apis, changes: dict[str, Any], status: int) -> None:
    assert call(apis, "POST", "/network-volumes", {**VOLUME, **changes}).status_code == status
    assert apis.cloud.world.holdings == []


def test_it_never_shrinks_and_may_be_renamed(apis: Apis) -> None:
    volume = make(apis)
    assert call(apis, "PATCH", f"/network-volumes/{volume}", {"size": 50}).status_code == 400
    assert call(apis, "PATCH", f"/network-volumes/{volume}", {"name": "models"}).json()["name"] == "models"
    assert call(apis, "PATCH", "/network-volumes/none", {"size": 50}).status_code == 404


def test_a_pod_gets_a_volume_of_its_data_centre_when_it_is_created(apis: Apis) -> None:
    volume, elsewhere = make(apis), make(apis, dataCenter="US-IL-1")
    pod = rent(apis, mounts={"network": [{"volumeId": volume, "path": "/data"}]})
    mounted = call(apis, "GET", f"/pods/{pod}").json()["mounts"]
    assert mounted == {"network": [{"volumeId": volume, "path": "/data"}]}
    for mounts, status in (
        ({"network": [{"volumeId": elsewhere, "path": "/data"}]}, 400),
        ({"network": [{"volumeId": "none", "path": "/data"}]}, 400),
        ({"network": [{"volumeId": volume, "path": "data"}]}, 422),
        ({"network": [{"volumeId": volume, "path": "/a"}] * 2}, 422),
        ({"network": ["x"]}, 422),
        ({"persistent": {"size": 10, "path": "/x"}}, 422),
        ([1], 422),
    ):
        body = {"name": "x", "image": "x", "gpu": {"id": "NVIDIA RTX A4000"}, "disk": 20, "ports": ["22/tcp"]}
        answer = call(apis, "POST", "/pods", {**body, "mounts": mounts})
        assert answer.status_code == status, (mounts, answer.text)
        assert call(apis, "POST", "/pods", {**body, "cloud": "COMMUNITY", "mounts": mounts}).status_code in (400, 422)
    assert call(apis, "DELETE", f"/network-volumes/{volume}").status_code == 409
    assert call(apis, "DELETE", f"/pods/{pod}").status_code == 204
    assert call(apis, "DELETE", f"/network-volumes/{volume}").status_code == 204


def test_the_list_has_pages(apis: Apis) -> None:
    made = [make(apis) for _ in range(3)]
    first = call(apis, "GET", "/network-volumes?limit=2").json()
    rest = call(apis, "GET", f"/network-volumes?limit=2&cursor={first['pagination']['nextCursor']}").json()
    assert [one["id"] for page in (first, rest) for one in page["networkVolumes"]] == made


def test_a_lost_answer_has_made_it(apis: Apis) -> None:
    apis.cloud.add_fault(Fault("lost-answer", "runpod", 1))
    with pytest.raises(Exception):  # noqa: B017 (the test client's own word for a broken answer)
        call(apis, "POST", "/network-volumes", VOLUME).json()
    assert len(call(apis, "GET", "/network-volumes").json()["networkVolumes"]) == 1


def test_keys_are_kept_over_a_restart(apis: Apis, tmp_path: Path) -> None:
    call(apis, "PUT", "/account/ssh-keys", {"keys": [PUBLIC]})
    assert [key.public for key in World.load(tmp_path / "state.json").keys["runpod"]] == [PUBLIC]
