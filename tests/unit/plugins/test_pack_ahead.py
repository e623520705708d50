# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules are packed beside the wait for a machine, and no longer than somebody waits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[3] / "plugins" / "plugin_utils"
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(PLUGINS)!r})
from _ahead import Ahead
packed = open(sys.argv[1], "a", buffering=1)
def pack(name):
    if name == "broken":
        raise ValueError("the task that needs it says so")
    packed.write(name + "\\n")
    time.sleep(0.5)
ahead = Ahead(pack)
ahead.pack(["one", "broken", "two"])
ahead.pack(["three"])
while len(open(sys.argv[1]).readlines()) < int(sys.argv[2]):
    time.sleep(0.02)
if len(sys.argv) > 3:
    ahead.leave()
ahead.close()
"""


def packed_while_waiting(file: Path, wait_for: int) -> list[str]:
    """Return what is packed when somebody waits until so many modules are begun."""
    subprocess.run([sys.executable, "-c", PROGRAM, str(file), str(wait_for)], check=True, timeout=60)
    time.sleep(1.0)
    return file.read_text().split()


def test_what_fails_is_left_to_its_task(tmp_path: Path) -> None:
    assert packed_while_waiting(tmp_path / "packed", 3) == ["one", "two", "three"]


def test_it_goes_on_where_long_tasks_follow(tmp_path: Path) -> None:
    file = tmp_path / "packed"
    subprocess.run([sys.executable, "-c", PROGRAM, str(file), "1", "leave"], check=True, timeout=60)
    deadline = time.monotonic() + 30
    while file.read_text().split() != ["one", "two", "three"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert file.read_text().split() == ["one", "two", "three"]


def test_it_ends_with_the_wait(tmp_path: Path) -> None:
    assert packed_while_waiting(tmp_path / "packed", 1) == ["one"]
