"""What the emulated Vultr answers about block storage, snapshots and firewall groups (docs/reference/vultr.md)."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import Apis

from gpuyard.cli import main
from gpuyard.sandbox import cli, info
from gpuyard.sandbox.model import Fault, Phase, World

BLOCK = {"region": "ewr", "size_gb": 40, "label": "data", "block_type": "storage_opt"}
RULE = {"ip_type": "v4", "protocol": "tcp", "subnet": "0.0.0.0", "subnet_size": 0, "port": "22"}


def block(apis: Apis, **changes: Any) -> str:
    answer = apis.vultr("POST", "/blocks", {**BLOCK, **changes})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["block"]["id"])


def active_block(apis: Apis, **changes: Any) -> str:
    made = block(apis, **changes)
    apis.clock.now += 10
    return made


def group(apis: Apis) -> str:
    answer = apis.vultr("POST", "/firewalls", {"description": "ours"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["firewall_group"]["id"])


def refusal(answer: Any) -> tuple[int, str]:
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["error"]


def test_a_volume_is_pending_then_active(apis: Apis) -> None:
    answer = apis.vultr("POST", "/blocks", BLOCK)
    made = answer.json()["block"]
    assert (answer.status_code, made["status"], made["cost"], made["size_gb"]) == (202, "pending", 1.0, 40)
    assert (made["attached_to_instance"], made["attached_to_instance_ip"], made["label"]) == ("", "", "data")
    assert made["mount_id"].startswith("ewr-")
    apis.clock.now += 10
    row = apis.vultr("GET", f"/blocks/{made['id']}").json()["block"]
    assert row == {**made, "status": "active"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region": "mars"}, "Invalid location chosen."),
        ({"region": "fra", "block_type": "high_perf"}, "Unable to find a block storage cluster in that location"),
        ({"block_type": "tape"}, "Invalid block_type, must be one of: high_perf, storage_opt"),
        ({"size_gb": 39}, "size_gb is not between 40 and 40000."),
        ({"size_gb": 40.5}, "size_gb is not a whole number between 40 and 40000."),
        ({"size_gb": None}, "size_gb is not a whole number between 40 and 40000."),
        ({"size_gb": 9, "block_type": "high_perf"}, "size_gb is not between 10 and 10000."),
        ({"snapshot_id": "x"}, "The sandbox does not carry out snapshot_id: leave it out."),
        ({"label": 7}, "label is not a text."),
    ],
)
def test_a_bad_volume_is_not_made(apis: Apis, changes: dict[str, Any], words: str) -> None:
    assert refusal(apis.vultr("POST", "/blocks", {**BLOCK, **changes})) == (400, words)
    assert apis.cloud.world.holdings == []


def test_nvme_is_what_a_volume_is_where_nothing_is_said(apis: Apis) -> None:
    answer = apis.vultr("POST", "/blocks", {"region": "ewr", "size_gb": 10, "block_type": None, "bootable": False})
    assert answer.json()["block"]["block_type"] == "high_perf" and answer.json()["block"]["cost"] == 1.0


def test_a_volume_moves_between_instances_of_its_region(apis: Apis) -> None:
    young = block(apis)
    instance, elsewhere = apis.rent_vultr(label="mine"), apis.rent_vultr(region="ord")
    body = {"instance_id": instance, "live": True}
    assert refusal(apis.vultr("POST", f"/blocks/{young}/attach", body)) == (400, "Block storage is not active")
    apis.clock.now += 10
    for wrong, words in (
        ({"instance_id": elsewhere}, "Block storage is not in the same location as the server"),
        ({"instance_id": "nobody"}, "Invalid instance ID."),
        ({"instance_id": instance, "live": "yes"}, "live is neither true nor false."),
    ):
        assert refusal(apis.vultr("POST", f"/blocks/{young}/attach", wrong)) == (400, words)
    answer = apis.vultr("POST", f"/blocks/{young}/attach", body)
    assert (answer.status_code, answer.content) == (204, b"")
    row = apis.vultr("GET", f"/blocks/{young}").json()["block"]
    assert (row["attached_to_instance"], row["attached_to_instance_label"]) == (instance, "mine")
    twice = apis.vultr("POST", f"/blocks/{young}/attach", body)
    assert refusal(twice) == (400, "Block storage is already attached to another server")
    refused = apis.vultr("DELETE", f"/blocks/{young}")
    assert refusal(refused) == (400, "Block storage is attached to a server, detach it first")
    assert apis.vultr("POST", f"/blocks/{young}/detach", {"live": True}).status_code == 204
    again = apis.vultr("POST", f"/blocks/{young}/detach", {"live": True})
    assert refusal(again) == (400, "Block storage is not attached to a server")
    assert apis.vultr("DELETE", f"/blocks/{young}").status_code == 204
    assert refusal(apis.vultr("GET", f"/blocks/{young}")) == (404, "Invalid block storage ID.")
    assert refusal(apis.vultr("DELETE", f"/blocks/{young}")) == (404, "Invalid block storage ID.")


@pytest.mark.parametrize("body", [{}, {"live": False}, {"live": True}])
def test_only_a_live_move_leaves_the_instance_running(apis: Apis, body: dict[str, Any]) -> None:
    volume, instance = active_block(apis), apis.rent_vultr()
    rental = apis.cloud.world.find("vultr", instance)
    assert rental is not None
    expected = (Phase.RUNNING, "rent") if body.get("live") else (Phase.BOOTING, "reboot")
    for path, more in (("attach", {"instance_id": instance}), ("detach", {})):
        rental.phase, rental.boot = Phase.RUNNING, "rent"
        assert apis.vultr("POST", f"/blocks/{volume}/{path}", {**more, **body}).status_code == 204
        assert (rental.phase, rental.boot) == expected


def test_a_volume_outlives_its_instance(apis: Apis) -> None:
    volume, instance = active_block(apis), apis.rent_vultr()
    apis.vultr("POST", f"/blocks/{volume}/attach", {"instance_id": instance, "live": True})
    assert apis.vultr("DELETE", f"/instances/{instance}").status_code == 204
    row = apis.vultr("GET", f"/blocks/{volume}").json()["block"]
    assert (row["attached_to_instance"], row["status"]) == ("", "active")
    assert [line["what"] for line in apis.cloud.statement()["billable"]] == ["volume"]


def test_a_volume_only_grows_and_costs_what_it_is(apis: Apis) -> None:
    volume = block(apis, size_gb=72)
    apis.clock.now += 36_000
    smaller = apis.vultr("PATCH", f"/blocks/{volume}", {"size_gb": 71})
    assert refusal(smaller) == (400, "New size must be larger than the current size")
    assert apis.vultr("PATCH", f"/blocks/{volume}", {"size_gb": 144, "label": "other"}).status_code == 204
    apis.clock.now += 36_000
    row = apis.vultr("GET", f"/blocks/{volume}").json()["block"]
    assert (row["size_gb"], row["cost"], row["label"]) == (144, 3.6, "other")
    bill = apis.cloud.statement()
    assert [line["amount_usd"] for line in bill["lines"]] == pytest.approx([0.025, 0.05])
    assert [line["price_per_hour_usd"] for line in bill["billable"]] == pytest.approx([0.005])
    apis.vultr("DELETE", f"/blocks/{volume}")
    apis.clock.now += 36_000
    assert apis.cloud.statement()["billable"] == []
    assert apis.cloud.statement()["total_usd"] == pytest.approx(0.075)
    assert apis.vultr("GET", "/account").json()["account"]["pending_charges"] == pytest.approx(0.075)


def test_lists_have_pages(apis: Apis) -> None:
    instance = apis.rent_vultr()
    for path, name, body in (
        ("/blocks", "blocks", BLOCK),
        ("/snapshots", "snapshots", {"instance_id": instance}),
        ("/firewalls", "firewall_groups", {}),
    ):
        for _ in range(3):
            assert apis.vultr("POST", path, body).status_code in (201, 202)
        first = apis.vultr("GET", f"{path}?per_page=2").json()
        assert (len(first[name]), first["meta"]["total"], first["meta"]["links"]["prev"]) == (2, 3, "")
        second = apis.vultr("GET", f"{path}?per_page=2&cursor={first['meta']['links']['next']}").json()
        assert (len(second[name]), second["meta"]["links"]["next"]) == (1, "")
        assert len({row["id"] for row in first[name] + second[name]}) == 3


def test_a_snapshot_takes_its_time_and_costs_by_its_size(apis: Apis) -> None:
    instance = apis.rent_vultr()
    answer = apis.vultr("POST", "/snapshots", {"instance_id": instance, "description": "before"})
    made = answer.json()["snapshot"]
    assert (answer.status_code, made["status"], made["size"], made["os_id"]) == (201, "pending", 0, 2136)
    apis.clock.now += 10
    row = apis.vultr("GET", f"/snapshots/{made['id']}").json()["snapshot"]
    assert (row["status"], row["size"]) == ("complete", 50 * 2**30) and row["compressed_size"] < row["size"]
    [line] = [line for line in apis.cloud.statement()["billable"] if line["what"] == "snapshot"]
    assert line["price_per_hour_usd"] * 720 == pytest.approx(2.5)
    assert apis.vultr("PUT", f"/snapshots/{made['id']}", {"description": "after"}).status_code == 204
    found = {words: apis.vultr("GET", f"/snapshots?description={words}").json() for words in ("before", "after")}
    assert [len(answer["snapshots"]) for answer in found.values()] == [0, 1]
    assert refusal(apis.vultr("POST", "/snapshots", {"instance_id": "x"})) == (400, "Invalid instance ID.")
    assert apis.vultr("DELETE", f"/snapshots/{made['id']}").status_code == 204
    assert refusal(apis.vultr("GET", f"/snapshots/{made['id']}")) == (404, "Invalid snapshot ID.")


def test_a_firewall_group_has_rules(apis: Apis) -> None:
    made = group(apis)
    row = apis.vultr("GET", f"/firewalls/{made}").json()["firewall_group"]
    assert (row["description"], row["rule_count"], row["instance_count"]) == ("ours", 0, 0)
    path = f"/firewalls/{made}/rules"
    added = apis.vultr("POST", path, {**RULE, "notes": "SSH"})
    assert added.status_code == 201
    expected = {**RULE, "id": 1, "type": "v4", "action": "accept", "source": "", "notes": "SSH"}
    assert added.json()["firewall_rule"] == expected == apis.vultr("GET", f"{path}/1").json()["firewall_rule"]
    assert refusal(apis.vultr("POST", path, RULE)) == (400, "This rule is already defined")
    more = {"ip_type": "v6", "protocol": "ICMP", "subnet": "::", "subnet_size": 0}
    assert apis.vultr("POST", path, more).json()["firewall_rule"]["protocol"] == "icmp"
    web = {"ip_type": "v4", "protocol": "tcp", "port": "443", "source": "cloudflare"}
    assert apis.vultr("POST", path, web).json()["firewall_rule"]["subnet"] == ""
    assert [rule["id"] for rule in apis.vultr("GET", path).json()["firewall_rules"]] == [1, 2, 3]
    assert apis.vultr("DELETE", f"{path}/1").status_code == 204
    assert refusal(apis.vultr("GET", f"{path}/1")) == (404, "Invalid firewall rule ID.")
    apis.clock.now += 10
    assert apis.vultr("PUT", f"/firewalls/{made}", {"description": "others"}).status_code == 204
    row = apis.vultr("GET", f"/firewalls/{made}").json()["firewall_group"]
    assert (row["description"], row["rule_count"]) == ("others", 2) and row["date_modified"] > row["date_created"]
    assert apis.vultr("DELETE", f"/firewalls/{made}").status_code == 204
    assert refusal(apis.vultr("GET", path)) == (404, "Invalid firewall group ID.")
    assert apis.cloud.statement()["lines"] == []


@pytest.mark.parametrize(
    "changes",
    [
        *({"ip_type": "v5"}, {"protocol": "smtp"}, {"subnet": "x"}, {"subnet": "::"}, {"subnet_size": 33}),
        *({"subnet_size": None}, {"port": ""}, {"port": "0"}, {"port": "70000"}, {"port": "23:22"}, {"port": "ssh"}),
        *({"protocol": "gre"}, {"source": "a-load-balancer"}, {"unknown": 1}, {"port": 22}),
    ],
)
def test_a_bad_rule_is_not_added(apis: Apis, changes: dict[str, Any]) -> None:
    path = f"/firewalls/{group(apis)}/rules"
    assert refusal(apis.vultr("POST", path, {**RULE, **changes}))[0] == 400
    assert apis.vultr("GET", path).json()["firewall_rules"] == []


def test_a_lost_answer_leaves_a_volume_or_a_snapshot(apis: Apis) -> None:
    instance = apis.rent_vultr()
    for path, body in (("/blocks", BLOCK), ("/snapshots", {"instance_id": instance})):
        apis.cloud.add_fault(Fault("lost-answer", "vultr", 1))
        assert apis.vultr("POST", path, body).content == b"{", "half an answer, which a real server then breaks off"
    assert [holding.kind for holding in apis.cloud.world.holdings] == ["volume", "snapshot"]


def test_status_and_a_restart_know_them(
    apis: Apis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, instance = active_block(apis), apis.rent_vultr()
    apis.vultr("POST", f"/blocks/{volume}/attach", {"instance_id": instance, "live": True})
    group(apis)
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    status = apis.client.get("/sandbox/status", headers=headers).json()
    first, second = status["holdings"]
    assert (first["kind"], first["id"], first["label"], first["size_gb"]) == ("volume", volume, "data", 40)
    assert first["billing_per_hour_usd"] == pytest.approx(1 / 720) and second["billing_per_hour_usd"] == 0
    monkeypatch.setattr(cli, "_control", lambda _: Mock(status=lambda: status))
    monkeypatch.setattr(info, "load", lambda _: Mock(endpoints={}))
    assert main(["sandbox", "status"]) == 0
    shown = capsys.readouterr().out
    assert f"vultr volume {volume} data ewr: 0.001389 $/h" in shown
    kept = World.load(apis.cloud._file).holdings
    assert [dataclasses.asdict(one) for one in kept] == [dataclasses.asdict(one) for one in apis.cloud.world.holdings]


def test_what_is_not_emulated_is_said(apis: Apis) -> None:
    for method, path in (
        *(("GET", "/blocks/snapshots"), ("POST", "/blocks/snapshots"), ("DELETE", "/blocks/snapshots/x")),
        *(("POST", "/snapshots/create-from-url"), ("GET", "/vfs")),
    ):
        assert refusal(apis.vultr(method, path)) == (501, f"The sandbox has no route {method} /v2{path}.")
    for method in ("POST", "PUT"):
        headers = {"Authorization": f"Bearer {apis.cloud.settings.vultr_key}", "Content-Type": "text/plain"}
        path = f"/v2/firewalls{f'/{group(apis)}' if method == 'PUT' else ''}"
        assert apis.client.request(method, path, content=b"{}", headers=headers).status_code == 400
