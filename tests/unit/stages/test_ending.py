"""Stopping a run says what it waits for, and whether the bucket holds everything: the answer comes whatever happens."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage_box import RUN, Box, alive, mark, wait_for

from gpuyard.box.checkpoints import LocalStore, latest_manifest, stores
from gpuyard.box.stages import ending, report, runner
from gpuyard.formats.journal import Journal

SAVES = {
    "name": "train",
    "command": "trap 'echo weights > $GPUYARD_PERSIST/models/w; exit 0' INT; touch ready; while :; do sleep 0.1; done",
    "grace_s": 240,
}


def stop(box: Box, *arguments: str, code: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Stop the run; return the result and the lines before it."""
    done = box.call("stop", *arguments)
    assert done.returncode == code, done.stderr
    *told, result = [json.loads(line) for line in done.stdout.splitlines()]
    return result, told


def bucket_of(box: Box) -> str:
    return (box.base / "bucket").as_uri()


def published(box: Box) -> dict[str, int]:
    manifest = latest_manifest(LocalStore(box.base / "bucket"), RUN)
    return {entry.path: entry.size for entry in manifest.files} if manifest else {}


def test_stopping_waits_as_long_as_the_stage_may_save_and_says_that_all_is_saved(box: Box) -> None:
    box.describe([SAVES, mark("after")], bucket=bucket_of(box))
    running = box.start("run")
    wait_for((box.repository / "ready").exists)
    result, told = stop(box, "--progress")
    assert running.wait(120) == 3
    assert told[0] == {"event": "waiting", "stage": "train", "seconds": 0, "of": 540, "doing": "saving"}
    assert result["changed"] and result["ended"] and result["session"]["state"] == "interrupted"
    assert result["saved"]["state"], result
    manifest = latest_manifest(LocalStore(box.base / "bucket"), RUN)
    assert manifest is not None and result["saved"]["sequence"] == manifest.sequence
    assert published(box)["models/w"] == len("weights\n")
    again, told = stop(box)
    assert (again["changed"], again["saved"], told) == (False, result["saved"], [])


def test_a_stage_that_is_not_given_the_time_is_an_answer_too(box: Box) -> None:
    box.describe([{**SAVES, "command": SAVES["command"].replace("exit 0", "sleep 1")}], bucket=bucket_of(box))
    running = box.start("run")
    wait_for((box.repository / "ready").exists)
    result, _ = stop(box, "--wait", "0", code=1)
    why = f"{RUN} was told to stop and has not ended after 0 s: train is still saving its work."
    assert (result["ended"], result["saved"]) == (False, {"state": False, "sequence": None, "why": why})
    running.kill()
    running.wait()
    # The runner is gone, its stage is not, unless a busy machine let it see so: it is ended before the last checkpoint.
    stage = box.events("stage-start")[0]["token"]
    result, _ = stop(box)
    assert result["ended"] and result["saved"]["state"], result
    assert not runner.processes.members(stage)


def test_what_a_dead_runner_left_is_published_by_stopping(box: Box) -> None:
    box.describe([mark("a"), mark("b")], bucket=bucket_of(box))
    assert box.run("--only", "a") == 0
    (box.root / "models/late").write_text("late")
    (box.root / "models/outside").symlink_to("/usr/lib")
    result, _ = stop(box)
    assert published(box)["models/late"] == 4
    assert not result["saved"]["state"] and "models/outside" in result["saved"]["why"]
    (box.root / "models/outside").unlink()
    assert stop(box)[0]["saved"]["state"]


