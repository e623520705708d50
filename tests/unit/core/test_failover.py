"""From one offer to the next: limits, what is stuck, disks that are full (U10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.config import SshKey
from gpuyard.errors import DiskFullError, NoCapacityError, UnreachableError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, Offer, State
from gpuyard.providers.vast import Vast
from gpuyard.renting import machine, ready, rent

from .conftest import SSH_KEY, FakeTime, a_spec, an_offer
from .standin import Reply, Request, Standin

LABEL = "gpuyard/miniprover-0/miniprover"
KEY = SshKey(Path("/keys/id"), SSH_KEY)
TOO_MUCH = "no space left on device"


class Clouds:
    """Stands for the clouds: keeps what was asked for, and lets machines fail as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: FakeTime) -> None:
        self.asked: list[tuple[str, float, float]] = []  # offer, disk, price
        self.clock = clock
        self.error: Callable[[str], Exception | None] = lambda _: UnreachableError("It never answers.")
        monkeypatch.setattr(rent, "_create", self.create)
        monkeypatch.setattr(rent, "_check_has_none", lambda *_: None)

    def create(self, _provider: object, offer: Offer, spec: Any, *_: object) -> Instance:
        self.asked.append((offer.id, spec.disk_gb, round(offer.price_per_hour_usd, 4)))
        return Instance(
            provider="vast",
            id=offer.id,
            label=LABEL,
            ref=RunRef("miniprover-0", "miniprover"),
            state=State.PENDING,
            status_text="",
            region="",
            gpu_name="A16",
            gpu_count=1.0,
            gpu_ram_gb=16.0,
            market="on-demand",
            price_per_hour_usd=offer.price_per_hour_usd,
        )

    def make_usable(self, instance: Instance) -> Instance:
        self.clock.sleep(600)
        if error := self.error(instance.id):
            raise error
        return instance

    def rent(
        self, offers: list[Offer], told: list[str] | None = None, spent: rent.Spent | None = None, **limits: Any
    ) -> Instance:
        provider: Any = type("Named", (), {"name": "vast", "sandbox": ""})()
        return rent.rent(
            [provider],
            offers,
            a_spec(disk_gb=20.0),
            limits=rent.Limits(**limits),
            spent=spent,
            make_usable=self.make_usable,
            clock=pace.Clock(sleep=self.clock.sleep, now=self.clock.clock, date=self.clock.clock),
            progress=(told if told is not None else []).append,
        )


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch, fake_time: FakeTime) -> Clouds:
    return Clouds(monkeypatch, fake_time)


OFFERS = [an_offer(id=str(number), price_per_hour_usd=0.6) for number in range(1, 20)]


@pytest.mark.parametrize(
    ("limits", "tried", "words"),
    [
        ({}, 8, "limits.attempts=8 is reached"),
        ({"attempts": 2}, 2, "limits.attempts=2 is reached"),
        ({"attempts": 12}, 12, "limits.attempts=12 is reached"),
        ({"seconds": 1500.0}, 3, "limits.minutes=25 is reached after 30.0 minutes"),
        # Ten minutes of each machine cost 10 cents.
        ({"usd": 0.35}, 4, r"limits.usd=0.35 is reached: \$0.4000 were paid for machines that went back"),
    ],
)
def test_each_limit_ends_the_search_and_is_named(
    clouds: Clouds, limits: dict[str, Any], tried: int, words: str
) -> None:
    with pytest.raises(UnreachableError, match=words) as caught:
        clouds.rent(OFFERS, **limits)
    assert [offer for offer, _, _ in clouds.asked] == [str(number) for number in range(1, tried + 1)]
    assert "It never answers." in str(caught.value) and str(caught.value).endswith("Nothing is rented.")


def test_u10_after_a_full_disk_the_next_machine_has_a_larger_one(clouds: Clouds) -> None:
    errors = {"1": DiskFullError("Full."), "3": DiskFullError("Full."), "4": None}
    clouds.error = errors.__getitem__
    offers = [
        an_offer(id="1", price_per_hour_usd=0.41, disk_price_per_hour_usd=0.01),
        an_offer(id="2", disk_gb=30.0),
        an_offer(id="3", price_per_hour_usd=0.42, disk_price_per_hour_usd=0.02, disk_gb=60.0),
        an_offer(id="small", disk_gb=79.0),
        an_offer(id="dear", price_per_hour_usd=0.48, disk_price_per_hour_usd=0.01),
        an_offer(id="4", price_per_hour_usd=0.47, disk_price_per_hour_usd=0.01),
    ]
    told: list[str] = []
    assert clouds.rent(offers, told, max_price_per_hour_usd=0.5).id == "4"
    assert clouds.asked == [("1", 20.0, 0.41), ("3", 40.0, 0.44), ("4", 80.0, 0.5)]
    assert "The next machine is to have a disk of 40 GB." in told


