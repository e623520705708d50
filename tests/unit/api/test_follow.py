"""Following a run: what is shown, when it is handed over, and what becomes of its machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuyard import play_process
from gpuyard.api import follow
from gpuyard.api.follow import Follow
from gpuyard.errors import BucketError, ConnectionLostError, GpuyardError, NotSavedError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.formats.manifest import Manifest
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ending
from gpuyard.renting.runs import Run


def a_box(number: int, node: str) -> Instance:
    return Instance(
        provider="vast",
        id=str(number),
        label="",
        ref=RunRef("turns-0", "turns", node),
        state=State.RUNNING,
        status_text="",
        region="SE",
        gpu_name="A100",
        gpu_count=1.0,
        gpu_ram_gb=80.0,
        market="on-demand",
        price_per_hour_usd=0.5,
    )


def ends(state: str, waits_for: str | None = None) -> dict[str, Any]:
    return {"event": "end", "state": state, "waits_for": waits_for}


class World:
    """A run on one machine after another; each machine's stages end as a test says."""

    def __init__(self, *machines: list[dict[str, Any]]) -> None:
        self.stages = list(machines)
        self.boxes: list[Instance] = [a_box(0, "train-0")]
        self.launches: list[Mapping[str, Any]] = []
        self.orders: list[ending.Order] = []
        self.rents = True
        self.checkpoint: Manifest | None = Manifest("turns-0", 7, "", (), {"outcome": "waiting"})
        self.bucket: BucketError | None = None
        self.lost: ConnectionLostError | None = None
        self.kept: NotSavedError | None = None
        self.at_work: list[int] = []

    def run(self, name: str) -> Run:
        return Run(name, "turns", tuple(self.boxes))

    def records(self, instance: Instance) -> Iterator[Mapping[str, Any]]:
        self.at_work.append(len(self.boxes))
        yield from self.stages[int(instance.id)]
        if self.lost:
            raise self.lost

    def how_it_ended(self, whose: str, instance: Instance, state: str) -> str:
        return f"{whose} is {state}."

    def last_checkpoint(self, name: str) -> Manifest | None:
        if self.bucket:
            raise self.bucket
        return self.checkpoint

    def launch(self, options: Mapping[str, Any]) -> None:
        self.launches.append(options)
        if self.rents:
            self.boxes = [a_box(len(self.launches), "search-0")]

    def end(self, order: ending.Order) -> ending.Ending:
        self.orders.append(order)
        if self.kept:
            raise self.kept
        self.boxes = []
        return ending.Ending(["x"], [], ["destroy vast 1"])


def test_a_run_is_handed_over_as_often_as_it_waits_and_its_last_machine_ends_b2() -> None:
    """B2: from pool to pool, with the launch's own options, but for those that were for its first machine."""
    stages = [
        [{"event": "stage-start", "iteration": 0, "stage": "finetune"}, ends("waiting", "search")],
        [ends("waiting", "train")],
        [ends("finished")],
    ]
    world, lines = World(*stages), list[str]()
    given = {"sandbox": True, "max_price_per_hour": 3, "offer": "17", "restore": 4, "from_stage": "x", "run": "other"}
    request = Follow("turns-0", shutdown=True, since=5, options=given)
    done = follow.follow_in(world, request, progress=lines.append)
    assert (done.state, done.hand_overs, done.text) == ("finished", 2, "")
    repeated = {"sandbox": True, "max_price_per_hour": 3, "run": "turns-0"}
    assert world.launches == [{**repeated, "gpuyard_mode": "resume", "gpuyard_hand_over": True}] * 2
    assert world.orders == [ending.Order("turns-0", only="ended", since=5)]
    assert world.at_work == [1, 1, 1]
    assert "▶ iteration 0, finetune" in lines
    assert (
        "Run turns-0 waits for a machine of pool search, and checkpoint 7 is whole in the bucket: handing it over."
        in lines
    )
    assert lines[-1] == "As shutdown=true asks for: destroy vast 1."


def test_without_shutdown_the_last_machine_stays_and_its_price_is_said_f3() -> None:
    """F3: whoever waits learns how it ended, and what bills on."""
    world = World([ends("finished")])
    done = follow.follow_in(world, Follow("turns-0"), progress=lambda _: None)
    assert (world.orders, world.launches) == ([], [])
    assert done.text.startswith("As long as its machine is there, it bills 0.5000 USD an hour")
    with pytest.raises(GpuyardError, match=r"(?s)is failed\.\nAs long as its machine is there, it bills 0\.5000"):
        follow.follow_in(World([ends("failed")]), Follow("turns-0"), progress=lambda _: None)
    world.boxes = []
    with pytest.raises(UsageError, match="has no machine, so there is nothing to follow"):
        follow.follow_in(world, Follow("turns-0"), progress=lambda _: None)


