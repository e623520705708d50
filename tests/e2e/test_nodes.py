"""A run of three nodes on two clouds: rented once each, shown, one of them lost and resumed, all ended."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from yard import BETWEEN_LOOKS_S, Yard

from gpuyard import config, ssh
from gpuyard.renting.ledger import entries

RUN = "fleet-0"
FLEET = """\
name: fleet
repository: {path: tree}
login: limited
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}
checkpoints: {every_s: 1}
pools:
  train: {needs: {gpu_ram_gb: 8, regions: [ewr]}}
  search: {nodes: 2}
stages:
  - {name: train, pool: train, grace_s: 1, command: 'echo weights > $GPUYARD_PERSIST/weights; sleep 900'}
  - {name: search, pool: search, grace_s: 1, command: 'echo again >> $GPUYARD_PERSIST/found; sleep 900'}
"""


def fleet(folder: Path) -> str:
    """Write a workload whose pools are for two clouds, and return its path."""
    (folder / "tree").mkdir()
    (folder / "tree" / "README").write_text("A repository.\n")
    (folder / "workloads").mkdir()
    (folder / "workloads" / "fleet.yml").write_text(FLEET)
    return str(folder / "workloads" / "fleet.yml")


def test_three_nodes_on_two_clouds(yard: Yard, tmp_path: Path) -> None:
    workload = fleet(tmp_path)

    def by_node() -> dict[str, Any]:
        return {one.ref.node: one for one in yard.instances(RUN) if one.ref and one.state == "running"}

    def bill() -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = yard.control.status()["bill"]["lines"]
        return lines

    def found(node: str) -> str:
        """Return what the newest checkpoint of a node has of its search."""
        return yard.published(f"{RUN}/nodes/{node}", "found").get("found", b"").decode()

    launched = yard.play("launch", workload=workload, run=RUN)
    first = by_node()
    assert {node: one.provider for node, one in first.items()} == {
        "train-0": "vultr",
        "search-0": "vast",
        "search-1": "vast",
    }
    # Vultr makes a user with sudo, who does everything here; root is not let in.
    assert {one.ssh_user for one in first.values()} == {"root", "linuxuser"}
    as_root = replace(first["train-0"], ssh_user="root")
    refused = subprocess.run(["ssh", *ssh.ssh_args(as_root, config.ssh_key()), "true"], capture_output=True, text=True)
    assert first["train-0"].ssh_user == "linuxuser" and "Permission denied" in refused.stderr, refused
    assert len({one.machine_id for one in first.values() if one.provider == "vast"}) == 2
    assert sorted({line["id"] for line in bill()}) == sorted(one.id for one in first.values()), "each exactly once"
    assert set(launched.changed()) == {"localhost", *(f"{RUN}.{node}" for node in first)}
    assert "on 3 nodes" in launched.text and "Its 3 machines bill" in launched.text

    # Each runs the stages of its own pool, publishes in a place of its own, and is shown by itself.
    yard.wait("every node's checkpoint", lambda: all(map(found, ("search-0", "search-1"))) and yard.manifest(RUN))
    assert yard.published(RUN, "weights|found") == {"weights": b"weights\n"}
    shown = yard.play("status").text
    assert all(f"{RUN}.{node} " in shown for node in first) and "3 of 3 nodes" in shown
    assert "search" in yard.play("logs", run=RUN, node="search-1").text
    unknown = yard.play("logs", run=RUN, node="search-7", ok=False).text
    assert "node='search-7' is no node of run fleet-0" in " ".join(unknown.split())
    graph = yard.run("ansible-inventory", "--graph").text
    assert "@pool_search" in graph and f"--{RUN}.train-0" in graph
    assert set(yard.play("launch", workload=workload, run=RUN).changed().values()) == {0}

    # One is lost: the others go on, and only that one is rented again, where it was.
    yard.control.preempt(instance=first["search-1"].id)
    lost = yard.play("launch", workload=workload, run=RUN, ok=False).text
    assert "Node search-1 of run fleet-0 has lost its machine" in " ".join(lost.split())
    yard.play("resume_search", workload=workload)
    second = by_node()
    assert {node for node in second if second[node].id != first[node].id} == {"search-1"}
    yard.wait("the second attempt's checkpoint", lambda: found("search-1") == "again\nagain\n")
    assert found("search-0") == "again\n"

    ended = yard.play("teardown", run=RUN).text
    assert yard.instances(RUN) == [] and yard.control.status()["bill"]["billable"] == []
    assert "Run fleet-0 has cost $" in ended and "on 4 machines" in ended
    assert not list((yard.home / "ssh").glob("*.conf"))

    # What each has cost is known when nothing of it is left, by node, and agrees with the clouds' own bills.
    written = entries(yard.store, RUN)
    assert sorted(entry.node for entry in written) == ["search-0", "search-1", "search-1", "train-0"]
    for entry in written:
        billed = sum(line["amount_usd"] for line in bill() if line["id"] == entry.id)
        cost = entry.cost_usd(entry.changes[-1].time)
        assert entry.ended
        if entry.id != first["search-1"].id:  # no provider says when it took a machine away
            assert cost == pytest.approx(billed, abs=BETWEEN_LOOKS_S / 3600 * entry.price_per_hour_usd)
    assert "cancelled" in yard.play("status").text