def test_u10_what_an_earlier_launch_took_counts_towards_the_limits(clouds: Clouds) -> None:
    spent = rent.Spent(attempts=7, usd=0.1, seconds=600.0)
    with pytest.raises(UnreachableError):
        clouds.rent(OFFERS, spent=spent)
    assert len(clouds.asked) == 1 and spent.attempts == 8 and spent.usd > 0.1 and spent.seconds > 600
    for limits in ({"usd": 0.1}, {"seconds": 600.0}):
        with pytest.raises(NoCapacityError, match="No offer was tried, since limits"):
            clouds.rent(OFFERS, spent=dataclasses.replace(spent, attempts=0), **limits)
    assert len(clouds.asked) == 1


def test_u10_when_no_offer_has_a_larger_disk_that_is_said(clouds: Clouds) -> None:
    clouds.error = lambda _: DiskFullError("Full.")
    with pytest.raises(UnreachableError, match=r"since no further offer that fits has 40 GB of disk\. Nothing"):
        clouds.rent([an_offer(id="1"), an_offer(id="2", disk_gb=39.0)])
    assert len(clouds.asked) == 1


def test_the_last_refusal_decides_which_error_it_is(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> Instance:
        raise NoCapacityError("Gone.", provider="vast")

    monkeypatch.setattr(rent, "_create", gone)
    with pytest.raises(NoCapacityError, match=r"limits\.attempts=2 is reached"):
        clouds.rent(OFFERS, attempts=2)


# -- against the cloud's own answers -----------------------------------------------------------------------------------


class Host:
    """Vast with two machines, of which the first never comes up."""

    def __init__(self, service: Standin, first: dict[str, Any]) -> None:
        self.rented: list[dict[str, Any]] = []
        self.gone: set[str] = set()
        self.first = first
        service.on("GET", "/api/v0/ssh/", Reply([{"public_key": SSH_KEY}]))
        service.on("GET", "/api/v1/instances/", self.listed)
        service.on("PUT", "/api/v0/asks/", self.create)
        for number in (1, 2):
            service.on("GET", f"/api/v0/instances/{number}/", self.shown)
            service.on("DELETE", f"/api/v0/instances/{number}/", self.destroy)

    def row(self, number: int) -> dict[str, Any]:
        state = self.first if number == 1 else {"actual_status": "running", "cur_state": "running"}
        return {"id": number, "label": LABEL, "ssh_host": "ssh5.vast.ai", "ssh_port": 1, "dph_total": 0.4, **state}

    def alive(self) -> list[int]:
        return [number for number in range(1, len(self.rented) + 1) if str(number) not in self.gone]

    def create(self, request: Request) -> Reply:
        self.rented.append(request.body)
        return Reply({"success": True, "new_contract": len(self.rented)})

    def listed(self, _: Request) -> Reply:
        return Reply({"instances": [self.row(number) for number in self.alive()]})

    def shown(self, request: Request) -> Reply:
        number = int(request.path.rstrip("/").rpartition("/")[2])
        return Reply({"instances": self.row(number) if number in self.alive() else None})

    def destroy(self, request: Request) -> Reply:
        self.gone.add(request.path.rstrip("/").rpartition("/")[2])
        return Reply({"success": True})


@pytest.mark.parametrize(
    ("first", "disks", "words"),
    [
        ({"actual_status": "loading"}, [20.0, 20.0], "was not ready after 5 s; it last was loading"),
        ({"actual_status": "loading", "status_msg": f"failed to register layer: {TOO_MUCH}"}, [20.0, 40.0], TOO_MUCH),
    ],
)
def test_u10_what_is_stuck_goes_back_confirmed_and_the_next_offer_is_taken(
    vast: Vast,
    service: Standin,
    fake_time: FakeTime,
    monkeypatch: pytest.MonkeyPatch,
    first: dict[str, Any],
    disks: list[float],
    words: str,
) -> None:
    host = Host(service, first)
    clock = pace.Clock(sleep=fake_time.sleep, now=fake_time.clock, date=fake_time.clock)
    wait = ready.wait_ready
    monkeypatch.setattr(ready, "wait_ready", lambda *a, **o: wait(*a, **o, clock=clock))
    monkeypatch.setattr(ready, "wait_ssh", lambda *_, **__: "SHA256:x")
    told: list[str] = []
    order = machine.Order(
        run="miniprover-0",
        workload="miniprover",
        offers=lambda: [an_offer(id="71", machine_id="a"), an_offer(id="72", machine_id="b")],
        key=KEY,
        disk_gb=20.0,
        loading_s=5.0,
        clock=clock,
    )
    outcome = machine.present([vast], order, progress=told.append)
    assert outcome.instance and outcome.instance.id == "2"
    assert host.gone == {"1"} and [body["disk"] for body in host.rented] == disks
    assert any(words in line and line.endswith("Giving it back.") for line in told)


def test_a_bid_with_a_larger_disk_stays_what_it_was() -> None:
    offer = an_offer(market="interruptible", price_per_hour_usd=0.13, disk_price_per_hour_usd=0.01, least_bid_usd=0.1)
    larger = rent.with_disk(offer, 20.0, 40.0)
    assert (larger.bid_usd, larger.price_per_hour_usd) == pytest.approx((0.12, 0.14))
    assert dataclasses.replace(larger, price_per_hour_usd=0, disk_price_per_hour_usd=0) == dataclasses.replace(
        offer, price_per_hour_usd=0, disk_price_per_hour_usd=0
    )
