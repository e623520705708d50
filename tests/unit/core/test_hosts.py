"""What machines are called as hosts (X15): one rule for the inventory, SSH, status and the plays."""

from __future__ import annotations

import itertools

import pytest

from gpuyard import hosts
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State

from .test_rent import an_instance


def machine(instance_id: str, node: str = "main-0", **changes: object) -> Instance:
    return an_instance(id=instance_id, ref=RunRef("r", "w", node), **changes)


def names(*machines: Instance) -> dict[str, str]:
    return {host.instance.id: host.name for host in hosts.named(machines)}


def test_the_only_node_of_a_run_has_the_runs_name() -> None:
    assert names(machine("1")) == {"1": "r"}


def test_each_of_several_nodes_has_the_runs_name_and_its_own() -> None:
    assert names(machine("1"), machine("2", "main-1"), machine("3", "search-0")) == {
        "1": "r.main-0",
        "2": "r.main-1",
        "3": "r.search-0",
    }


def test_what_is_left_of_a_lost_machine_has_not_the_name_of_its_node() -> None:
    lost = machine("1234567", "search-1", state=State.PREEMPTED)
    assert names(lost, machine("7654321", "search-1")) == {"1234567": "r.search-1-234567", "7654321": "r.search-1"}


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_names_do_not_depend_on_the_order(order: tuple[int, ...]) -> None:
    found = [machine("11111111", created_at=1.0), machine("22222222", created_at=2.0), machine("3", "main-1")]
    assert names(*(found[place] for place in order)) == {
        "11111111": "r.main-0",
        "22222222": "r.main-0-222222",
        "3": "r.main-1",
    }


def test_a_host_is_in_the_group_of_its_pool() -> None:
    (host,) = hosts.named([machine("1", "big-search-2")])
    assert {"gpuyard", "run_r", "pool_big-search"} < set(host.groups)


def test_a_machine_of_somebody_else_is_no_host() -> None:
    assert hosts.named([an_instance(ref=None)]) == []
