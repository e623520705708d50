from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stage_box import CANARY, RUN, Box, alive, mark, until, wait_for

from gpuyard.box.stages import panes, report
from gpuyard.box.stages.runner import is_running


def tmux(box: Box, *arguments: str) -> str:
    return subprocess.run(["tmux", *arguments], env=box.env, capture_output=True, text=True, check=False).stdout


def answer(box: Box, *arguments: str) -> dict[str, Any]:
    done = box.call(*arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def family(pid: str) -> tuple[str, str]:
    """Return the parent and the session of a process."""
    with open(f"/proc/{pid}/stat") as stream:
        parent, _, session = stream.read().rpartition(")")[2].split()[1:4]
    return parent, session


LONG = {"name": "search", "command": "echo first line; touch ready; sleep 600; echo last", "grace_s": 60}


def test_a_session_has_the_four_windows_and_starts_once(box: Box) -> None:
    """B22."""
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

        def shown() -> str:
            return tmux(box, "capture-pane", "-p", "-t", "canyon:3")

        wait_for(lambda: "Filesystem" in shown(), what="the disk window")
        # In the same picture: the next one is drawn half a minute later.
        wait_for(lambda: folder in shown(), seconds=20, what=folder)
    starting.join()
    answer(box, "stop")


def test_a_workload_has_windows_of_its_own(box: Box) -> None:
    box.describe([LONG], windows=[{"name": "top", "command": "echo own window; sleep 600"}])
    answer(box, "start")
    assert tmux(box, "list-windows", "-t", "canyon", "-F", "#{window_name}").split() == ["iteration", "top"]
    wait_for(lambda: "own window" in tmux(box, "capture-pane", "-p", "-t", "canyon:1"))
    answer(box, "stop")


def test_the_session_needs_no_parent_and_holds_no_secret(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([{**LONG, "command": 'test -n "$WANDB_API_KEY" && touch ready; sleep 600'}])
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
    # The server is a child of process 1 (or of who adopts orphans in its place), and leads a session of its own, so the
    # end of an SSH connection does not reach it.
    parent, session = family(server)
    ancestors = [str(os.getpid())]
    while ancestors[-1] not in ("0", "1"):
        ancestors.append(family(ancestors[-1])[0])
    assert parent == "1" or parent in ancestors[1:]
    assert session == server
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


def test_a_server_that_is_just_leaving_is_waited_for(box: Box) -> None:
    """With a stand-in for tmux that twice says what the real one says to a call that meets a leaving server."""
    box.describe([LONG])
    program = box.base / "bin" / "tmux"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
        if [ "$2" = new-session ] && [ ! -e {box.base}/second ]; then
          [ ! -e {box.base}/first ] || touch {box.base}/second
          touch {box.base}/first
          echo 'server exited unexpectedly' >&2
          exit 1
        fi
        PATH="${{PATH#*:}}" exec tmux "$@"
    """)
    program.chmod(0o755)
    before = os.environ["PATH"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{program.parent}:{before}")
        assert answer(box, "start")["session"]["state"] == "running"
    assert (box.base / "second").exists()
    answer(box, "stop")


@pytest.mark.parametrize("killed", ["runner", "server"])
def test_an_interrupted_or_failed_run_is_started_again(box: Box, killed: str) -> None:
    box.describe([{"name": "search", "command": "echo $$ >> marks; test -e calm || sleep 600", "grace_s": 60}])
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


def test_the_disk_window_shows_every_file_system_and_every_persistent_folder(box: Box) -> None:
    """B22: what checkpoints, trajectories and models take, and what is left for them."""
    box.describe([LONG], persist={"root": str(box.root), "directories": ["checkpoints", "trajectories", "models"]})
    box.spec.make_directories()
    (box.root / "models/weights").write_bytes(b"w" * 3 * 1024 * 1024)
    lines = panes.disk_text(box.spec).splitlines()
    assert lines[0].startswith("Filesystem") and len(lines) >= 2 + 1 + 3
    sizes = {Path(line.split()[1]).name: line.split()[0] for line in lines[lines.index("") + 1 :]}
    assert list(sizes) == ["checkpoints", "trajectories", "models"] and sizes["models"] == "3.1M"


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


def follower(box: Box, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a command that follows the run, and return it with the file that gets its output."""
    output = box.base / "followed"
    with output.open("wb") as stream:
        command = [sys.executable, "-m", "gpuyard.box.stages", *arguments, "--settings", str(box.settings), "--follow"]
        process = subprocess.Popen(command, env=box.env, stdin=subprocess.DEVNULL, stdout=stream)
    box.processes.append(process)
    return process, output


def test_following_a_log_goes_on_to_the_next_stage_and_ends_with_the_run(box: Box) -> None:
    first = {"name": "a", "command": f"echo words of a; {until('test -e go')}"}
    box.describe([first, {"name": "b", "command": "echo words of b"}])
    runner = box.start("run")
    wait_for(lambda: (box.root / ".gpuyard/logs/0-a.log").exists())
    process, output = follower(box, "log")
    wait_for(lambda: "words of a\n" in output.read_text())
    (box.repository / "go").touch()
    assert process.wait(120) == runner.wait(120) == 0
    followed = output.read_text()
    assert "words of a\n" in followed and "words of b\n" in followed
    assert followed.rstrip().endswith("exit code 0")


def test_what_was_written_last_is_followed_also_when_the_run_has_ended_meanwhile(box: Box) -> None:
    box.describe([mark("a"), mark("b")])
    assert box.run("--only", "a") == 0
    followed = report.follow_log(box.spec, None, None, lines=9)
    assert "started" in next(followed)
    assert box.run() == 0  # while the follower looks elsewhere
    assert "iteration 0, b: done" in "".join(followed)


def test_a_run_that_ends_while_its_state_is_asked_for_was_not_interrupted(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.describe([mark("a")])
    ended: list[int] = []

    def looked(_: object) -> bool:
        monkeypatch.setattr(report, "is_running", is_running)
        ended.append(box.run())
        return False

    for ask in (lambda: report.status(box.spec), lambda: list(report.progress_events(box.spec))[-1]):
        (box.root / ".gpuyard/journal.jsonl").unlink(missing_ok=True)
        monkeypatch.setattr(report, "is_running", looked)
        assert ask()["state"] == "finished"
    assert ended == [0, 0]


def test_progress_is_told_as_it_happens(box: Box) -> None:
    command = f"n=0; {until('n=$((n + 1)); echo step $n; test -e enough')}"
    box.describe([{"name": "a", "command": command}], bucket=(box.base / "bucket").as_uri())
    box.start("run")
    wait_for(lambda: (box.root / ".gpuyard/journal.jsonl").exists() and box.events("stage-start"))
    process, told = follower(box, "progress")
    began = time.monotonic()
    wait_for(lambda: told.read_text().count('"output"') >= 2)
    (box.repository / "enough").touch()
    assert process.wait(120) == 0
    seconds = time.monotonic() - began
    events = [json.loads(line) for line in told.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["run-start", "stage-start"] and kinds[-1] == "end" and "published" in kinds
    assert events[-1]["state"] == "finished"
    output = [event["line"] for event in events if event["event"] == "output"]
    assert 2 <= len(output) <= seconds + 1, "one line a second at most"
    assert all(line.startswith("step ") for line in output)
    numbers = [event["n"] for event in events if "n" in event][:-1]
    assert numbers == list(range(1, len(numbers) + 1))
    rest = [json.loads(line) for line in box.call("progress", "--since", str(numbers[-1])).stdout.splitlines()]
    assert [event["event"] for event in rest] == ["end"]
    assert events[0]["run"] == RUN
