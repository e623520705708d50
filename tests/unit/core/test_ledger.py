"""What the machines of a run have cost: written down at every turn, and counted also when they are gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuyard import records
from gpuyard.box.checkpoints import LocalStore, Manifest, publish, write_record
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.providers.vast import Vast
from gpuyard.renting import destroy, ledger, machine, runs
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes

from .conftest import FakeTime, an_offer
from .standin import Reply, Standin
from .test_rent import VULTR_ROW, an_instance, clouds, row
from .test_unanswered import TAGS, order

__all__ = ["clouds"]

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "bucket").mkdir()
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def book(store: LocalStore, fake_time: FakeTime) -> Ledger:
    return Ledger(Notebook(lambda: store), pytest.fail, fake_time.clock)


def machine_of(**changes: Any) -> Instance:
    """Return a machine of 0.40 $/h of which 0.04 are the disk."""
    return an_instance(**{"idle_price_per_hour_usd": 0.04, **changes})


def joined(store: LocalStore, *held: Instance) -> runs.Run:
    """Return the one run that the bucket and the clouds (which answer) know."""
    (only,) = runs.join(held, runs.stored(store, costs=True), ["vast", "vultr"])
    return only


def test_what_a_stopped_machine_costs_is_what_its_cloud_says(vast: Vast, service: Standin) -> None:
    lost = {"cur_state": "stopped", "actual_status": "exited", "dph_total": 0.4}
    rows = [
        row(1, **lost, storage_total_cost=0.03),
        row(2, **lost, storage_cost=0.72, disk_space=20),
        row(3, **lost),
        row(4, dph_total=0.4, storage_total_cost=0.03),
    ]
    service.on("GET", "/api/v1/instances/", Reply({"instances": rows}))
    assert [one.cost_now_per_hour_usd for one in vast.instances()] == [0.03, pytest.approx(0.02), 0.4, 0.4]


def test_a_halted_machine_at_vultr_costs_its_full_price(clouds: list[Any], service: Standin) -> None:
    halted = {**VULTR_ROW, "status": "active", "power_status": "stopped", "server_status": "ok", "plan": "p"}
    service.on("GET", "/instances", Reply({"instances": [{**halted, "tags": TAGS}]}))
    service.on("GET", "/plans", Reply({"plans": [{"id": "p", "hourly_cost": 0.5}]}))
    (one,) = clouds[1].instances()
    assert (one.state, one.cost_now_per_hour_usd) == (State.STOPPED, 0.5)


def test_the_disk_is_paid_from_the_rental_and_the_rest_while_it_runs(
    book: Ledger, store: LocalStore, fake_time: FakeTime
) -> None:
    new = machine_of(state=State.PENDING)
    book.rented(new)
    fake_time.now += HOUR
    book.running(machine_of())
    fake_time.now += 2 * HOUR
    assert joined(store, machine_of()).spent_usd(fake_time.now) == pytest.approx(0.04 + 0.8)
    book.stopped(machine_of())
    fake_time.now += HOUR
    halted = machine_of(state=State.STOPPED)
    assert joined(store, halted).spent_usd(fake_time.now) == pytest.approx(0.04 + 0.8 + 0.04)
    assert joined(store, halted).price_per_hour_usd == 0.04
    book.running(machine_of())
    fake_time.now += HOUR
    book.ended(machine_of(), fake_time.now)
    fake_time.now += 100 * HOUR
    gone = joined(store)
    assert gone.spent_usd(fake_time.now) == pytest.approx(0.04 + 0.8 + 0.04 + 0.4)
    # There is nothing to go on from, and a new run may have its name.
    assert (gone.state, gone.resumable, gone.workload) == ("cancelled", False, "miniprover")
    assert runs.join([], runs.stored(store)) == []


def checkpoint(store: LocalStore, tmp_path: Path, when: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish a checkpoint at that time."""
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "x").write_text(str(when))
    write_record(store, "miniprover-0", "miniprover")
    publish(store, "miniprover-0", tmp_path / "root")
    monkeypatch.setattr(ledger, "alive_at", lambda manifest: when if manifest else 0.0)


