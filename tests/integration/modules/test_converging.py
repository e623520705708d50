# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two commands bring one rented machine into shape, over real SSH: the second waits until the first is killed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from .conftest import BIN, ROOT, Yard


def write_play(file: Path, between: list[dict[str, Any]]) -> Path:
    """Write a play that locks the machine, does what comes between, and says that the machine is in shape."""
    fingerprint = {"fingerprint": "aa"}
    tasks = [
        {"gpuyard.cloud.convergence": fingerprint},
        *between,
        {"gpuyard.cloud.convergence": fingerprint | {"state": "recorded"}},
    ]
    variables = {"ansible_python_interpreter": "/usr/bin/python3"}
    file.write_text(yaml.safe_dump([{"hosts": "shape-0", "gather_facts": False, "vars": variables, "tasks": tasks}]))
    return file


def start(yard: Yard, play: Path | str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / "ansible-playbook", str(play), *words],
        cwd=ROOT,
        env=yard.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_second_command_waits_for_the_first_until_that_is_killed(yard: Yard, tmp_path: Path) -> None:
    yard.task("instance", run="shape-0", workload="tiny", provider="vast")
    locked = tmp_path / "locked"
    hang = [
        {"ansible.builtin.file": {"path": str(locked), "state": "touch"}, "delegate_to": "localhost"},
        {"ansible.builtin.wait_for": {"path": str(tmp_path / "never"), "timeout": 600}, "delegate_to": "localhost"},
    ]
    first = start(yard, write_play(tmp_path / "first.yml", hang))
    second = None
    try:
        deadline = time.monotonic() + 300
        while not locked.exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        second = start(yard, write_play(tmp_path / "second.yml", []))
        assert second.stdout is not None
        printed = []
        for line in second.stdout:
            printed.append(line)
            if "Waiting for" in line:
                break
        assert "who brings shape-0 into shape since" in printed[-1], "".join(printed)
        assert second.poll() is None
        first.kill()
        printed += list(second.stdout)
        assert second.wait(300) == 0, "".join(printed)
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
        subprocess.run(["pkill", "-KILL", "-s", str(first.pid)], check=False)
    again = yard.ansible("ansible-playbook", str(tmp_path / "second.yml"))
    assert "Waiting for" not in again
