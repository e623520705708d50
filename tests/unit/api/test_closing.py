"""What becomes of a launch's machine, and what is said of it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from gpuyard.api import closing, end
from gpuyard.api.site import Site
from gpuyard.errors import NotSavedError
from gpuyard.renting import ending, rent


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[ending.Order]:
    """Return what was ordered to end; nothing is asked anywhere."""
    made: list[ending.Order] = []

    def ended(_site: Site, order: ending.Order, **_options: Any) -> end.Change:
        made.append(order)
        return end.Change(True)

    monkeypatch.setattr(end, "end", ended)
    return made


def give_up(**changes: Any) -> str:
    failure = closing.Failure(**{"run": "a-0", "task": "Start the stages", "node": "search-0", **changes})
    return closing.give_up(Site(), failure, progress=lambda _: None).text


@pytest.mark.parametrize(
    ("changes", "ends", "words"),
    [
        (
            {"rented": True},
            False,
            "The machine is kept, and bills: `ansible-playbook launch.yml -e run=a-0` tries again",
        ),
        ({"shutdown": True}, False, "The machine is kept, and bills"),
        ({"hand_over": True}, False, "The machine is kept, and bills"),
        ({"rented": True, "shutdown": True}, True, "The machine is destroyed, as shutdown=true asks for."),
        ({"unfit": True}, False, "The machine is kept, and bills"),
        (
            {"rented": True, "unfit": True},
            True,
            "since it cannot do the work: `ansible-playbook launch.yml -e run=a-0`",
        ),
        ({"rented": True, "hand_over": True}, True, "The new machine is destroyed: no stage had begun on it."),
        ({"rented": True, "hand_over": True, "shutdown": True}, True, "The new machine is destroyed"),
    ],
)
def test_only_a_new_machine_that_nobody_waits_for_is_given_back(
    orders: list[ending.Order], changes: dict[str, Any], ends: bool, words: str
) -> None:
    told = give_up(**changes)
    assert told.startswith('"Start the stages" failed, as shown above. ') and words in told
    # No other machine of the run, and that one only as long as nothing has begun on it.
    assert orders == ([ending.Order("a-0", only="not-begun", node="search-0")] if ends else [])


def test_a_machine_that_has_to_be_kept_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> end.Change:
        raise NotSavedError("Nothing is destroyed: The stages have begun on vast 17 (running).")

    monkeypatch.setattr(end, "end", refuse)
    assert give_up(rented=True, shutdown=True) == (
        '"Start the stages" failed, as shown above. Nothing is destroyed: The stages have begun on vast 17 (running).'
    )


@pytest.mark.parametrize(
    ("state", "does"),
    [
        ("finished", "has finished"),
        ("failed", "has failed"),
        ("waiting", "waits for a machine of another pool"),
        ("running", "is at work"),
        ("", "is at work"),
    ],
)
def test_a_launch_that_nobody_follows_says_what_bills_f3(state: str, does: str) -> None:
    """F3: launch returns at once, and says where the log is and what ends the rental."""
    first, second, third = closing.left_alone("a-0", [state] if state else [], 1, 0.25)
    assert first == f"Run a-0 {does}. Its log: ansible-playbook logs.yml -e run=a-0"
    assert "0.2500 USD an hour, also when the run has ended" in second
    assert third == "ansible-playbook teardown.yml -e run=a-0"


def test_a_launch_that_leaves_the_end_to_the_machine_says_so_u9() -> None:
    second = closing.left_alone("a-0", ["running"], 1, 0.25, True)[1]
    assert "it ends by itself at Vast and RunPod, elsewhere by ansible-playbook reap.yml" in second


def test_a_run_that_has_not_begun_is_launched_again_with_its_layers(orders: list[ending.Order]) -> None:
    told = give_up(rented=True, layers={"profile": "small,h100", "overrides": "epochs=1"})
    assert "`ansible-playbook launch.yml -e run=a-0 -e profile=small,h100 -e overrides=epochs=1` tries again" in told
    told = give_up(rented=True, layers={"overrides": "note=it's *new*"})
    words = told.partition("`")[2].partition("`")[0]
    assert shlex.split(words)[-1] == '{"overrides": "note=it\'s *new*"}'


FULL = {"rented": True, "disk_full": True, "disk_gb": 20.0, "price_per_hour_usd": 3.6}


def test_u10_a_machine_whose_disk_is_full_goes_and_the_launch_begins_anew_with_twice_the_disk(
    orders: list[ending.Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took counts: the next launch holds the same limits."""
    monkeypatch.setattr(closing.time, "time", lambda: 1100.0)
    launched: list[tuple[str, dict[str, Any]]] = []

    def play(name: str, options: dict[str, Any], **_: Any) -> int:
        launched.append((name, options))
        return 0

    spent = rent.Spent(attempts=2, usd=0.5, seconds=60.0, rented_at=1000.0)
    failure = closing.Failure("a-0", "Have Rust", "main-0", **FULL, spent=spent, options={"market": "any"})
    lines: list[str] = []
    done = closing.give_up(Site(), failure, play=play, progress=lines.append)
    assert done.replaced and done.text == "Run a-0 is on a machine with a disk of 40 GB now."
    assert [order.only for order in orders] == ["not-begun"]
    more = {"attempts": 2, "usd": pytest.approx(0.6), "seconds": 160.0, "rented_at": 0.0}
    assert launched == [
        (
            "launch",
            {"market": "any", "run": "a-0", "disk_gb": 40.0, "gpuyard_spent": more, "gpuyard_hand_over": False},
        )
    ]
    assert "since its disk of 20 GB is full: launching once more with 40 GB." in lines[-1]


@pytest.mark.parametrize("options", [{}, {"offer": "1"}])
def test_u10_where_it_cannot_begin_anew_by_itself_the_command_is_named(
    orders: list[ending.Order], options: dict[str, Any]
) -> None:
    told = give_up(**FULL, options=options)
    assert "`ansible-playbook launch.yml -e run=a-0 -e disk_gb=40` tries again on one with twice as much." in told
    assert len(orders) == 1


def test_u10_a_launch_that_fails_with_the_larger_disk_too_says_so(orders: list[ending.Order]) -> None:
    failure = closing.Failure("a-0", "Have Rust", "main-0", **FULL, options={"market": "any"})
    done = closing.give_up(Site(), failure, play=lambda *_args, **_more: 2, progress=lambda _: None)
    assert not done.replaced and "launching it with 40 GB failed too, as shown above" in done.text


@pytest.mark.parametrize("changes", [{"own": True}, {"rented": False}])
def test_u10_a_full_disk_of_a_machine_that_was_there_ends_nothing(
    orders: list[ending.Order], changes: dict[str, Any]
) -> None:
    give_up(**{**FULL, **changes}, options={"market": "any"})
    assert orders == []