@pytest.mark.parametrize(
    ("bucket", "begun", "why"),
    [
        ("", True, "No bucket is set for canyon-0"),
        ("", False, "Nothing has begun on this box"),
        ("s3://yard", True, "cannot be used"),
        ("file:///proc/nowhere", True, "No checkpoint was published"),
    ],
)
def test_why_nothing_is_saved(box: Box, bucket: str, begun: bool, why: str) -> None:
    box.describe([mark("a")])
    if begun:
        assert box.run() == 0
    box.describe([mark("a")], bucket=bucket)
    settings = json.loads((box.settings / "settings.json").read_text())
    # Port 9 (discard) has no listener.
    (box.settings / "settings.json").write_text(json.dumps({**settings, "bucket_endpoint": "http://127.0.0.1:9"}))
    (box.settings / "secrets.env").write_text("AWS_ACCESS_KEY_ID=canary-key\nAWS_SECRET_ACCESS_KEY=canary-secret\n")
    result, _ = stop(box)
    assert result["ended"] and result["saved"]["state"] is not begun and why in result["saved"]["why"]
    assert "canary" not in json.dumps(result)


def test_a_box_that_was_told_nothing_and_one_with_damaged_settings(box: Box) -> None:
    result, _ = stop(box)
    assert result["ended"] and result["saved"]["state"] and result["session"] == {}
    box.describe([mark("a")])
    (box.settings / "workload.json").write_text("{")
    result, _ = stop(box, code=1)
    assert not result["saved"]["state"] and "is not JSON" in result["saved"]["why"]
    refused = box.call("stop", "--wait", "abc")
    assert refused.returncode == 2 and "'abc' is not a number of seconds" in refused.stderr


@pytest.fixture
def silent(box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket that takes connections and says nothing, and is not waited for as long as usual."""
    monkeypatch.setattr(stores, "ANSWER_S", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        box.describe([mark("a")], bucket="s3://yard")
        settings = json.loads((box.settings / "settings.json").read_text())
        settings["bucket_endpoint"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (box.settings / "settings.json").write_text(json.dumps(settings))
        (box.settings / "secrets.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
        yield


@pytest.mark.usefixtures("silent", "signals")
def test_a_silent_bucket_holds_up_neither_the_runner_nor_who_stops_it(box: Box) -> None:
    screen = io.BytesIO()
    stopped = runner.Runner(box.spec, screen=screen)
    stopped._stop.set()
    assert stopped.run() == "interrupted"
    assert b"no checkpoint was published: The bucket s3://yard has not answered within" in screen.getvalue()
    ticks: list[int] = []
    saved = ending.save(box.spec, 60, tick=lambda: ticks.append(1))
    assert not saved.state and "The bucket s3://yard has not answered within" in saved.why and ticks


def test_a_publish_that_does_not_end_is_given_up(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([mark("a")], bucket=bucket_of(box))
    assert box.run() == 0
    monkeypatch.setattr(ending, "python_module", lambda *_: ["sh", "-c", "echo $$ > pid; exec sleep 600"])
    monkeypatch.chdir(box.base)
    saved = ending.save(box.spec, 1)
    assert saved == ending.Saved(False, None, "The last checkpoint was not published within 1 s.")
    pid = box.base / "pid"
    assert not pid.exists() or not alive(pid.read_text().strip())


def test_a_long_journal_is_read_quickly(box: Box) -> None:
    box.describe([mark("a"), mark("b")])
    assert box.run("--only", "a") == 0
    journal = Journal(box.root / ".gpuyard/journal.jsonl")
    last = journal.append("published", sequence=1, files=2, bytes_total=3, bytes_sent=3, seconds=0.1)
    line = json.dumps({**last, "sequence": 0}).encode() + b"\n"
    with journal.file.open("r+b") as stream:
        content = stream.read().splitlines(keepends=True)
        stream.seek(0)
        stream.writelines([*content[:-1], *([line] * 200_000), content[-1]])
    # A log that is one endless line, as a progress bar leaves it.
    with box.spec.log(0, "a").open("ab") as stream:
        stream.write(b"\r50%" * 10_000_000)
    began = time.process_time()
    status = report.status(box.spec)
    assert time.process_time() - began < 1
    assert (status["state"], status["last_published"]["sequence"], status["last_line"]) == ("idle", 1, "50%")
    assert Path(box.spec.log(0, "a")).stat().st_size > 40_000_000
