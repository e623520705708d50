"""Two controllers that rent for one run at the same moment: one machine stays, and both commands say so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import GpuyardError, LeakError, UnreachableError, UsageError
from gpuyard.renting import ledger, machine, ready
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

from .conftest import FakeTime, an_offer
from .standin import Reply, Request, Standin
from .test_rent import VULTR_ROW, clouds, row
from .test_unanswered import TAGS, order

__all__ = ["clouds"]

NOON = "2026-03-01T12:00:00+00:00"
NOON_S = 1772366400.0


class Market:
    """Both clouds, where the other controller has rented at Vultr at noon; each lists a machine when it is told to."""

    def __init__(self, service: Standin) -> None:
        self.ours: float | None = NOON_S  # when our machine at Vast was made, as Vast says
        self.listed = True  # ours
        self.rival: dict[str, Any] | None = None
        self.rented: list[str] = []
        self.seen_after_looks = 0  # the rival is listed only from that look on
        self.looks = 0
        service.on("PUT", "/api/v0/asks/", self.rent)
        service.on("GET", "/api/v1/instances/", self.vast)
        service.on("GET", "/api/v0/instances/7/", self.one)
        service.on("DELETE", "/api/v0/instances/7/", self.destroy)
        service.on("GET", "/instances", self.vultr)

    def row(self) -> dict[str, Any]:
        return row(7, start_date=self.ours)

    def rent(self, _request: Request) -> Reply:
        self.rented.append("7")
        return Reply({"success": True, "new_contract": 7})

    def vast(self, _request: Request) -> Reply:
        return Reply({"instances": [self.row()] if self.rented and self.listed else []})

    def one(self, _request: Request) -> Reply:
        return Reply({"instances": self.row() if self.rented else None})

    def destroy(self, _request: Request) -> Reply:
        self.rented.clear()
        return Reply({"success": True})

    def vultr(self, _request: Request) -> Reply:
        if self.rented:
            self.looks += 1
        shown = self.rival and self.rented and self.looks > self.seen_after_looks
        return Reply({"instances": [{**VULTR_ROW, "tags": TAGS, **self.rival}] if shown and self.rival else []})


@pytest.fixture
def market(service: Standin, clouds: list[Any]) -> Market:
    return Market(service)


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine answers over SSH."""
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: "SHA256:x")


def launch(clouds: list[Any], fake_time: FakeTime, told: list[str], **changes: Any) -> machine.Outcome:
    """Rent at Vast as one of two commands does, the other cloud not asked for."""
    asked = order(None, fake_time, told, **{"wait": True, "everywhere": clouds, **changes})
    return machine.present(clouds[:1], asked, progress=told.append)


@pytest.mark.parametrize("seen_after_looks", [0, 1], ids=["at once", "when it is usable"])
def test_the_younger_machine_goes_back_and_its_command_says_so(
    clouds: list[Any],
    service: Standin,
    market: Market,
    fake_time: FakeTime,
    seen_after_looks: int,
    tmp_path: Path,
) -> None:
    market.rival, market.seen_after_looks = {"date_created": NOON}, seen_after_looks
    market.ours = NOON_S + 1
    store = LocalStore(tmp_path)
    told: list[str] = []
    sentence = (
        "Run miniprover-0 got vultr v-1 from another command at the same moment; vast 7, rented by this one, has gone "
        "back. Run the same command again, without provider=, to go on with vultr v-1."
    )
    with pytest.raises(UsageError) as caught:
        launch(clouds, fake_time, told, ledger=Ledger(Notebook(lambda: store), told.append, fake_time.clock))
    assert str(caught.value) == sentence
    assert market.rented == []
    assert not service.calls("DELETE", "/instances")
    (entry,) = ledger.entries(store, "miniprover-0")
    assert entry.ended


