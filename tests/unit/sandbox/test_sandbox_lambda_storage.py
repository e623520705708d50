"""The emulated Lambda's file systems and SSH keys (docs/reference/lambda.md)."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Apis

from gpuyard.sandbox.model import Fault, World

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExa test"


def call(apis: Apis, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.lambda_key}"}
    return apis.client.request(method, f"/lambda/api/v1{path}", json=body, headers=headers)


def make(apis: Apis, name: str = "data", region: str = "us-east-1") -> str:
    answer = call(apis, "POST", "/filesystems", {"name": name, "region": region})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["id"])


def launch(apis: Apis, **more: Any) -> Any:
    if not call(apis, "GET", "/ssh-keys").json()["data"]:
        call(apis, "POST", "/ssh-keys", {"name": "k", "public_key": PUBLIC})
    kind = "gpu_1x_a10"
    body = {"region_name": "us-east-1", "instance_type_name": kind, "ssh_key_names": ["k"], **more}
    return call(apis, "POST", "/instance-operations/launch", body)


def test_it_is_listed_at_both_paths_and_bills_until_it_is_deleted(apis: Apis) -> None:
    one = make(apis)
    for path in ("/file-systems", "/filesystems"):
        [row] = call(apis, "GET", path).json()["data"]
        assert (row["id"], row["name"], row["mount_point"], row["is_in_use"]) == (
            one,
            "data",
            "/lambda/nfs/data",
            False,
        )
        assert (row["region"]["name"], row["bytes_used"]) == ("us-east-1", 4096)
    assert [line["what"] for line in apis.cloud.statement()["billable"]] == ["filesystem"]
    assert World.load(apis.cloud._file).holdings == apis.cloud.world.holdings
    assert call(apis, "DELETE", f"/filesystems/{one}").json() == {"data": {"deleted_ids": [one]}}
    assert apis.cloud.statement()["billable"] == []
    assert call(apis, "DELETE", f"/filesystems/{one}").json()["error"]["code"] == "global/object-does-not-exist"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "my_data", "region": "us-east-1"},
        {"name": "1data", "region": "us-east-1"},
        {"name": "d" * 61, "region": "us-east-1"},
        {"name": "data", "region": "moon"},
        {"name": "data"},
        {"name": "data", "region": "us-east-1", "size": 1},
    ],
)
def test_a_bad_order_makes_nothing(apis: Apis, body: dict[str, Any]) -> None:
    answer = call(apis, "POST", "/filesystems", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "global/invalid-parameters")
    assert apis.cloud.world.holdings == []


def test_a_name_is_there_once(apis: Apis) -> None:
    make(apis)
    answer = call(apis, "POST", "/filesystems", {"name": "data", "region": "us-west-1"})
    assert answer.json()["error"]["code"] == "global/duplicate"


def test_an_instance_gets_it_at_its_launch_and_holds_it_for_a_while_after_its_end(apis: Apis) -> None:
    one, two = make(apis), make(apis, "models")
    mounts = [{"file_system_id": two, "mount_point": "/data/models"}]
    instance = launch(apis, file_system_names=["data"], file_system_mounts=mounts).json()["data"]["instance_ids"][0]
    row = call(apis, "GET", f"/instances/{instance}").json()["data"]
    assert row["file_system_names"] == ["data", "models"]
    assert row["file_system_mounts"][1] == {"file_system_id": two, "mount_point": "/data/models"}
    assert call(apis, "GET", "/filesystems").json()["data"][0]["is_in_use"]
    refused = call(apis, "DELETE", f"/filesystems/{one}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "filesystems/filesystem-in-use")
    call(apis, "POST", "/instance-operations/terminate", {"instance_ids": [instance]})
    assert call(apis, "DELETE", f"/filesystems/{one}").status_code == 400  # released late
    apis.clock.now += 20
    assert call(apis, "DELETE", f"/filesystems/{one}").status_code == 200
    assert "file_system_mounts" not in call(apis, "GET", f"/instances/{launch_plain(apis)}").json()["data"]


def launch_plain(apis: Apis) -> str:
    return str(launch(apis).json()["data"]["instance_ids"][0])


def test_a_launch_that_cannot_have_it_rents_nothing(apis: Apis) -> None:
    west, here = make(apis, "west", "us-west-1"), make(apis)
    for more, code in (
        ({"file_system_names": ["west"]}, "instance-operations/launch/file-system-in-wrong-region"),
        ({"file_system_names": ["none"]}, "global/object-does-not-exist"),
        ({"file_system_mounts": [{"file_system_id": west, "mount_point": "/data/x"}]}, "instance-operations/launch/f"),
        ({"file_system_mounts": [{"file_system_id": here, "mount_point": "/mnt/x"}]}, "global/invalid-parameters"),
        ({"file_system_mounts": [{"file_system_id": here, "mount_point": "/data/../x"}]}, "global/invalid-parameters"),
        ({"file_system_mounts": [{"file_system_id": "x", "mount_point": "/data/x"}]}, "global/object-does-not-exist"),
        ({"file_system_mounts": ["x"]}, "global/invalid-parameters"),
    ):
        answer = launch(apis, **more)
        assert answer.json()["error"]["code"].startswith(code), (more, answer.text)
    assert apis.cloud.world.rentals == []


def test_without_a_public_key_a_pair_is_made_and_its_private_half_shown_once(apis: Apis) -> None:
    made = call(apis, "POST", "/ssh-keys", {"name": "mine"}).json()["data"]
    assert made["private_key"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    [listed] = call(apis, "GET", "/ssh-keys").json()["data"]
    assert listed == {"id": made["id"], "name": "mine", "public_key": made["public_key"]}
    assert "PRIVATE" not in apis.cloud._file.read_text()


def test_a_lost_answer_has_made_it(apis: Apis) -> None:
    apis.cloud.add_fault(Fault("lost-answer", "lambda", 1))
    with pytest.raises(Exception):  # noqa: B017 (the test client's own word for a broken answer)
        call(apis, "POST", "/filesystems", {"name": "data", "region": "us-east-1"}).json()
    assert len(call(apis, "GET", "/filesystems").json()["data"]) == 1


def test_an_answer_about_a_key_is_not_lost_since_a_launch_adds_one_first(apis: Apis) -> None:
    apis.cloud.add_fault(Fault("lost-answer", "lambda", 1))
    assert call(apis, "POST", "/ssh-keys", {"name": "k"}).status_code == 200
    assert len(apis.cloud.world.faults) == 1
