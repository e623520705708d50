"""Create requests whose answer is lost, while the clouds list a new machine late: never a second machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import AmbiguousError, LeakError, NoCapacityError, ThrottledError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.providers.rental import UNLISTED_S
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.renting import machine, rent, runs
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes

from .conftest import FakeTime, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin
from .test_rent import GONE, KEY, VULTR_OFFER, VULTR_ROW, clouds, row

__all__ = ["clouds"]

BUSY = Reply("API requests too frequent", 429)
TAGS = ["gpuyard", "run:miniprover-0", "workload:miniprover"]


@pytest.fixture
def late(service: Standin, fake_time: FakeTime) -> Callable[[str, Reply, float], None]:
    """Return a function that lets a cloud rent and answer ``reply``, and list the machine ``lag`` seconds later."""

    def behave(cloud: str, reply: Reply, lag: float) -> None:
        rented: list[float] = []

        def create(_request: Request) -> Reply:
            rented.append(fake_time.now)
            return reply

        def listed(_request: Request) -> Reply:
            seen = [number for number, moment in enumerate(rented) if fake_time.now - moment >= lag]
            rows = [{**VULTR_ROW, "id": f"v-{one}", "tags": TAGS} if cloud == "vultr" else row(one) for one in seen]
            return Reply({"instances": rows})

        paths = {"vast": ("PUT", "/api/v0/asks/", "/api/v1/instances/"), "vultr": ("POST", "/instances", "/instances")}
        method, ask, listing = paths[cloud]
        service.on(method, ask, create)
        service.on("GET", listing, listed)

    return behave


@pytest.mark.parametrize("cloud", ["vast", "vultr"])
@pytest.mark.parametrize("reply", [LOST, BUSY, Reply("bad gateway", 502)], ids=["lost", "429", "502"])
def test_a_machine_that_is_listed_25_s_late_is_adopted(
    clouds: list[Any], service: Standin, late: Any, cloud: str, reply: Reply
) -> None:
    late(cloud, reply, 25)
    offer = an_offer() if cloud == "vast" else VULTR_OFFER
    told: list[str] = []
    instance = rent.rent(clouds, [offer], a_spec(), progress=told.append)
    assert instance.id in ("0", "v-0")
    assert len(service.calls("PUT", "/api/v0/asks") + service.calls("POST", "/instances")) == 1
    assert [line for line in told if line.startswith(f"Looking for it for {UNLISTED_S:.0f} s;") and "left" in line]


def test_after_the_last_refusal_the_machine_is_looked_for_as_well(
    clouds: list[Any], service: Standin, fake_time: FakeTime
) -> None:
    service.on("PUT", "/api/v0/asks/", BUSY)
    with pytest.raises(ThrottledError):
        rent.rent(clouds, [an_offer()], a_spec())
    assert len(service.calls("PUT")) == 4
    assert sum(fake_time.slept) == pytest.approx(4 * UNLISTED_S)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A bucket that several controllers share."""
    (tmp_path / "bucket").mkdir()
    return LocalStore(tmp_path / "bucket")


def order(store: LocalStore | None, fake_time: FakeTime, told: list[str], **changes: Any) -> machine.Order:
    """Return what a command asks for that has just been started."""
    clock = pace.Clock(sleep=fake_time.sleep, now=fake_time.clock, date=fake_time.clock)
    return machine.Order(
        **{
            "run": "miniprover-0",
            "workload": "miniprover",
            "offers": lambda: [an_offer()],
            "key": KEY,
            "wait": False,
            "clock": clock,
            "notes": PendingNotes(Notebook(lambda: store), told.append, fake_time.clock),
            **changes,
        }
    )


