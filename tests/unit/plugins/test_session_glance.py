# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a run stands is asked by one short command; the module is sent where that has no answer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PROGRAM = """
import json, sys
assert sys.argv[1:-1] == ["-I", "-m", "gpuyard.box.stages", "status", "--json", "--settings"], sys.argv
print({answer})
"""


@pytest.fixture
def glance(tmp_path: Path) -> Any:
    """Return the look of the action plugin at a machine that is a folder here; its runner is a program of one line."""
    action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.action.stage_session").ActionModule
    program = tmp_path / "python"

    class Here(action):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            """Need no connection."""
            self._task = SimpleNamespace(args={"settings": str(tmp_path / "run"), "python": str(program)})

        def _low_level_execute_command(self, cmd: str) -> dict[str, Any]:
            done = subprocess.run(["sh", "-c", cmd], capture_output=True, text=True, check=False)
            return {"rc": done.returncode, "stdout": done.stdout}

    def look(answer: str) -> Any:
        program.write_text(f"#!{sys.executable}\n{PROGRAM.format(answer=answer)}")
        program.chmod(0o755)
        return Here()._at_a_glance()

    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text("{}")
    return look


def test_says_where_the_run_stands(glance: Any) -> None:
    assert glance("json.dumps({'state': 'running', 'to': sys.argv[-1][-4:]})") == {"state": "running", "to": "/run"}


@pytest.mark.parametrize("answer", ["'Welcome!'", "'[]'", "sys.exit(1)"])
def test_what_is_no_answer_is_left_to_the_module(glance: Any, answer: str) -> None:
    assert glance(answer) is None


def test_a_machine_without_a_run_is_left_to_the_module(glance: Any, tmp_path: Path) -> None:
    (tmp_path / "run/settings.json").unlink()
    assert glance("'{}'") is None