def test_a_lost_machine_costs_its_disk_from_when_it_was_last_seen(
    book: Ledger, store: LocalStore, fake_time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.running(machine_of())
    taken = machine_of(state=State.PREEMPTED)
    fake_time.now += 10 * HOUR
    # Nobody has seen it after it was rented: this is the least that it can have cost.
    assert joined(store, taken).spent_usd(fake_time.now) == pytest.approx(10 * 0.04)
    checkpoint(store, tmp_path, fake_time.now - 4 * HOUR, monkeypatch)
    run = joined(store, taken)
    assert run.spent_usd(fake_time.now) == run.cost_usd(fake_time.now) == pytest.approx(6 * 0.4 + 4 * 0.04)
    assert run.price_per_hour_usd == 0.04
    # The next machine's checkpoints say nothing of this one, so its loss is written down before that is rented.
    book.ended(taken, fake_time.now)
    book.running(machine_of(id="8"))
    fake_time.now += HOUR
    monkeypatch.setattr(ledger, "alive_at", lambda manifest: fake_time.now)
    assert joined(store, machine_of(id="8")).spent_usd(fake_time.now) == pytest.approx(6 * 0.4 + 4 * 0.04 + 0.4)


def test_a_machine_that_its_cloud_does_not_list_any_more_costs_nothing_more(
    book: Ledger, store: LocalStore, fake_time: FakeTime
) -> None:
    book.running(machine_of())
    fake_time.now += HOUR
    book.running(machine_of())
    fake_time.now += HOUR
    assert joined(store).spent_usd(fake_time.now) == pytest.approx(0.4)
    # A cloud that does not answer may still have it.
    (unseen,) = runs.join([], runs.stored(store, costs=True), ["vultr"])
    assert unseen.spent_usd(fake_time.now) == pytest.approx(0.8)
    book.gone("miniprover-0", [], ["vultr"])
    assert not ledger.entries(store, "miniprover-0")[0].ended
    book.gone("miniprover-0", [machine_of()], ["vast"])
    assert not ledger.entries(store, "miniprover-0")[0].ended
    book.gone("miniprover-0", [], ["vast"])
    (entry,) = ledger.entries(store, "miniprover-0")
    assert entry.ended and entry.cost_usd(fake_time.now) == pytest.approx(0.4)
    assert joined(store).state == "interrupted"  # nobody has given it up


def test_a_machine_that_the_ledger_does_not_know_counts_by_its_age(store: LocalStore) -> None:
    held = [machine_of(created_at=1000.0), machine_of(id="8", created_at=1000.0, provider="vultr")]
    assert joined(store, *held).spent_usd(1000 + HOUR) == pytest.approx(0.8)
    assert joined(store, *held).cost_usd(1000 + HOUR) == pytest.approx(0.8)


def test_a_life_from_present_to_absent_is_in_the_ledger(
    clouds: list[Any], service: Standin, fake_time: FakeTime, store: LocalStore, book: Ledger
) -> None:
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    offer = an_offer(disk_price_per_hour_usd=0.04)
    asked = order(store, fake_time, [], ledger=book, offers=lambda: [offer])
    outcome = machine.present(clouds, asked)
    assert outcome.rented
    (entry,) = ledger.entries(store, "miniprover-0")
    assert (entry.id, entry.changes[0].what, entry.changes[0].price_per_hour_usd) == ("7", "rented", 0.04)

    taken = row(7, cur_state="stopped", actual_status="exited", dph_total=0.4, storage_total_cost=0.04)
    listed = [Reply({"instances": [taken]}), Reply({"instances": []})]
    service.on("GET", "/api/v1/instances/", *listed)
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": None}))
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 8}))
    fake_time.now += HOUR
    machine.present(clouds, replace(asked, replace_preempted=True))
    first, second = ledger.entries(store, "miniprover-0")
    assert (first.id, first.changes[-1].what, second.id, second.ended) == ("7", "ended", "8", False)
    assert first.cost_usd(fake_time.now) == pytest.approx(0.04)

    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(8, dph_total=0.4, storage_total_cost=0.04)]}))
    service.on("DELETE", "/api/v0/instances/8/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/8/", Reply({"instances": None}))
    fake_time.now += HOUR
    machine.absent(clouds, "miniprover-0", ledger=book)
    assert [one.ended for one in ledger.entries(store, "miniprover-0")] == [True, True]
    # It ran when it ended, and nobody has waited for that: it counts as having run all the time.
    assert joined(store).spent_usd(fake_time.now + HOUR) == pytest.approx(0.04 + 0.4)


