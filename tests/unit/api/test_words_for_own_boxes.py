"""X7: what is said of boxes of the user's own fits boxes that cost nothing and that nobody ends."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from gpuyard import market, records
from gpuyard.api import closing, end, follow
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError
from gpuyard.formats.label import RunRef
from gpuyard.formats.manifest import Manifest
from gpuyard.providers.base import OWN, Instance, Offer, State, Way
from gpuyard.renting import machine
from gpuyard.renting.runs import Run

OF_RENTED_ONES = re.compile(r"\b(bills?|destroy\w*|rent(s|ed|al|ing)?|price)\b", re.IGNORECASE)
BOX = Instance(
    provider=OWN,
    id="tower-a1b2c3",
    label="gpuyard/prover-0/prover/main-0",
    ref=RunRef("prover-0", "prover"),
    state=State.RUNNING,
    status_text="claimed",
    region="",
    gpu_name="RTX 4090",
    gpu_count=1.0,
    gpu_ram_gb=24.0,
    market="on-demand",
    price_per_hour_usd=0.0,
    ssh_host="192.0.2.7",
    machine_id="tower",
    way=Way("tower"),
)
RENTED = dataclasses.replace(BOX, provider="vast", id="17", price_per_hour_usd=0.4, way=None)


def fits(*texts: str) -> None:
    assert not [text for text in texts if OF_RENTED_ONES.search(text)]


class World:
    """A run on one own box whose stages end as a test says; only what following it to that end asks for."""

    def __init__(self, **end: Any) -> None:
        self.stages = [{"event": "end", **end}]

    def run(self, name: str) -> Run:
        return Run(name, "prover", (BOX,))

    def records(self, _instance: Instance) -> Any:
        yield from self.stages

    def how_it_ended(self, whose: str, _instance: Instance, state: str) -> str:
        return f"{whose} is {state}."

    def last_checkpoint(self, _name: str) -> Manifest | None:
        return None


def followed(world: Any, told: list[str]) -> str:
    try:
        return follow.follow_in(world, follow.Follow("prover-0"), progress=told.append).text
    except GpuyardError as error:
        return str(error)


@pytest.mark.parametrize("state", ["finished", "failed", "waiting"])
def test_following(state: str) -> None:
    told: list[str] = []
    text = followed(World(state=state, waits_for="search" if state == "waiting" else ""), told)
    fits(text, *told)
    assert told[0] == "Following run prover-0; Ctrl-C ends the following only: the run goes on."
    assert "cost" in text and "frees" in text


@pytest.mark.parametrize("got", [False, True])
@pytest.mark.parametrize("why", ["shutdown", "hand_over", "unfit"])
def test_a_launch_that_fails(monkeypatch: pytest.MonkeyPatch, why: str, got: bool) -> None:
    monkeypatch.setattr(end, "end", lambda *_, **__: end.Change(True))
    failure: dict[str, Any] = {why: True, "rented": got, "own": True}
    text = closing.give_up(
        Site(), closing.Failure("prover-0", "Start the stages", "main-0", **failure), progress=lambda _: None
    ).text
    fits(text)
    assert ("is free again" if got else "frees it") in text


def test_a_launch_that_nobody_follows() -> None:
    fits(*closing.left_alone("prover-0", ["running"], 2, 0.0))


def test_the_end() -> None:
    fits(machine.costs(BOX), machine.end_verb(BOX), *machine.ended([BOX]), machine.following("prover-0", [BOX]))
    assert machine.ended([BOX, RENTED]) == [
        f"Free again: {machine.describe(BOX)}.",
        f"Destroyed, and confirmed gone: {machine.describe(RENTED)}.",
    ]
    assert machine.costs(RENTED) == "bills 0.4000 USD an hour"
    assert "its machine bills" in machine.following("prover-0", [BOX, RENTED])


@pytest.mark.parametrize("state", ["running", "finished", "failed", "idle", "unreachable"])
def test_status(state: str) -> None:
    run = Run("prover-0", "prover", (BOX,), stages={"main-0": {"state": state}})
    fits(*records.run_table([run]))
    both = records.run_table([run, Run("other-0", "prover", (RENTED,))])
    assert "the clouds' own bills count" in both[-1]


def test_offers() -> None:
    tower = Offer(
        provider=OWN, id="tower", region="", gpu_name="RTX 4090", market="on-demand", price_per_hour_usd=0.0,
        gpu_count=1.0, gpu_ram_gb=24.0, cpu_cores=8.0, ram_gb=32.0, disk_gb=100.0,
    )  # fmt: skip
    desk = dataclasses.replace(tower, id="desk")
    rented = dataclasses.replace(tower, provider="vast", id="17", price_per_hour_usd=0.4)
    fits(*market.explain([market.Verdict(tower, ()), market.Verdict(desk, ())]))
    taken, following, *_ = market.explain([market.Verdict(rented, ()), market.Verdict(tower, ())])
    assert "own tower" in taken and "costs nothing" in taken
    assert following.endswith("$0.4000/h.")
