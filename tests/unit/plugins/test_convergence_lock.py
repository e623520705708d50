# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One command at a time brings a box into shape, and a killed one does not keep the others out.

The box is a folder here and the plays are sleeping processes; the keepers, the lock and the kernel are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

from gpuyard.renting import converging

Play = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "opt"


@pytest.fixture
def play() -> Iterator[Play]:
    """Return a function that starts what stands for a play's main process."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Waiter:
    """A second command that wants the lock, in a thread of its own."""

    def __init__(self, box: Path, play: subprocess.Popen[bytes]) -> None:
        self.told: list[str] = []
        self.has_it = threading.Event()
        self.thread = threading.Thread(target=self._wait, args=(box, play), daemon=True)
        self.thread.start()

    def _wait(self, box: Path, play: subprocess.Popen[bytes]) -> None:
        converging.acquire(command(box, "second"), "second", play.pid, self.told.append)
        self.has_it.set()

    def waits_for(self, whom: str) -> None:
        deadline = time.monotonic() + 60
        while f"Waiting for {whom}." not in self.told and not self.has_it.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert f"Waiting for {whom}." in self.told and not self.has_it.is_set()

    def gets_it(self) -> None:
        assert self.has_it.wait(60)


def command(box: Path, owner: str) -> list[str]:
    return converging.box_command(str(box), owner, python=sys.executable)


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_through(box: Path, play: Play) -> None:
    first, second = play(), play()
    converging.acquire(command(box, "alice on laptop"), "run-0", first.pid, lambda text: pytest.fail(text))
    waiter = Waiter(box, second)
    waiter.waits_for("alice on laptop")
    converging.release("run-0", first.pid)
    waiter.gets_it()


def test_a_killed_play_keeps_nobody_out(box: Path, play: Play) -> None:
    first, second = play(), play()
    converging.acquire(command(box, "alice on laptop"), "run-0", first.pid, lambda text: pytest.fail(text))
    waiter = Waiter(box, second)
    waiter.waits_for("alice on laptop")
    first.send_signal(signal.SIGKILL)
    first.wait()
    waiter.gets_it()


def test_a_module_that_outlives_its_play_is_waited_for(box: Path, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    first = play()
    converging.acquire(command(box, "alice"), "run-0", first.pid, lambda text: pytest.fail(text))
    converging.release("run-0", first.pid)
    monkeypatch.setattr(_box, "MODULES_LOCK", box / "modules.lock")
    with _box.at_work():
        waiter = Waiter(box, play())
        waiter.waits_for("a command that was killed, whose last step is still at work there")
    waiter.gets_it()


def test_a_module_on_a_machine_without_locks_just_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_box, "MODULES_LOCK", tmp_path / "modules.lock")
    with _box.at_work():
        assert not (tmp_path / "modules.lock").exists()


def test_a_box_that_refuses_is_one_sentence(box: Path, play: Play) -> None:
    refusing = ["bash", "-c", "echo 'Permission denied (publickey).' >&2; exit 255"]
    with pytest.raises(converging.ConvergeLockError, match=r"^run-0 cannot be locked .*: Permission denied"):
        converging.acquire(refusing, "run-0", play().pid, lambda _: None)


def test_silence_ends_the_lock(box: Path) -> None:
    """A controller whose network is gone says nothing any more, and its connection may stay open for hours."""
    words = command(box, "alice")
    words[-1] = "0.2"
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert json.loads(holder.stdout.readline()) == {"state": "held"}
        assert holder.wait(60) == 0
    assert (box / "converge.lock").read_text() == ""


def test_the_connection_is_of_its_own_and_quotes_the_command() -> None:
    words = converging.over_ssh(
        ["python3", "-c", "a b\n'c'"], host="192.0.2.1", port=40022, user="root", key="/k", options=["-o", "X=y"]
    )
    assert words[-2:] == ["192.0.2.1", "python3 -c 'a b\n'\"'\"'c'\"'\"''"]
    assert words.index("ControlPath=none") < words.index("X=y")
    assert [words[words.index(flag) + 1] for flag in ("-i", "-p", "-l")] == ["/k", "40022", "root"]


def test_the_owner_is_told_in_words() -> None:
    text = converging.owner_text("miniprover-0")
    assert "miniprover-0" in text and str(os.uname().nodename) in text and text.endswith("UTC")