@pytest.mark.parametrize("what", ["none", "older", "silent"])
def test_nothing_is_rented_before_the_last_checkpoint_is_in_the_bucket(what: str) -> None:
    world = World([ends("waiting", "search")])
    if what == "silent":
        world.bucket = BucketError("The bucket does not answer.")
    else:
        world.checkpoint = None if what == "none" else Manifest("turns-0", 6, "", (), {"outcome": None})
    with pytest.raises(GpuyardError) as told:
        follow.follow_in(world, Follow("turns-0"), progress=lambda _: None)
    assert "is not moved, since" in str(told.value) and world.launches == []
    assert "vast 0, A100 in SE, running is kept, and bills 0.5000 USD an hour" in str(told.value)
    assert "launch.yml -e run=turns-0 -e follow=true` tries again" in str(told.value)


@pytest.mark.parametrize("shutdown", [False, True])
def test_a_machine_that_cannot_be_had_leaves_the_one_that_waits(shutdown: bool) -> None:
    world = World([ends("waiting", "search")])
    world.rents = False
    world.kept = NotSavedError("Nothing is destroyed: Run turns-0 has not ended (waiting) on vast 0.")
    with pytest.raises(GpuyardError) as told:
        follow.follow_in(world, Follow("turns-0", shutdown), progress=lambda _: None)
    words = str(told.value)
    assert (
        "could not be handed over, as shown above. All is saved, as checkpoint 7. vast 0, A100 in SE, running" in words
    )
    # Its run has not ended, so what ends machines is asked, and keeps it.
    assert ("Nothing is destroyed" in words, len(world.orders)) == (shutdown, int(shutdown))
    assert [one.id for one in world.boxes] == ["0"]


def test_a_launch_that_changes_nothing_is_not_repeated_for_ever() -> None:
    world = World([ends("waiting", "search")])
    world.rents = False
    with pytest.raises(GpuyardError, match="could not be handed over"):
        follow.follow_in(world, Follow("turns-0"), progress=lambda _: None)
    assert len(world.launches) == 1


def test_what_a_failed_hand_over_leaves_is_named() -> None:
    world = World([ends("waiting", "search")])
    world.rents, world.boxes = False, [a_box(0, "train-0")]

    def launch(options: Mapping[str, Any]) -> None:
        world.boxes = []

    world.launch = launch  # type: ignore[method-assign]
    world.run = lambda name: Run(name, "turns", tuple(world.boxes))  # type: ignore[method-assign]
    with pytest.raises(GpuyardError, match=r"It has now: no machine\. `ansible-playbook resume_search\.yml"):
        follow.follow_in(world, Follow("turns-0"), progress=lambda _: None)


@pytest.mark.parametrize("how", ["failed", "lost"])
def test_shutdown_asks_what_may_go_however_following_ended(how: str) -> None:
    world = World([ends("failed")] if how == "failed" else [])
    world.stages = [[ends("failed")]] if how == "failed" else [[]]
    world.lost = ConnectionLostError("The connection is lost.") if how == "lost" else None
    with pytest.raises(GpuyardError, match="is failed" if how == "failed" else "is lost") as told:
        follow.follow_in(world, Follow("turns-0", shutdown=True), progress=lambda _: None)
    assert len(world.orders) == 1 and "bills" not in str(told.value)
    world = World([ends("finished")])
    world.kept = NotSavedError("It is kept.")
    with pytest.raises(NotSavedError, match="It is kept"):
        follow.follow_in(world, Follow("turns-0", shutdown=True), progress=lambda _: None)


# --- the play in a process of its own ---


@pytest.fixture
def playbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for ansible-playbook; what it was given is in the files beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ansible-playbook"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nprintf "%s\\n" "$@" > words\nf="${{3#@}}"\ncp "$f" given\n'
        'stat -c %a "$f" > mode\necho first; echo; echo second >&2\nexit 3\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return tmp_path


def test_a_play_of_its_own_gets_its_variables_in_a_file_that_nobody_else_reads(playbook: Path) -> None:
    lines: list[str] = []
    code = play_process.run("launch", {"run": "turns-0", "gpu_name": "RTX 4090", "follow": True}, tell=lines.append)
    assert (code, sorted(lines)) == (3, ["first", "second"])
    words = (playbook / "words").read_text().split()
    assert words[:2] == ["gpuyard.cloud.launch", "-e"] and "RTX" not in " ".join(words)
    assert json.loads((playbook / "given").read_text()) == {"run": "turns-0", "gpu_name": "RTX 4090", "follow": True}
    assert (playbook / "mode").read_text().strip() == "600"
    file = Path(words[2].removeprefix("@"))
    assert not file.exists() and not file.parent.exists()


def test_a_play_ends_with_whoever_reads_it(playbook: Path) -> None:
    (playbook / "bin/ansible-playbook").write_text(f"#!/bin/sh\necho $$ > {playbook}/pid\necho on\nexec sleep 600\n")

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_process.run("launch", {}, tell=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((playbook / "pid").read_text()), 0)
