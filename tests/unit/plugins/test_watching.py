# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the play shows of long work on a machine. The machine is this one; the programs that look are real."""

from __future__ import annotations

import importlib
import json
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible_collections.gpuyard.cloud.plugins.module_utils import _progress

watching = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.plugin_utils._watching")


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"done": 1_200_000_000, "total": 4_100_000_000, "bytes_per_s": 85_000_000},
            "run-0: weights base: 1.2 of 4.1 GB, 85 MB/s, 34 s left",
        ),
        ({"done": 320_000_000, "total": 0, "bytes_per_s": 0}, "run-0: weights base: 320 MB"),
        ({"done": 10, "total": 90_000, "bytes_per_s": 4}, "run-0: weights base: 0 of 90 kB, 0.0 kB/s, 6.2 h left"),
        ({"done": 9_000_000, "total": 9_000_000, "bytes_per_s": 1_500_000}, "run-0: weights base: 9 of 9 MB, 1.5 MB/s"),
        ({"done": 1e9, "total": 2e9, "bytes_per_s": 1e6}, "run-0: weights base: 1.0 of 2.0 GB, 1.0 MB/s, 17 min left"),
        ({"line": "Compiling serde v1.0"}, "run-0: weights base: Compiling serde v1.0 (41 s)"),
        ({"line": ""}, "run-0: weights base (41 s)"),
    ],
)
def test_the_words(record: dict[str, Any], line: str) -> None:
    assert watching.in_words("run-0", {"what": "weights base", "seconds": 41.4} | record) == line


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("one\n  Compiling serde v1.0\n\n", "Compiling serde v1.0"),
        ("10 %\r20 %\r30 %\r", "30 %"),
        ("\x1b[1;32mGreen\x1b[0m done\n", "Green done"),
        ("from https://me:canary-61@mirror.invalid/simple\n", "from https://mirror.invalid/simple"),
        ("", ""),
        ("x" * 9000, "x" * 120),
    ],
)
def test_the_last_line_of_a_log_is_as_a_terminal_shows_it(tmp_path: Path, written: str, line: str) -> None:
    (tmp_path / "log").write_text(written)
    assert _progress.last_line(tmp_path / "log") == line


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which modules write how far they are."""
    file = tmp_path / "progress.json"
    monkeypatch.setattr(_progress, "FILE", file)
    monkeypatch.setattr(watching, "FILE", file)
    return file


def test_a_module_writes_how_far_it_is_once_a_second_and_takes_it_away(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    done = [0]
    with _progress.Progress("weights base", count=lambda: done[0], total=4000) as progress:
        progress.tick()
        assert not file.exists()
        for _ in range(40):
            clock[0] += 0.5
            done[0] += 50
            progress.tick()
        record = json.loads(file.read_text())
        assert (record["what"], record["done"], record["total"]) == ("weights base", 2000, 4000)
        assert record["bytes_per_s"] == 100 and record["seconds"] == 20
        assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == []


def test_a_machine_that_takes_no_file_goes_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "FILE", file.parent / "none" / "progress.json")
    monkeypatch.setattr(_progress, "_EVERY_S", 0.0)
    with _progress.Progress("work", log=file.parent / "no-log") as progress:
        progress.tick()


class Task:
    """An action of Ansible's that works on this machine for as long as a test likes, and what it showed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, transport: str = "local", no_log: bool = False) -> None:
        self.lines: list[str] = []
        self.shown = threading.Event()
        self.action = SimpleNamespace(
            _task=SimpleNamespace(no_log=no_log, get_name=lambda: "Have the weights"),
            _connection=SimpleNamespace(transport=transport),
            _play_context=SimpleNamespace(become=False),
        )
        monkeypatch.setattr(watching, "show_line", self.show)
        monkeypatch.setattr(watching, "_EVERY_S", 0.1)
        monkeypatch.setattr(watching.C.config, "get_config_value", self.no_setting)

    def no_setting(self, *_names: str, **_more: str) -> None:
        raise AnsibleError("no such callback")

    def show(self, line: str) -> None:
        self.lines.append(line)
        self.shown.set()

    def work(self) -> str:
        """Be at work until a line is shown, and return that."""
        with watching.watching(self.action, {"inventory_hostname": "run-0"}):
            assert self.shown.wait(60)
        return self.lines[0]


def write(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({"what": "weights base", "line": "file 3", "seconds": 9, "at": time.time()} | values))


def test_the_play_shows_what_the_module_has_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file)
    assert Task(monkeypatch).work() == "run-0: weights base: file 3 (9 s)"


@pytest.mark.parametrize("content", [None, {"at": 1.0}, {"seconds": "x"}])
def test_else_it_shows_the_task(file: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any] | None) -> None:
    """Where nothing is written, where a killed module has left it, and where another version wrote it."""
    if content:
        write(file, **content)
    assert Task(monkeypatch).work() == "run-0: Have the weights (0 s)"


def test_nothing_is_looked_at_for_a_secret_task_or_over_an_unknown_connection(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file)
    assert Task(monkeypatch, no_log=True).work() == "run-0: Have the weights (0 s)"
    assert Task(monkeypatch, transport="winrm").work() == "run-0: Have the weights (0 s)"


def test_a_short_task_shows_nothing_and_is_not_held_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file)
    task = Task(monkeypatch)
    monkeypatch.setattr(watching, "_EVERY_S", 5.0)
    begun = time.process_time()
    with watching.watching(task.action, {}):
        pass
    assert time.process_time() - begun < 0.05 and task.lines == []


def test_a_look_that_hangs_does_not_hold_up_the_end_and_shows_nothing_afterwards(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(monkeypatch)
    monkeypatch.setattr(watching._Watch, "_command", lambda _self: ["sleep", "600"])
    made: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def look(*words: Any, **more: Any) -> subprocess.Popen[str]:
        made.append(start(*words, **more))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", look)
    before = set(threading.enumerate())
    with watching.watching(task.action, {}):
        (thread,) = set(threading.enumerate()) - before
        while not made:
            time.sleep(0.01)
    thread.join(60)
    assert made[0].wait(10) != 0 and not thread.is_alive() and task.lines == []


def test_a_setting_of_none_is_heeded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(monkeypatch)
    monkeypatch.setattr(watching.C.config, "get_config_value", lambda *_names, **_more: 0)
    before = threading.active_count()
    with watching.watching(task.action, {}):
        assert threading.active_count() == before
