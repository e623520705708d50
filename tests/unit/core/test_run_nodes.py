"""A run of several nodes: which checkpoint, record and money are whose, and how the run stands as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard import ssh
from gpuyard.box.checkpoints import LocalStore, publish, read_record, write_record
from gpuyard.config import SshKey
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ledger, places, runs
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

from .conftest import SSH_KEY
from .test_rent import an_instance

KEY = SshKey(Path("/keys/id"), SSH_KEY)


def machine(instance_id: str, node: str, **changes: object) -> Instance:
    return an_instance(id=instance_id, ref=RunRef("r", "w", node), created_at=1000.0, **changes)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "bucket").mkdir()
    return LocalStore(tmp_path / "bucket")


def put(store: LocalStore, folder: Path, place: str, node: str, **progress: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / node).write_text(node)
    publish(store, place, folder, progress=lambda _: {"node": node, **progress})


def joined(store: LocalStore, *held: Instance) -> runs.Run:
    (only,) = runs.join(held, runs.stored(store, costs=True), ["vast"])
    return only


def test_each_node_has_what_it_has_made_itself(store: LocalStore, tmp_path: Path) -> None:
    write_record(store, "r", "w")
    put(store, tmp_path / "a", "r", "train-0")
    put(store, tmp_path / "b", places.own_place("r", "search-1"), "search-1")
    run = joined(store, machine("1", "train-0"), machine("2", "search-0"), machine("3", "search-1"))
    assert [node.name for node in run.nodes] == ["search-0", "search-1", "train-0"]
    assert [node.manifest is not None for node in run.nodes] == [False, True, True]
    for node, made in (("train-0", True), ("search-0", False), ("search-1", True)):
        found = places.newest_of(store, "r", node)
        assert (found is not None) is made and (found is None or places.made_by(found) == node)


def test_a_run_is_done_when_all_its_nodes_are(store: LocalStore, tmp_path: Path) -> None:
    done = {"finished": True, "outcome": "done"}
    write_record(store, "r", "w", outcome="done")
    put(store, tmp_path / "a", "r", "train-0", **done)
    write_record(store, places.own_place("r", "search-0"), "w")
    put(store, tmp_path / "b", places.own_place("r", "search-0"), "search-0")
    run = joined(store)
    assert (run.node("train-0").outcome, run.node("search-0").outcome, run.outcome) == ("done", None, None)
    assert run.state == "interrupted" and run.resumable
    # What was torn down says so of the nodes that had not ended.
    assert runs.cancel(store, "r")
    assert [node.state for node in joined(store).nodes] == ["cancelled", "finished"]
    write_record(store, places.own_place("r", "search-0"), "w", outcome="failed")
    assert joined(store).outcome == "failed"


def test_a_run_that_is_only_known_by_a_nodes_checkpoint_is_one(store: LocalStore, tmp_path: Path) -> None:
    put(store, tmp_path / "b", places.own_place("r", "search-0"), "search-0")
    assert joined(store).node("search-0").manifest
    assert runs.cancel(store, "r") and read_record(store, "r").outcome == "cancelled"


def test_the_state_of_a_run_is_that_of_the_node_that_needs_somebody() -> None:
    up, lost = machine("1", "a-0"), machine("2", "a-1", state=State.PREEMPTED)
    assert runs.Run("r", "w", (up, lost)).state == "preempted"
    both = runs.Run(
        "r", "w", (up, machine("2", "a-1")), stages={"a-0": {"state": "running"}, "a-1": {"state": "failed"}}
    )
    assert both.state == "failed" and both.is_up


def test_a_lost_node_counts_until_its_own_newest_checkpoint(store: LocalStore, tmp_path: Path) -> None:
    """Another node's later checkpoint says nothing of when this one was lost."""
    now = 1000.0
    book = Ledger(Notebook(lambda: store), pytest.fail, lambda: now)
    for one in (machine("1", "a-0"), machine("2", "a-1")):
        book.rented(one)
        book.running(one)
    now = 1e9
    put(store, tmp_path / "a", places.own_place("r", "a-0"), "a-0")
    book.gone("r", [], ["vast"])
    ends = {entry.node: entry.changes[-1].time for entry in ledger.entries(store, "r")}
    assert ends["a-1"] == 1000.0 and ends["a-0"] > 1000.0


def test_every_node_is_reached_by_its_own_name(tmp_path: Path) -> None:
    """X15: the name is the inventory's."""
    known = tmp_path / "known_hosts"
    entry = tmp_path / "ssh" / "r.conf"

    def hosts() -> list[str]:
        lines = entry.read_text().splitlines() if entry.exists() else []
        return [line.removeprefix("Host ") for line in lines if line.startswith("Host ")]

    ssh.add_ssh_host(machine("1", "main-0", ssh_port=1001), KEY, known)
    assert hosts() == ["r"]
    ssh.add_ssh_host(machine("2", "main-1", ssh_port=1002), KEY, known)
    assert hosts() == ["r.main-0", "r.main-1"]
    # A machine that replaces a lost one takes over its node's name.
    ssh.add_ssh_host(machine("3", "main-1", ssh_port=1003), KEY, known)
    assert hosts() == ["r.main-0", "r.main-1"]
    assert "Port 1003" in entry.read_text() and "Port 1002" not in entry.read_text()
    ssh.forget_host_key(machine("3", "main-1"), known)
    assert hosts() == ["r"]
    ssh.forget_host_key(machine("1", "main-0"), known)
    assert not entry.exists()