def notes(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*.json")]


@pytest.mark.parametrize("with_bucket", [True, False])
def test_a_killed_command_leaves_a_note_and_the_next_one_waits_for_its_machine(
    clouds: list[Any],
    service: Standin,
    late: Any,
    fake_time: FakeTime,
    store: LocalStore,
    with_bucket: bool,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late("vast", LOST, 25)
    kept = store if with_bucket else None
    told: list[str] = []

    def killed(line: str) -> None:
        if "Looking for the instance" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.present(clouds, order(kept, fake_time, told), progress=killed)
    (note,) = notes(store.folder, own_home / ".gpuyard" / "pending")
    assert note.is_relative_to(store.folder) is with_bucket
    content = json.loads(note.read_text())
    assert (content["provider"], content["run"]) == ("vast", "miniprover-0")
    # A run of which there is only that is none to resume, and none whose name is taken.
    assert runs.stored(kept) == runs.Stored()

    if with_bucket:  # then any controller finds it
        monkeypatch.setenv("GPUYARD_HOME", str(own_home / "other"))
    fake_time.now += 10
    asked_at_vultr = order(kept, fake_time, told, everywhere=clouds, offers=lambda: [VULTR_OFFER])
    with pytest.raises(UsageError, match=r"at another cloud \(vast 0,.*leave out provider=vultr"):
        machine.present(clouds[1:], asked_at_vultr, progress=told.append)
    assert any("Looking for that machine for 20 s before anything else" in line for line in told)

    outcome = machine.present(clouds, order(kept, fake_time, told), progress=told.append)
    assert outcome.instance and outcome.instance.id == "0" and not outcome.rented
    assert len(service.calls("PUT")) == 1 and not service.calls("POST")
    assert notes(store.folder, own_home / ".gpuyard" / "pending") == []


def test_a_teardown_waits_for_a_machine_that_a_killed_command_may_have_rented(
    clouds: list[Any], service: Standin, late: Any, fake_time: FakeTime, store: LocalStore
) -> None:
    late("vast", LOST, 25)
    told: list[str] = []

    def killed(line: str) -> None:
        if "Looking for the instance" in line:
            raise KeyboardInterrupt

    asked = order(store, fake_time, told)
    with pytest.raises(KeyboardInterrupt):
        machine.present(clouds, asked, progress=killed)
    service.on("DELETE", "/api/v0/instances/0/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/0/", Reply({"instances": None}))
    assert machine.absent(clouds, "miniprover-0", notes=asked.notes, check=True).actions == []
    outcome = machine.absent(clouds, "miniprover-0", notes=asked.notes, clock=asked.clock, progress=told.append)
    assert [action.split(",")[0] for action in outcome.actions] == ["destroy vast 0"]
    assert len(service.calls("DELETE")) == 1 and notes(store.folder) == []
    # A run of which the bucket has nothing but notes is not made one that was given up.
    store.put("miniprover-0/ledger/vast-0.json", b"{}")
    assert runs.cancel(store, "miniprover-0") is False
    # What is billed at a cloud that answers ends, whatever the other one does.
    asked.notes.write(a_spec().ref, "vultr")
    service.on("GET", "/instances", Reply({"error": "down"}, 503))
    with pytest.raises(LeakError, match=r"confirmed gone: vast 0.*vultr could not be asked"):
        machine.absent(clouds, "miniprover-0", notes=asked.notes, clock=asked.clock)


def test_a_note_is_waited_for_as_long_as_it_may_matter_and_then_removed(
    clouds: list[Any], service: Standin, fake_time: FakeTime, store: LocalStore
) -> None:
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    told: list[str] = []
    earlier = PendingNotes(Notebook(lambda: store), told.append, fake_time.clock)
    earlier.write(a_spec().ref, "vast")
    began = fake_time.now
    machine.present(clouds, order(store, fake_time, told), progress=told.append)
    assert fake_time.now - began == pytest.approx(UNLISTED_S)
    assert any("that request has rented nothing" in line for line in told)
    assert notes(store.folder) == []

    # One that is older is not waited for, one that nobody can read hinders nobody, and one of another cloud is told.
    earlier.write(a_spec().ref, "vast")
    earlier.write(a_spec().ref, "lambda")
    store.put("miniprover-0/requests/broken.json", b"{")
    store.put("miniprover-0/requests/never.json", b'{"provider": "vast", "sent_at": NaN}')
    fake_time.now = began = fake_time.now + UNLISTED_S
    earlier.write(a_spec().ref, "lambda")
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    machine.present(clouds, order(store, fake_time, told), progress=told.append)
    assert fake_time.now == began
    assert any("There is no key of lambda here" in line for line in told)
    assert all(any(f"{name}.json is no note" in line for line in told) for name in ("broken", "never"))


def test_a_definite_answer_leaves_no_note_and_an_open_one_does(
    clouds: list[Any], service: Standin, fake_time: FakeTime, store: LocalStore
) -> None:
    told: list[str] = []
    service.on("PUT", "/api/v0/asks/", GONE)
    with pytest.raises(NoCapacityError):
        machine.present(clouds, order(store, fake_time, told))
    assert notes(store.folder) == []
    service.on("PUT", "/api/v0/asks/", BUSY, BUSY, Reply({"success": False, "error": "invalid_args", "msg": "no"}, 400))
    with pytest.raises(Exception, match="no"):
        machine.present(clouds, order(store, fake_time, told))
    assert notes(store.folder) == []
    service.on("PUT", "/api/v0/asks/", LOST)
    with pytest.raises(AmbiguousError):
        machine.present(clouds, order(store, fake_time, told))
    assert len(notes(store.folder)) == 1
    assert told == []


def test_without_a_bucket_that_answers_the_note_stays_at_home(
    vast: Vast, vultr: Vultr, tmp_path: Path, own_home: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    noted = PendingNotes(Notebook(lambda: LocalStore(tmp_path / "file")), told.append)
    note = noted.write(a_spec().ref, "vast")
    assert note and "may be overlooked" in told[0] and len(told) == 1
    assert notes(own_home / ".gpuyard" / "pending")
    assert noted.read("miniprover-0") == [note]
    noted.clear(note)
    assert notes(own_home / ".gpuyard") == [] and len(told) == 1


def test_the_machine_that_a_run_leaves_answers_no_request_for_the_next_one(
    clouds: list[Any], service: Standin, fake_time: FakeTime, store: LocalStore
) -> None:
    told: list[str] = []
    left = row(1, label="gpuyard/miniprover-0/miniprover/train-0")
    new = row(2, label="gpuyard/miniprover-0/miniprover/search-0")
    asked = order(store, fake_time, told, node="search-0")
    asked.notes.write(RunRef("miniprover-0", "miniprover", "search-0"), "vast")
    began = fake_time.now

    def listed(_request: Request) -> Reply:
        return Reply({"instances": [left, *([new] if fake_time.now - began >= 20 else [])]})

    service.on("GET", "/api/v1/instances/", listed)
    outcome = machine.present(clouds, asked, progress=told.append)
    # A command was killed before its answer: its machine is waited for, and not rented twice.
    assert outcome.instance is not None and outcome.instance.id == "2" and not outcome.rented
    assert 20 <= fake_time.now - began < UNLISTED_S
    assert service.calls("PUT") == [] and notes(store.folder) == []
    # Without that machine one is rented for the node, beside the one that is left.
    service.on("GET", "/api/v1/instances/", Reply({"instances": [left]}))
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    rented = machine.present(clouds, asked, progress=told.append)
    assert rented.rented and service.calls("DELETE") == []
    assert [call.body["label"] for call in service.calls("PUT")] == ["gpuyard/miniprover-0/miniprover/search-0"]
