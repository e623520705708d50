from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from stage_box import Box, until, wait_for

from gpuyard.box.stages import panes, sign_of_life
from gpuyard.box.stages.expected import Begun, Expected, bar, measure
from gpuyard.renting import watch


def measured(what: Expected, begun: Begun, folder: Path, now: float = 100.0) -> dict[str, Any] | None:
    return measure(what, begun, log=folder / "log", root=folder, iteration=2, memory=folder / "lines.json", now=now)


@pytest.mark.parametrize(
    ("pattern", "total", "text", "found"),
    [
        (r"step (?P<done>\d+)/(?P<total>\d+)", None, "step 1/50\nstep 20/50\nloss 3", (20, 50, 40.0)),
        (r"theorem (\d+)", 200.0, "theorem 7\ntheorem 50\n", (50, 200, 25.0)),
        (r"(?P<done>[\d,_]+) of (?P<total>[\d,_]+)", None, "1,000 of 4_000", (1000, 4000, 25.0)),
        (r"(\d+)%", 100.0, "train:  3%|\rtrain: 12%|##", (12, 100, 12.0)),
        (r"step (\d+)", 10.0, "step 12\n", (12, 10, 100.0)),
        (r"step (\w+)", 10.0, "step 3\nstep none\n", (3, 10, 30.0)),
        (r"step (\d+)", 10.0, "nothing\n", None),
        (r"(?P<done>\d+)/(?P<total>\d+)", None, "3/0\n", None),
        (r"step (\d+)", 10.0, f"step 3\n{'x' * 600} step 9\n", (3, 10, 30.0)),  # too long to be looked at
    ],
)
def test_what_a_log_says(tmp_path: Path, pattern: str, total: float | None, text: str, found: Any) -> None:
    (tmp_path / "log").write_text(text)
    progress = measured(Expected(pattern=pattern, total=total), Begun(0.0), tmp_path)
    assert found == (progress and (progress["done"], progress["total"], progress["percent"]))


def test_a_remaining_time_is_that_of_this_attempt_and_none_before_there_is_enough_to_say(tmp_path: Path) -> None:
    what, log = Expected(pattern=r"step (\d+)", total=1000.0), tmp_path / "log"
    log.write_text("step 990\n")
    earlier = log.stat().st_size

    def remaining(text: str, begun: Begun, now: float) -> float | None:
        log.write_text("step 990\n" + text)
        found = measured(what, begun, tmp_path, now)
        return found["remaining_s"] if found else -1

    fresh = Begun(0.0, earlier)
    assert remaining("", fresh, 50) == -1  # the attempt has said nothing yet
    assert remaining("step 500\n", fresh, 5) is None  # too soon
    assert remaining("step 9\n", fresh, 50) is None  # too little
    assert remaining("step 250\n", fresh, 50) == 150
    assert remaining("step 1000\n", fresh, 50) == 0
    assert remaining("step 2000\n", fresh, 50) == 0
    assert remaining("step 250\n", Begun(60.0, earlier), 50) is None  # a clock that was put back
    # It went on at 500: in 50 s it has done 100.
    assert remaining("step 500\nstep 600\n", Begun(0.0, earlier, resumed=True), 50) == 200


def test_files_that_grow(tmp_path: Path) -> None:
    folder = tmp_path / "out/2"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("1\n2\n3\n")
    (folder / "b.txt").write_text("x\n")
    (tmp_path / "out/1").mkdir()
    (tmp_path / "out/1/a.txt").write_text("not this iteration's\n")

    def done(unit: str, **fields: Any) -> float:
        what = Expected(file="out/$ITERATION/*.txt", unit=unit, total=100.0)
        found = measured(what, Begun(0.0, 0, **fields), tmp_path)
        assert found is not None
        return float(found["done"])

    assert (done("total_lines"), done("total_files"), done("total_bytes")) == (4, 2, 8)
    with (folder / "a.txt").open("a") as stream:
        stream.write("4\n5\n")
    assert done("total_lines") == 6
    # What was counted before is not read again.
    known = json.loads((tmp_path / "lines.json").read_text())
    known[str(folder / "a.txt")][2] = 1005
    (tmp_path / "lines.json").write_text(json.dumps(known))
    assert done("total_lines") == 1006
    (folder / "a.txt").write_text("anew\n")
    assert done("total_lines") == 2
    what = Expected(file="out/2/*", unit="total_bytes", total=100.0)
    (folder / "b.txt").write_bytes(b"x" * 45)
    found = measured(what, Begun(0.0, 0, done_before=30.0), tmp_path, now=40)
    assert found is not None and found["remaining_s"] == 100  # 20 bytes in 40 s, 50 are left


def test_a_bar() -> None:
    found = {"done": 500.0, "total": 1000.0, "percent": 50.0, "unit": "lines", "remaining_s": 754.0}
    assert bar(found) == "[############------------] 50 % (500 of 1000 lines), about 13 min left"
    assert bar({**found, "unit": "", "remaining_s": None}) == "[############------------] 50 % (500 of 1000)"
    assert "(0.0 MB of 2.00 GB), about 45 s left" in bar({**found, "unit": "bytes", "total": 2e9, "remaining_s": 45})
    assert bar({**found, "remaining_s": 8000}).endswith("about 2 h 13 min left")


def test_status_follow_and_the_window_show_it(box: Box) -> None:
    stage = {"name": "search", "progress": {"pattern": r"theorem (?P<done>\d+) of (?P<total>\d+)"}}
    box.describe([{**stage, "command": f"echo theorem 30 of 120; {until('test -e go')}"}])
    runner = box.start("run")
    progress = wait_for(lambda: (box.root / ".gpuyard/journal.jsonl").exists() and box.status()["progress"])
    assert (progress["stage"], progress["percent"], progress["remaining_s"]) == ("search", 25.0, None)
    status = box.status()
    assert status["sign_of_life"]["doing"] == "running" and status["sign_of_life"]["age_s"] < 60
    assert f"  {bar(progress)}\n" in box.call("status").stdout
    assert panes.progress_text(box.spec) == f"search, iteration 0: {bar(progress)}\n\n"
    [told] = [json.loads(line) for line in box.call("progress").stdout.splitlines() if '"progress"' in line]
    assert watch.tell(told) == "  [######------------------] 25 % (30 of 120)"
    (box.repository / "go").touch()
    assert runner.wait(timeout=120) == 0
    assert (box.status()["progress"], box.status()["sign_of_life"]) == (None, None)


def test_a_runner_that_hangs_is_told(box: Box) -> None:
    box.describe([{"name": "a", "command": until("test -e go")}])
    runner = box.start("run")
    file = box.settings / sign_of_life.FILE
    wait_for(file.exists)
    runner.send_signal(signal.SIGSTOP)
    try:
        hour = time.time() - 3600
        os.utime(file, (hour, hour))
        assert box.status()["sign_of_life"]["age_s"] >= 3600
        assert "the runner has given no sign of life for 36" in box.call("status").stdout
    finally:
        runner.send_signal(signal.SIGCONT)
    (box.repository / "go").touch()
    assert runner.wait(timeout=120) == 0