def test_the_older_machine_stays_and_its_command_says_so(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    market.rival, market.ours = {"date_created": NOON}, NOON_S - 1
    told: list[str] = []
    outcome = launch(clouds, fake_time, told)
    assert outcome.instance and outcome.instance.id == "7" and market.rented == ["7"]
    assert not service.calls("DELETE")
    about = [line for line in told if "vultr v-1" in line]
    assert "younger and goes back; this command goes on with vast 7" in about[0]
    # It has not gone by the end, so it is named with the place where it can be ended.
    assert "both bill" in about[-1] and "https://my.vultr.com/" in about[-1]


def test_a_machine_that_has_gone_back_unseen_is_told_too(
    clouds: list[Any], market: Market, fake_time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command may have given its machine back between two looks of this one; the bucket knows of it."""
    store = LocalStore(tmp_path)
    told: list[str] = []

    def answers(*_args: object, **_options: object) -> str:
        """Let the other command rent and give back while this one waits for SSH."""
        other = dataclasses.replace(clouds[1]._instance({**VULTR_ROW, "tags": TAGS}), created_at=None)
        book = Ledger(Notebook(lambda: store), told.append, fake_time.clock)
        book.rented(other)
        book.ended(other, fake_time.clock())
        return "SHA256:x"

    monkeypatch.setattr(ready, "wait_ssh", answers)
    market.ours = None
    assert launch(
        clouds, fake_time, told, ledger=Ledger(Notebook(lambda: store), told.append, fake_time.clock)
    ).instance
    (line,) = [one for one in told if "another command" in one]
    assert "vultr v-1" in line and "has gone back; this command goes on with vast 7" in line


def test_two_commands_never_both_keep_theirs(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    """Of the same second, the clouds' names decide; a machine of unknown age is the younger one."""
    told: list[str] = []
    market.rival = {"date_created": NOON}
    assert launch(clouds, fake_time, told).instance
    market.rented.clear()
    market.ours = None
    with pytest.raises(UsageError, match="has gone back"):
        launch(clouds, fake_time, told)
    # What the list does not show yet, the machine itself may say.
    market.ours, market.listed = NOON_S - 1, False
    assert launch(clouds, fake_time, told, wait=False).instance
    market.rented.clear()
    market.ours, market.rival = None, {"date_created": ""}
    assert launch(clouds, fake_time, told, wait=False).instance  # "vast" comes before "vultr"


def test_only_a_new_machine_that_is_at_work_is_a_rival(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    told: list[str] = []
    for harmless in ({"status": "suspended"}, {"tags": ["gpuyard", "run:other-0", "workload:other"]}):
        market.rival = {"date_created": NOON, **harmless}
        market.ours = NOON_S + 1
        assert launch(clouds, fake_time, told).instance
        market.rented.clear()
    assert not any("another command" in line for line in told)


def test_a_cloud_that_does_not_answer_now_is_told_and_keeps_nobody(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    service.on("GET", "/instances", Reply({"error": "down"}, 503))
    told: list[str] = []
    assert launch(clouds, fake_time, told).instance
    assert len([line for line in told if "vultr does not answer now" in line]) == 2


def test_a_younger_machine_that_cannot_be_given_back_is_named(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    market.rival, market.ours = {"date_created": NOON}, NOON_S + 1
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": False, "error": "x", "msg": "no"}, 400))
    with pytest.raises(LeakError, match="instance 7 could not be confirmed destroyed"):
        launch(clouds, fake_time, [])


def test_a_machine_given_back_by_this_command_is_no_rival(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list may show it a moment longer."""
    told: list[str] = []
    seen: list[set[str]] = []
    monkeypatch.setattr(machine.rivals, "settle", lambda _clouds, _mine, known, **_options: seen.append(set(known)))

    def unusable(*_args: Any, **_options: Any) -> str:
        raise UnreachableError("vast instance 7 did not answer.")

    monkeypatch.setattr(ready, "wait_ssh", unusable)
    with pytest.raises(GpuyardError):
        launch(clouds, fake_time, told, offers=lambda: [an_offer(), an_offer(id="2")])
    assert seen == [set(), {"7"}]


def test_a_run_that_has_two_machines_already_is_not_gone_on_with(
    clouds: list[Any], service: Standin, market: Market, fake_time: FakeTime
) -> None:
    """Not even when only the cloud of one of them is asked for."""
    market.rented, market.rival = ["7"], {"date_created": NOON}
    with pytest.raises(LeakError, match=r"vast 7.*vultr v-1"):
        launch(clouds, fake_time, [])
    market.rented, market.rival = ["7"], None
    service.on("GET", "/instances", Reply({"error": "down"}, 503))
    told: list[str] = []
    assert launch(clouds, fake_time, told).instance
    assert any("vultr was not asked for and does not answer" in line for line in told)
