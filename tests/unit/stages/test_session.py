from __future__ import annotations

import fcntl
import json
import subprocess
import threading
import time
from typing import Any

import pytest
from stage_box import CANARY, RUN, Box, alive, wait_for


def tmux(box: Box, *arguments: str) -> str:
    return subprocess.run(["tmux", *arguments], env=box.env, capture_output=True, text=True, check=False).stdout


def answer(box: Box, *arguments: str) -> dict[str, Any]:
    done = box.call(*arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


LONG = {"name": "search", "command": "echo first line; touch ready; sleep 60; echo last", "grace_s": 5}


def test_a_session_has_the_four_windows_and_starts_once(box: Box) -> None:
    box.describe([LONG])
    started = answer(box, "start")
    assert started["changed"] and started["session"]["state"] == "running" and started["session"]["tmux"]
    wait_for((box.repository / "ready").exists)
    windows = tmux(box, "list-windows", "-t", "canyon", "-F", "#{window_index} #{window_name}").splitlines()
    assert windows == ["0 iteration", "1 gpu", "2 log", "3 disk"]

    def shows(window: int, text: str) -> None:
        wait_for(
            lambda: text in tmux(box, "capture-pane", "-p", "-t", f"canyon:{window}"), what=f"{text} in window {window}"
        )

    shows(0, "first line")
    shows(1, "nvidia-smi")
    shows(2, "first line")
    shows(3, "Filesystem")
    again = answer(box, "start")
    assert not again["changed"] and again["session"]["state"] == "running"
    assert len(box.events("run-start")) == 1
    stopped = answer(box, "stop")
    assert stopped["changed"]
    assert (stopped["session"]["state"], stopped["session"]["tmux"]) == ("interrupted", False)
    assert box.outcomes() == [(0, "search", "interrupted")]
    assert not answer(box, "stop")["changed"]


def test_the_disk_window_shows_the_folders_at_once_however_late_the_runner_is(box: Box) -> None:
    box.describe([LONG])
    with (box.settings / "runner.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # no runner begins while somebody looks at its lock
        starting = threading.Thread(target=answer, args=(box, "start"))
        starting.start()
        folder = str(box.root / "models")
        wait_for(lambda: folder in tmux(box, "capture-pane", "-p", "-t", "canyon:3"), seconds=10, what=folder)
    starting.join()
    answer(box, "stop")


def test_a_workload_has_windows_of_its_own(box: Box) -> None:
    box.describe([LONG], windows=[{"name": "top", "command": "echo own window; sleep 60"}])
    answer(box, "start")
    assert tmux(box, "list-windows", "-t", "canyon", "-F", "#{window_name}").split() == ["iteration", "top"]
    wait_for(lambda: "own window" in tmux(box, "capture-pane", "-p", "-t", "canyon:1"))
    answer(box, "stop")


def test_the_session_needs_no_parent_and_holds_no_secret(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([{**LONG, "command": 'test -n "$WANDB_API_KEY" && touch ready; sleep 60'}])
    environment = {**box.env, "VAST_API_KEY": "canary-vast-1234567890"}
    monkeypatch.setattr(type(box), "env", environment)
    answer(box, "start")
    wait_for((box.repository / "ready").exists)
    server = tmux(box, "display-message", "-p", "#{pid}").strip()
    with open(f"/proc/{server}/environ") as stream:
        held = stream.read()
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    shown = tmux(box, "show-environment", "-g") + tmux(box, "show-environment", "-t", "canyon")
    for text in (held, commands, shown):
        assert "canary-vast" not in text and CANARY not in text
    # The server is nobody's child, so the end of an SSH connection does not reach it.
    with open(f"/proc/{server}/stat") as stream:
        parent, _, session = stream.read().rpartition(")")[2].split()[1:4]
    assert parent == "1" and session == server
    answer(box, "stop")


def test_a_finished_run_is_not_started_again_unless_asked(box: Box) -> None:
    box.describe([{"name": "quick", "command": "echo x >> marks"}])
    assert answer(box, "start")["changed"]
    wait_for(lambda: box.status()["state"] == "finished")
    again = answer(box, "start")
    assert not again["changed"] and again["session"]["state"] == "finished" and again["session"]["tmux"]
    assert box.marks == ["x"]
    assert answer(box, "start", "--from", "quick")["changed"]
    wait_for(lambda: box.marks == ["x", "x"])
    wait_for(lambda: box.status()["state"] == "finished")


@pytest.mark.parametrize("killed", ["runner", "server"])
def test_an_interrupted_or_failed_run_is_started_again(box: Box, killed: str) -> None:
    box.describe([{"name": "search", "command": "echo $$ >> marks; test -e calm || sleep 60", "grace_s": 5}])
    answer(box, "start")
    wait_for(lambda: len(box.marks) == 1)
    (box.repository / "calm").touch()
    if killed == "runner":
        owner = json.loads((box.settings / "runner.lock").read_text())["pid"]
        subprocess.run(["kill", "-9", str(owner)], check=True)
    else:
        tmux(box, "kill-server")
    wait_for(lambda: box.status()["state"] == "interrupted")
    assert answer(box, "start")["changed"]
    wait_for(lambda: box.status()["state"] == "finished")
    assert len(box.marks) == 2 and not alive(box.marks[0])


def test_a_failed_run_says_so_and_tries_again(box: Box) -> None:
    box.describe([{"name": "flaky", "command": "test -e calm"}])
    answer(box, "start")
    wait_for(lambda: box.status()["state"] == "failed")
    (box.repository / "calm").touch()
    assert answer(box, "start")["changed"]
    wait_for(lambda: box.status()["state"] == "finished")


def test_a_missing_repository_is_a_sentence(box: Box) -> None:
    box.describe([LONG])
    box.repository.rmdir()
    refused = box.call("start")
    assert refused.returncode == 2 and "is not on this box" in refused.stderr
    assert box.status()["state"] == "not-started"
    box.repository.mkdir()


def test_start_restores_first(box: Box) -> None:
    box.describe([{"name": "a", "command": "echo x >> marks"}], bucket=(box.base / "bucket").as_uri())
    assert box.run() == 0
    (box.root / ".gpuyard/journal.jsonl").unlink()
    document = answer(box, "start", "--restore", "--state", "restored")
    assert document["changed"] and document["restored"]["source"] == "cloud"
    assert document["session"]["state"] == "finished" and not document["session"]["tmux"]
    again = answer(box, "start", "--restore")
    assert not again["changed"] and again["restored"]["source"] == "local"
    assert box.marks == ["x"]


# --- logs and progress ---


def test_logs(box: Box) -> None:
    box.describe(
        [{"name": "a", "command": "seq 100; echo an ERROR here; printf 'bar 1%%\\rbar 99%%\\n'"}], iterations=2
    )
    assert box.run() == 0
    lines = box.call("log", "--stage", "a", "--iteration", "0", "--lines", "4").stdout.splitlines()
    assert lines[:3] == ["100", "an ERROR here", "bar 99%"] and "done after" in lines[3]
    assert box.call("log", "--errors").stdout == "an ERROR here\n"
    refused = box.call("log", "--stage", "b")
    assert refused.returncode == 2 and "no stage 'b'" in refused.stderr
    missing = box.call("log", "--stage", "a", "--iteration", "7")
    assert missing.returncode == 2 and "Logs (iteration-stage): 0-a, 1-a." in missing.stderr


def test_following_a_log_goes_on_to_the_next_stage_and_ends_with_the_run(box: Box) -> None:
    stages = [{"name": name, "command": f"sleep 0.5; echo words of {name}; sleep 0.5"} for name in ("a", "b")]
    box.describe(stages)
    runner = box.start("run")
    wait_for(lambda: (box.root / ".gpuyard/logs/0-a.log").exists())
    followed = box.call("log", "--follow").stdout
    runner.wait(10)
    assert "words of a\n" in followed and "words of b\n" in followed
    assert followed.rstrip().endswith("exit code 0")


def test_progress_is_told_as_it_happens(box: Box) -> None:
    command = "for i in 1 2 3 4 5 6; do echo step $i; sleep 0.4; done"
    box.describe([{"name": "a", "command": command}], bucket=(box.base / "bucket").as_uri())
    box.start("run")
    wait_for(lambda: (box.root / ".gpuyard/journal.jsonl").exists() and box.events("stage-start"))
    began = time.monotonic()
    events = [json.loads(line) for line in box.call("progress", "--follow").stdout.splitlines()]
    assert time.monotonic() - began < 15
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["run-start", "stage-start"] and kinds[-1] == "end" and "published" in kinds
    assert events[-1]["state"] == "finished"
    output = [event["line"] for event in events if event["event"] == "output"]
    assert 2 <= len(output) <= 4 and all(line.startswith("step ") for line in output), "one line a second at most"
    numbers = [event["n"] for event in events if "n" in event][:-1]
    assert numbers == list(range(1, len(numbers) + 1))
    rest = [json.loads(line) for line in box.call("progress", "--since", str(numbers[-1])).stdout.splitlines()]
    assert [event["event"] for event in rest] == ["end"]
    assert events[0]["run"] == RUN
