# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One short command tells a machine that matches, so that the module is sent only where there is more to tell."""

from __future__ import annotations

import fcntl
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

WANTED = "f" * 64


@pytest.fixture
def glance(tmp_path: Path) -> Any:
    """Return the look of the action plugin, at a machine that is a folder here; the command and its shell are real."""
    action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.action.convergence").ActionModule

    class Here(action):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            """Need no connection."""

        def _low_level_execute_command(self, cmd: str) -> dict[str, Any]:
            done = subprocess.run(["sh", "-c", cmd], capture_output=True, text=True, check=False)
            return {"rc": done.returncode, "stdout": done.stdout}

    (tmp_path / "run").mkdir()
    options = {"fingerprint": WANTED, "settings": str(tmp_path / "run"), "path": str(tmp_path / "converged.json")}
    return lambda **more: Here()._at_a_glance(options | {"parts": {"python": "1"}} | more)


def write(folder: Path, fingerprint: str) -> None:
    record = {"fingerprint": fingerprint, "repository": "/opt/x", "search_path": ["/opt/e/bin"]}
    (folder / "converged.json").write_text(json.dumps(record))


def test_a_machine_that_matches_is_told_with_what_the_stages_need(glance: Any, tmp_path: Path) -> None:
    write(tmp_path, WANTED)
    found = glance()
    assert found["matches"] and not found["to_change"] and not found["changed"]
    assert (found["repository"], found["search_path"]) == ("/opt/x", ["/opt/e/bin"])


@pytest.mark.parametrize("content", [None, "0" * 64, ""])
def test_one_that_does_not_match_goes_to_be_changed(glance: Any, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        write(tmp_path, content)
    found = glance()
    assert found["to_change"] and not found["matches"]


def test_a_damaged_record_is_no_match(glance: Any, tmp_path: Path) -> None:
    (tmp_path / "converged.json").write_text('{"fingerprint": "')
    assert glance()["to_change"]


def test_where_stages_run_the_module_has_to_tell_what_differs(glance: Any, tmp_path: Path) -> None:
    write(tmp_path, WANTED)
    with (tmp_path / "run/runner.lock").open("w") as runner:
        fcntl.flock(runner, fcntl.LOCK_EX)
        found = glance()
        assert found["matches"] and found["running"] and not found["to_change"]
        write(tmp_path, "0" * 64)
        assert glance() is None
    write(tmp_path, WANTED)
    assert glance()["matches"] and not glance()["running"]


def test_without_flock_the_module_has_to_tell(glance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, WANTED)
    (tmp_path / "run/runner.lock").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda words, run=subprocess.run, **more: run(["/bin/sh", *words[1:]], **more)
    )
    assert glance() is None


def test_volumes_take_a_look_that_is_left_to_the_module(glance: Any, tmp_path: Path) -> None:
    write(tmp_path, WANTED)
    assert glance(parts={"volumes": "1"}) is None


@pytest.mark.parametrize("more", [{"full": True}, {"full": "yes"}, {"full": True, "parts": {"volumes": "1"}}])
def test_where_all_is_to_be_looked_at_a_machine_that_matches_is_looked_at(
    glance: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    write(tmp_path, WANTED)
    found = glance(**more)
    assert found["to_change"] and not found["matches"] and found["repository"] == "/opt/x"
    with (tmp_path / "run/runner.lock").open("w") as runner:
        fcntl.flock(runner, fcntl.LOCK_EX)
        assert glance(**more) is None
