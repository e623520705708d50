from __future__ import annotations

import signal
import sys
import time

import pytest
from stage_box import Box, wait_for

from gpuyard.box.stages.restarting import pause, restarts
from gpuyard.renting import watch


@pytest.mark.parametrize(
    ("listed", "code", "ended_for", "again"),
    [
        ([], 1, None, True),
        ([], 0, "timeout", True),
        ([75], 75, None, True),
        ([75], 1, None, False),
        (["SIGSEGV"], 139, None, True),
        (["SIGSEGV"], -11, None, True),
        (["SIGSEGV"], 11, None, False),
        (["SIGKILL"], 139, None, False),
        ([143], 143, "timeout", False),
        ([143, "timeout"], 143, "timeout", True),
        (["silent"], 143, "timeout", False),
    ],
)
def test_which_ends_are_tried_again(listed: list[int | str], code: int, ended_for: str | None, again: bool) -> None:
    assert restarts(listed, code, ended_for) is again


def test_pauses_double_up_to_a_cap() -> None:
    assert [pause(30, retry) for retry in (1, 2, 3, 5, 6, 5000)] == [30, 60, 120, 480, 600, 600]
    assert pause(900, 3) == 900 and pause(0, 9) == 0


def test_only_what_is_listed_is_tried_again(box: Box) -> None:
    box.describe(
        [{"name": "a", "command": "echo x >> marks; exit $(wc -l < marks)", "retries": 5, "restart_on": [1, 2]}]
    )
    assert box.run() == 1
    assert box.marks == ["x"] * 3
    assert box.events("stage-end")[-1]["exit_code"] == 3
    assert "a failed in a way that restart_on does not list" in box.screen


def test_a_signal_is_listed_and_a_restart_resumes(box: Box) -> None:
    crash = f"{sys.executable} -c 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'"
    box.describe(
        [
            {
                "name": "a",
                "command": f"echo begun >> marks; touch $GPUYARD_PERSIST/models/x; {crash}",
                "resume_command": "echo resumed >> marks",
                "resumable": True,
                "retries": 1,
                "restart_on": ["SIGSEGV"],
            }
        ]
    )
    assert box.run() == 0
    assert box.marks == ["begun", "resumed"]


def test_the_pause_is_told_and_ends_at_once_when_the_run_is_told_to_stop(box: Box) -> None:
    box.describe([{"name": "a", "command": "exit 4", "retries": 3, "retry_wait_s": 300}])
    runner = box.start("run")
    [event] = wait_for(lambda: (box.root / ".gpuyard/journal.jsonl").exists() and box.events("retry"))
    assert (event["attempt"], event["wait_s"]) == (2, 300)
    assert watch.tell(event) == "↻ iteration 0, a is tried again in 300 s, attempt 2"
    assert box.status()["state"] == "running"
    runner.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert runner.wait(timeout=120) == 3
    assert time.monotonic() - began < 60
    assert box.status()["state"] == "interrupted"
    assert len(box.events("stage-start")) == 1


def test_a_pause_comes_before_the_next_attempt(box: Box) -> None:
    command = "date +%s.%N >> marks; test $(wc -l < marks) -ge 3"
    box.describe([{"name": "a", "command": command, "retries": 2, "retry_wait_s": 0.4}])
    assert box.run() == 0
    first, second, third = map(float, box.marks)
    assert second - first >= 0.4 and third - second >= 0.8
