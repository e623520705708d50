# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine that is in shape is recognised, and one that was left half-way is not."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "gpuyard" / "converged.json"


def test_an_empty_machine_does_not_match(run_module, record: Path) -> None:
    result = run_module("convergence", fingerprint="aa", path=str(record))
    assert (result["matches"], result["changed"], result["recorded"]) == (False, False, "")
    assert not record.exists()


def test_what_was_recorded_matches_and_stays(run_module, record: Path) -> None:
    assert run_module("convergence", fingerprint="aa", state="recorded", path=str(record))["changed"]
    assert not run_module("convergence", fingerprint="aa", state="recorded", path=str(record))["changed"]
    result = run_module("convergence", fingerprint="aa", path=str(record))
    assert result["matches"] and not result["changed"]
    assert record.stat().st_mode & 0o777 == 0o644


def test_another_state_is_forgotten_so_that_an_interruption_shows(run_module, record: Path) -> None:
    run_module("convergence", fingerprint="aa", state="recorded", path=str(record))
    foreseen = run_module("convergence", fingerprint="bb", path=str(record), check=True)
    assert foreseen["changed"] and record.exists()
    assert run_module("convergence", fingerprint="bb", path=str(record))["changed"] and record.exists()
    result = run_module("convergence", fingerprint="bb", state="begun", path=str(record))
    assert result["changed"] and not result["matches"]
    assert result["diff"]["before"] == "aa\n" and result["diff"]["after"] == "\n"
    assert not run_module("convergence", fingerprint="aa", path=str(record))["matches"]


def test_a_full_look_forgets_what_matches(run_module, record: Path) -> None:
    run_module("convergence", fingerprint="aa", state="recorded", path=str(record))
    assert not run_module("convergence", fingerprint="aa", full=True, path=str(record))["matches"]
    assert not run_module("convergence", fingerprint="aa", full=True, state="begun", path=str(record))["matches"]
    assert not run_module("convergence", fingerprint="aa", path=str(record))["matches"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint"', "null"])
def test_a_damaged_record_counts_as_none(run_module, record: Path, content: str) -> None:
    record.parent.mkdir()
    record.write_text(content)
    assert not run_module("convergence", fingerprint="aa", path=str(record))["matches"]