def test_an_end_is_an_end_whatever_the_bucket_says(
    clouds: list[Any], service: Standin, tmp_path: Path, fake_time: FakeTime
) -> None:
    service.on("DELETE", "/api/v0/instances/", Reply({"success": True}))
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    book = Ledger(Notebook(lambda: LocalStore(tmp_path / "file")), told.append, fake_time.clock)
    service.on("GET", "/api/v0/instances/", Reply({"instances": None}))
    destroy.destroy_all(clouds, [machine_of(), machine_of(id="8")], ledger=book)
    assert "could not be told what vast 7 costs" in told[0] and "Not a directory" in told[0]
    # A silent bucket costs a minute with every question, so it is asked once by all who write there.
    assert told[1:] == ["The bucket could not be told what vast 8 costs, so status will not count it in full."]
    shared = Notebook(lambda: LocalStore(tmp_path / "file"))
    PendingNotes(shared, told.append).read("miniprover-0")
    Ledger(shared, told.append).rented(machine_of(id="9"))
    assert "may be overlooked" in told[2] and told[3].endswith(
        "what vast 9 costs, so status will not count it in full."
    )
    destroy.destroy_all(clouds, [machine_of()], ledger=Ledger(progress=pytest.fail))


def test_an_entry_outlives_a_version_and_a_damaged_one_is_named(book: Ledger, store: LocalStore) -> None:
    book.rented(machine_of())
    (file,) = (store.folder / "miniprover-0" / "ledger").iterdir()
    content = json.loads(file.read_text())
    assert content["version"] == 1 and "ssh" not in file.read_text()
    file.write_text(json.dumps(content | {"later": "field"}))
    assert len(ledger.entries(store, "miniprover-0")) == 1
    store.put("miniprover-0/ledger/vast-8.json", json.dumps(content | {"version": 2}).encode())
    store.put("miniprover-0/ledger/vast-9.json", b"{")
    store.put("miniprover-0/ledger/vast-10.json", json.dumps(content | {"changes": []}).encode())
    kept = runs.stored(store, costs=True)
    assert len(kept.entries["miniprover-0"]) == 1
    assert len(kept.complaints) == 3 and "version 2" in " ".join(kept.complaints)


def test_the_table_counts_runs_without_machines_and_adds_up(
    book: Ledger, store: LocalStore, fake_time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.time, "time", fake_time.clock)
    other = machine_of(id="9", ref=RunRef("other-0", "other"))
    book.running(machine_of())
    book.running(other)
    fake_time.now += HOUR
    book.ended(machine_of(), fake_time.now)
    fake_time.now += HOUR
    found = runs.join([other], runs.stored(store, costs=True), ["vast"])
    lines = records.run_table(found)
    assert "0.4000" in lines[1] and "0.8000" in lines[2]
    assert lines[-1].startswith("In all $1.2000 so far, and $0.4000 an hour now")
    values = [records.run_to_dict(one) for one in found]
    assert [one["spent_usd"] for one in values] == [pytest.approx(0.4), pytest.approx(0.8)]
    assert values[0]["cost_usd"] == 0.0


def test_when_a_run_was_last_alive() -> None:
    assert ledger.alive_at(None) == 0.0
    assert ledger.alive_at(Manifest("a-0", 1, "1970-01-01T01:00:00Z", ())) == HOUR
    assert ledger.alive_at(Manifest("a-0", 1, "yesterday", ())) == 0.0
    assert ledger.entry_of(machine_of(), 5.0).began_at == 5.0
