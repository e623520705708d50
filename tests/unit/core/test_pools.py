"""Runs whose pools take turns: which box comes next, what moving costs and saves, and what is rented for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gpuyard.errors import NoOfferError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.formats.manifest import Manifest
from gpuyard.planning import pools
from gpuyard.providers.base import Instance, State
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload

from .conftest import an_offer

HOURS = {"expected": 1.0, "worst": 2.0}


def a_workload(stages: list[dict[str, Any]] | None = None, **changes: Any) -> Workload:
    """Return a workload that trains on demand on a large GPU, and searches on whatever there is."""
    values: dict[str, Any] = {
        "name": "turns",
        "repository": {"path": "tree"},
        "pools": {
            "train": {"needs": {"gpu_ram_gb": 80, "disk_gb": 50}, "market": "on-demand"},
            "search": {"needs": {"gpu_ram_gb": 8, "cpu_cores": 16}, "market": "interruptible"},
        },
        "iterations": 2,
        "setup_hours": {"expected": 0.1, "worst": 0.5},
        "stages": stages
        or [
            {"name": "finetune", "command": "true", "pool": "train", "hours": HOURS},
            {"name": "export", "command": "true", "pool": "train", "hours": {"expected": 0.5, "worst": 0.5}},
            {"name": "search", "command": "true", "pool": "search", "hours": {"expected": 4.0, "worst": 6.0}},
        ],
        **changes,
    }
    return Workload.model_validate(values)


def market_of(prices: Mapping[tuple[str, ...], float | Exception]) -> Callable[[tuple[str, ...]], pools.Box]:
    """Return a market with one offer for each group of pools."""

    def find(group: tuple[str, ...]) -> pools.Box:
        price = prices[group]
        if isinstance(price, Exception):
            raise price
        return pools.Box(group, [an_offer(id="-".join(group), price_per_hour_usd=price)])

    return find


def choose(workload: Workload, prices: Mapping[tuple[str, ...], float | Exception], **how: Any) -> pools.Choice:
    left = pools.left_of(workload, how.pop("done", ()))
    return pools.choose(workload, left, market_of(prices), **{"pool": "train", "followed": True, **how})


DEAR = {("train",): 2.0, ("search",): 0.2, ("train", "search"): 2.0}


def test_moving_is_taken_where_it_saves_more_than_it_costs_b2() -> None:
    """B2: every sum by hand: 2 × 1.5 h of training at 2.00, 2 × 4 h of search at 0.20, three hand-overs."""
    choice = choose(a_workload(), DEAR)
    way = choice.taken
    assert [box.pools for box in way.boxes] == [("train",), ("search",)]
    assert (way.moves, choice.turn_pools, choice.first.pools) == (3, ("train",), ("train",))
    (train, search) = way.by_box
    # The first box's set-up of 0.1 h is its own.
    assert (train[0].expected, train[0].worst) == (pytest.approx(3.1), pytest.approx(5.5))
    assert (train[1].expected, search[1].expected) == (pytest.approx(6.2), pytest.approx(1.6))
    # While a new box is set up the old one is paid for, too.
    assert (way.moving[0].expected, way.moving[0].worst) == (pytest.approx(0.3), pytest.approx(1.5))
    assert way.moving[1].expected == pytest.approx(3 * 0.1 * 2.2)
    assert (way.hours.expected, way.dollars.expected) == (pytest.approx(11.4), pytest.approx(6.2 + 1.6 + 0.66))
    assert choice.other is not None and choice.other.dollars.expected == pytest.approx(11.1 * 2.0)
    text = "\n".join(choice.text())
    assert "3 hand-overs cost $0.6600 and 0.300 h, and in all it saves $13.74 against one machine" in text
    assert "in all" in text and "3 hand-overs  " in text
    shown = choice.to_dict()
    assert (shown["taken"]["moves"], shown["taken"]["moving"]["usd"]["expected"]) == (3, pytest.approx(0.66))
    assert shown["other"]["boxes"][0]["pools"] == ["train", "search"]


def test_one_machine_is_taken_where_moving_costs_more_than_it_saves() -> None:
    prices = {("train",): 2.0, ("search",): 1.9, ("train", "search"): 2.0}
    choice = choose(a_workload(setup_hours={"expected": 1.0, "worst": 1.0}), prices)
    assert (len(choice.taken.boxes), choice.taken.moves, choice.turn_pools) == (1, 0, ())
    assert choice.other is not None and choice.other.moves == 3
    assert choice.reason == (
        "One machine runs all stages, for $24.00 in all: moving would come to $34.90, of which 3 hand-overs cost "
        "$11.70 and 3.00 h."
    )


def test_the_order_of_the_stages_that_are_left_decides_how_often_the_run_moves() -> None:
    workload = a_workload()
    done = {(0, "finetune"), (0, "export"), (0, "search"), (1, "finetune"), (1, "export")}
    choice = choose(workload, {**DEAR, ("search",): 0.2}, done=done, pool="search")
    # One pool is left, so there is nothing to move between, and the box serves every stage.
    assert ([box.pools for box in choice.taken.boxes], choice.turn_pools) == ([("search",)], ())
    assert choice.reason == "One machine runs all stages that are left."


def test_pools_share_a_box_where_that_is_cheaper() -> None:
    stages = [
        {"name": name, "command": "true", "pool": name, "hours": {"expected": hours, "worst": hours}}
        for name, hours in (("train", 2.0), ("export", 0.01), ("search", 9.0))
    ]
    workload = a_workload(stages, pools={"train": {}, "export": {}, "search": {}}, iterations=1)
    prices = {
        ("train",): 2.0,
        ("export",): 1.0,
        ("search",): 0.2,
        ("train", "export"): 2.0,
        ("train", "search"): 2.0,
        ("export", "search"): 1.0,
        ("train", "export", "search"): 2.0,
    }
    choice = choose(workload, prices)
    assert [box.pools for box in choice.taken.boxes] == [("train", "export"), ("search",)]
    assert (choice.taken.moves, choice.turn_pools) == (1, ("train", "export"))


def test_with_many_pools_only_the_two_ends_are_looked_at() -> None:
    names = ("a", "b", "c", "d")
    stages = [{"name": name, "command": "true", "pool": name, "hours": HOURS} for name in names]
    asked = []

    def find(group: tuple[str, ...]) -> pools.Box:
        asked.append(group)
        return pools.Box(group, [an_offer()])

    workload = a_workload(stages, pools={name: {} for name in names})
    pools.choose(workload, pools.left_of(workload, ()), find, pool="a", followed=True)
    assert sorted(asked) == sorted([names, *((name,) for name in names)])


def test_without_hours_nobody_can_say_that_moving_saves() -> None:
    stages = [
        {"name": "finetune", "command": "true", "pool": "train"},
        {"name": "search", "command": "true", "pool": "search", "hours": HOURS},
    ]
    choice = choose(a_workload(stages), DEAR)
    assert len(choice.taken.boxes) == 1 and "nobody can say that moving saves" in choice.reason
    assert "no hours for finetune" in "\n".join(choice.text())
    # Where no one machine can do it, the run moves all the same.
    apart = choose(a_workload(stages), {**DEAR, ("train", "search"): UsageError("They differ. Nothing was rented.")})
    assert apart.turn_pools == ("train",)
    assert apart.reason == "The run moves, since no one machine can run all its stages: They differ."


def test_nobody_follows_and_one_machine_does_it_all() -> None:
    choice = choose(a_workload(), DEAR, followed=False)
    assert (choice.turn_pools, choice.other) == ((), None)
    assert "nobody follows the run: -e follow=true may move it" in choice.reason
    with pytest.raises(NoOfferError, match=r"^Pools train, search: No offer fits"):
        choose(a_workload(), {**DEAR, ("train", "search"): NoOfferError("No offer fits.")}, followed=False)


def test_a_pool_without_an_offer_is_named_also_when_its_turn_is_later() -> None:
    none = NoOfferError("No offer fits.")
    with pytest.raises(NoOfferError, match=r"^Pool search: No offer fits"):
        choose(a_workload(), {("train",): 2.0, ("search",): none, ("train", "search"): none})


# --- which box is the run's ---


def a_box(number: int, node: str, **changes: Any) -> Instance:
    values: dict[str, Any] = {
        "provider": "vast",
        "id": str(number),
        "label": "",
        "ref": RunRef("turns-0", "turns", node),
        "state": State.RUNNING,
        "status_text": "",
        "region": "",
        "gpu_name": "A100",
        "gpu_count": 1.0,
        "gpu_ram_gb": 80.0,
        "market": "on-demand",
        "price_per_hour_usd": 1.0,
        "created_at": 1000.0 + number,
        **changes,
    }
    return Instance(**values)


def a_run(*boxes: Instance, outcome: str | None = None, done: list[list[Any]] | None = None) -> Run:
    progress = {"iteration": 0, "stage": "search", "done": done or [], "finished": False, "outcome": outcome}
    manifest = Manifest("turns-0", 3, "2026-01-01T00:00:00Z", (), progress)
    return Run("turns-0", "turns", boxes, manifest=manifest)


TRAINED = [[0, "finetune"], [0, "export"]]


@pytest.mark.parametrize(
    ("boxes", "outcome", "machine", "behind"),
    [
        # It is at work.
        ([(1, "train-0")], None, "1", []),
        # It waits, and nothing is rented yet.
        ([(1, "train-0")], "waiting", None, ["1"]),
        # The next one was rented, and then the controller was killed.
        ([(1, "train-0"), (2, "search-0")], "waiting", "2", ["1"]),
        # The next one has published already.
        ([(1, "train-0"), (2, "search-0")], None, "2", ["1"]),
        # The next one is there, and the one that waited has ended.
        ([(2, "search-0")], "waiting", "2", []),
        # Both are gone.
        ([], "waiting", None, []),
        # One for all stages, which nobody followed.
        ([(1, "main-0")], None, "1", []),
    ],
)
def test_what_a_killed_controller_leaves_is_understood(
    boxes: list[tuple[int, str]], outcome: str | None, machine: str | None, behind: list[str]
) -> None:
    run = a_run(*(a_box(*box) for box in boxes), outcome=outcome, done=TRAINED)
    turn = pools.turn_of(run, a_workload())
    assert (turn.machine.id if turn.machine else None, [one.id for one in turn.behind]) == (machine, behind)
    assert (turn.pool, turn.waits) == ("search", outcome == "waiting")


def test_a_lost_box_is_neither_gone_on_with_nor_left() -> None:
    lost = a_box(2, "search-0", state=State.PREEMPTED)
    turn = pools.turn_of(a_run(a_box(1, "train-0"), lost, outcome="waiting", done=TRAINED), a_workload())
    assert (turn.machine, [one.id for one in turn.behind]) == (None, ["1"])


def test_which_pools_a_box_serves_that_has_not_been_told() -> None:
    workload = a_workload()
    assert pools.pools_of(a_box(1, "train-0"), workload, followed=False) == ("train",)
    assert pools.pools_of(a_box(1, "main-0"), workload, followed=True) == ()
    stages = [{"name": "a", "command": "true"}, {"name": "b", "command": "true", "pool": "search"}]
    named = a_workload(stages, pools={"main": {}, "search": {}})
    assert pools.pools_of(a_box(1, "main-0"), named, followed=True) == ("main",)
    assert pools.pools_of(a_box(1, "main-0"), named, followed=False) == ()


def test_pools_take_turns_only_where_each_has_one_node() -> None:
    assert pools.takes_turns(a_workload())
    wide = a_workload(pools={"train": {}, "search": {"nodes": 2}})
    assert not pools.takes_turns(wide)
    one = [{"name": "a", "command": "true", "pool": "train"}]
    assert not pools.takes_turns(a_workload(one))
