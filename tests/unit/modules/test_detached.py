# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long work goes on without its module, and the next one follows it, takes its result, or ends it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A module that is killed in the middle: the same call, in a process of its own.
MODULE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
_box.WORK = Path(sys.argv[2])
try:
    _box.detached(**json.loads(sys.argv[3]))
except _box.BoxError as error:
    sys.exit(str(error))
"""
# Notes each beginning, then waits for a file, then notes its end.
SLOW = "echo begun >> begun; echo working; until [ -e go ]; do sleep 0.02; done; echo ended >> ended"


class Caller:
    """Calls ``_box.detached`` in processes of their own, with what they work on in ``folder``."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self.processes: list[subprocess.Popen[str]] = []

    def call(self, script: str = SLOW, *, key: Any = 1, **options: Any) -> subprocess.Popen[str]:
        given = {"command": ["sh", "-c", script], "slot": "test", "key": key, "purpose": "Working"}
        words = json.dumps({**given, "environment": {"SECRET": "canary-77"}, "folder": str(self.folder), **options})
        process = subprocess.Popen(
            [sys.executable, "-c", MODULE, str(ROOT / "collections"), str(self.work), words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def count(self, name: str) -> int:
        file = self.folder / name
        return len(file.read_text().splitlines()) if file.exists() else 0

    def wait_for(self, name: str, count: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.count(name) < count:
            assert time.monotonic() < deadline, f"{name} did not come"
            time.sleep(0.02)

    def begin_and_kill(self, **options: Any) -> None:
        """Have work that nobody follows any more."""
        begun = self.count("begun")
        first = self.call(**options)
        self.wait_for("begun", begun + 1)
        first.kill()
        first.wait()


@pytest.fixture
def caller(tmp_path: Path, detached_work: Path) -> Iterator[Caller]:
    (tmp_path / "place").mkdir()
    caller = Caller(tmp_path / "place", detached_work)
    yield caller
    (tmp_path / "place/go").touch()
    for process in caller.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def box(run_module: Any) -> Any:
    return importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._box")


def test_a_killed_modules_work_is_followed_to_its_end(caller: Caller) -> None:
    caller.begin_and_kill()
    second = caller.call()
    time.sleep(0.5)
    assert second.poll() is None, "it waits for what runs"
    (caller.folder / "go").touch()
    assert second.wait(60) == 0
    assert (caller.count("begun"), caller.count("ended")) == (1, 1)


def test_what_has_ended_meanwhile_is_taken_once(caller: Caller) -> None:
    caller.begin_and_kill()
    (caller.folder / "go").touch()
    caller.wait_for("ended")
    assert caller.call().wait(60) == 0 and caller.count("begun") == 1
    assert caller.call().wait(60) == 0 and caller.count("begun") == 2, "a result counts once"


def test_what_has_failed_meanwhile_is_tried_anew(caller: Caller) -> None:
    script = "echo begun >> begun; until [ -e go ]; do sleep 0.02; done; echo done >> ended; [ -e good ]"
    caller.begin_and_kill(script=script)
    (caller.folder / "go").touch()
    caller.wait_for("ended")
    (caller.folder / "good").touch()
    assert caller.call(script).wait(60) == 0 and caller.count("begun") == 2


def test_other_work_in_the_same_place_is_ended_first(caller: Caller) -> None:
    caller.begin_and_kill(script=f"({SLOW}) & wait")
    assert caller.call("echo other >> other", key=2).wait(60) == 0
    (caller.folder / "go").touch()
    time.sleep(0.2)
    assert caller.count("other") == 1 and caller.count("ended") == 0, "its children are ended, too"


def test_work_that_must_not_be_ended_is_waited_for(caller: Caller) -> None:
    caller.begin_and_kill(may_be_ended=False)
    second = caller.call("cat ended > other", key=2)
    time.sleep(0.5)
    assert second.poll() is None
    (caller.folder / "go").touch()
    assert second.wait(60) == 0 and caller.count("other") == 1


def test_work_whose_processes_were_killed_is_done_anew(caller: Caller) -> None:
    caller.begin_and_kill()
    record = json.loads(next(caller.work.glob("*/record.json")).read_text())
    os.kill(record["pid"], signal.SIGKILL)  # what watches the command, which itself goes on
    second = caller.call()
    caller.wait_for("begun", 2)
    (caller.folder / "go").touch()
    assert second.wait(60) == 0
    time.sleep(0.2)
    assert caller.count("ended") == 1, "the first one's command is ended, too"


def test_a_number_that_belongs_to_another_process_by_now_is_left_alone(caller: Caller, box: Any) -> None:
    caller.begin_and_kill()
    file = next(caller.work.glob("*/record.json"))
    record = json.loads(file.read_text())
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        file.write_text(json.dumps({**record, "pid": stranger.pid, "process": f"{stranger.pid} 1 boot"}))
        assert not box.take_over("test", 2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_module_whose_controller_is_gone_leaves_its_work(caller: Caller) -> None:
    """Else the next command would wait for the module, and could neither follow its work nor end it."""
    first = caller.call()
    caller.wait_for("begun")
    assert first.stdout is not None
    first.stdout.close()
    assert first.wait(30) == 1
    second = caller.call()
    (caller.folder / "go").touch()
    assert second.wait(60) == 0 and caller.count("begun") == 1


def test_no_secret_is_written_and_strangers_may_not_look(caller: Caller) -> None:
    caller.begin_and_kill()
    written = [file for file in caller.work.rglob("*") if file.is_file()]
    assert written and not any("canary-77" in file.read_text() for file in written)
    assert [folder.stat().st_mode & 0o077 for folder in caller.work.iterdir()] == [0]


def test_failures_are_sentences_with_the_last_lines(caller: Caller, box: Any) -> None:
    failed = caller.call('echo "out $SECRET"; echo bad >&2; exit 3')
    assert failed.communicate(timeout=60)[1] == "Working failed with exit code 3:\nout canary-77\nbad\n"
    with pytest.raises(box.BoxError, match=r"^Working failed: no-such-program: No such file or directory\.$"):
        box.detached(["no-such-program"], slot="test", key=1, purpose="Working")
    with pytest.raises(box.BoxError, match=r"^Working was ended after 0\.0001\d* h, which is its limit:\nbegun$"):
        box.detached(["sh", "-c", "echo begun; sleep 60"], slot="test", key=1, purpose="Working", limit_s=0.5)


def test_what_nobody_asked_for_is_ended_when_the_machine_is_in_shape(
    caller: Caller, run_module: Any, tmp_path: Path
) -> None:
    caller.begin_and_kill()
    run_module("convergence", fingerprint="aa", state="recorded", path=str(tmp_path / "converged.json"))
    (caller.folder / "go").touch()
    time.sleep(0.2)
    assert caller.count("ended") == 0 and list(caller.work.iterdir()) == []
