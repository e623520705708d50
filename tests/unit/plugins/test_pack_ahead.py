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
from _ahead import packing_ahead
packed = open(sys.argv[1], "a", buffering=1)
def pack(name):
    if name == "broken":
        raise ValueError("the task that needs it says so")
    time.sleep(0.2)
    packed.write(name + "\\n")
with packing_ahead(pack, ["one", "broken", "two", "three"]):
    time.sleep(float(sys.argv[2]))
"""


def packed_while_waiting(file: Path, seconds: float) -> list[str]:
    subprocess.run([sys.executable, "-c", PROGRAM, str(file), str(seconds)], check=True)
    time.sleep(0.5)  # whoever still packs has time to
    return file.read_text().split()


def test_what_fails_is_left_to_its_task(tmp_path: Path) -> None:
    assert packed_while_waiting(tmp_path / "packed", 3.0) == ["one", "two", "three"]


def test_it_ends_with_the_wait(tmp_path: Path) -> None:
    assert packed_while_waiting(tmp_path / "packed", 0.3) == ["one"]
