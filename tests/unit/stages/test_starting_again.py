from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stage_box import RUN, Box, mark, until, wait_for

from gpuyard.box import converging
from gpuyard.box.checkpoints import LocalStore, publish
from gpuyard.box.stages import starting_again
from gpuyard.box.stages.at_work import MARK, forget, marked, remember
from gpuyard.box.stages.choice import Choice
from gpuyard.box.stages.runner import lock_owner
from gpuyard.formats.ledger import Change, Entry

HELD = {"name": "wait", "command": f"echo $ITERATION-wait >> marks; {until('test -e go')}", "grace_s": 5}


def goes_down(box: Box) -> None:
    """Kill everything as a machine that goes down without a word does."""
    owner = lock_owner(box.spec)
    assert owner is not None
    os.kill(owner, signal.SIGKILL)
    wait_for(lambda: box.status()["state"] == "interrupted")


def again(box: Box) -> str:
    answer = box.call("again", "--patience", "0")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_what_was_at_work_goes_on_once_and_what_was_not_does_not(box: Box) -> None:
    box.describe([HELD, mark("last")])
    assert again(box) == f"{RUN} was not at work when this machine went down, so it does not start again.\n"
    assert json.loads(box.call("start", "--until", "wait").stdout)["session"]["state"] == "running"
    # While it runs a second start adopts it.
    assert again(box) == f"{RUN} does not start again: it is running.\n"
    goes_down(box)
    assert again(box) == f"{RUN} goes on where it was.\n"
    (box.repository / "go").touch()
    wait_for(lambda: box.status()["state"] == "idle")
    # What was to run last is remembered.
    assert box.marks == ["0-wait", "0-wait"]
    assert not (box.settings / MARK).exists()
    assert "was not at work" in again(box)


def test_several_starts_at_once_make_one_session(box: Box) -> None:
    box.describe([HELD])
    remember(box.spec, Choice())
    starts = [box.start("again"), box.start("start"), box.start("again"), box.start("start")]
    assert [process.wait(timeout=180) for process in starts] == [0] * 4
    assert box.status()["state"] == "running"
    assert len(box.events("run-start")) == len(box.marks) == 1


def test_a_command_that_brings_the_machine_into_shape_is_waited_for(box: Box) -> None:
    box.describe([HELD])
    remember(box.spec, Choice())
    with (box.base / converging.LOCK).open("a") as shape:
        fcntl.flock(shape, fcntl.LOCK_EX)
        waiting = box.start("again")
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=3)
        # That command starts the stages itself at its end.
        assert box.call("start").returncode == 0
    assert waiting.wait(timeout=120) == 0
    assert "does not start again: it is running" in box.screen


def test_what_somebody_has_stopped_stays_stopped(box: Box) -> None:
    box.describe([HELD])
    box.call("start")
    assert json.loads(box.call("stop").stdout)["ended"]
    assert "was not at work" in again(box)
    assert box.status()["state"] == "interrupted"


@pytest.mark.parametrize(("number", "stays"), [(signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGHUP, True)])
def test_ctrl_c_is_a_wish_and_any_other_signal_may_be_the_machine_going_down(
    box: Box, number: int, stays: bool
) -> None:
    box.describe([HELD])
    remember(box.spec, Choice())
    runner = box.start("run")
    wait_for(lambda: box.marks)
    runner.send_signal(number)
    assert runner.wait(timeout=120) == 3
    assert (marked(box.spec) is not None) is stays


def test_a_mark_of_another_run_or_a_damaged_one_is_none(box: Box) -> None:
    box.describe([HELD])
    remember(box.spec, Choice(only="wait", iteration=0))
    assert marked(box.spec) == Choice(only="wait", iteration=0)
    record = json.loads((box.settings / MARK).read_text())
    for text in (json.dumps({**record, "run": "other-0"}), "{", "[]", json.dumps({"run": RUN, "more": 1})):
        (box.settings / MARK).write_text(text)
        assert marked(box.spec) is None
    forget(box.settings)
    forget(box.settings)


def entry(identity: str, began: float, *, node: str = "main-0", ended: bool = False) -> Entry:
    changes = (Change(began, "rented", 1.0), *([Change(began + 9, "ended", 0.0)] if ended else []))
    return Entry(RUN, "canyon", "vast", identity, "A100", "EU", "interruptible", 1.0, 0.1, changes, began, node=node)


def test_a_run_that_another_machine_has_taken_over_is_left_alone(box: Box, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    box.describe([mark("a")], bucket=f"file://{bucket}")
    settings = json.loads((box.settings / "settings.json").read_text())
    settings["instance"] = {"provider": "vast", "id": "7"}
    (box.settings / "settings.json").write_text(json.dumps(settings))
    assert box.run() == 0
    spec, store = box.spec, LocalStore(bucket)
    assert starting_again.elsewhere(spec, store) is None

    def rented(*entries: Entry) -> str | None:
        for one in entries:
            store.put(one.key, one.to_bytes())
        return starting_again.elsewhere(spec, store)

    assert rented(entry("6", 50), entry("7", 100)) is None
    assert rented(entry("8", 200, ended=True), entry("9", 200, node="search-0")) is None
    store.put(f"{RUN}/ledger/vast-10.json", b"{")
    assert starting_again.elsewhere(spec, store) is None
    assert rented(entry("11", 200)) == "vast 11 was rented for it later."

    # Another machine restored our checkpoint, went on, and published.
    journal = spec.root / ".gpuyard/journal.jsonl"
    ours = journal.read_bytes()
    with journal.open("a") as stream:
        stream.write('{"event": "run-start", "time": "2026-11-26T12:00:00Z"}\n')
    publish(store, RUN, spec.root)
    journal.write_bytes(ours + b'{"event": "run-start", "time": "2026-11-26T13:00:00Z"}\n')
    assert "was published by another machine, which has taken it over." in str(starting_again.elsewhere(spec, store))
    remember(spec, Choice())
    assert f"{RUN} does not start again on this machine: checkpoint" in again(box)


def test_a_bucket_that_stays_away_is_waited_for_and_then_said(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([mark("a")], bucket="file:///nowhere")
    remember(box.spec, Choice())
    answers: list[Any] = ["no route to host."] * 3
    monkeypatch.setattr(starting_again, "bucket_refusal", lambda spec: answers.pop() if answers else None)
    monkeypatch.setattr(starting_again.time, "sleep", lambda seconds: waited.append(seconds))
    monkeypatch.setattr(starting_again, "elsewhere", lambda spec, store: "it is elsewhere.")
    waited: list[float] = []
    said: list[str] = []
    assert not starting_again.start_again(box.spec, said.append)
    assert (waited, said) == ([2, 4, 8], [f"{RUN} does not start again on this machine: it is elsewhere."])
    answers.append("no route to host.")
    assert not starting_again.start_again(box.spec, said.append, patience_s=1)
    assert said[-1].endswith("since its newest checkpoint cannot be looked at: no route to host.")
