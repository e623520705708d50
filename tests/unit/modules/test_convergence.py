# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine that is in shape is recognised, and one that was left half-way is not."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from ansible_collections.gpuyard.cloud.plugins.modules import convergence


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "gpuyard" / "converged.json"


def test_an_empty_machine_does_not_match(run_module, record: Path) -> None:
    result = run_module("convergence", fingerprint="aa", path=str(record))
    assert (result["matches"], result["changed"], result["recorded"]) == (False, False, "")
    assert result["to_change"], "parts need not be named"
    assert not record.exists()


def test_what_was_recorded_matches_and_stays(run_module, record: Path) -> None:
    assert run_module("convergence", fingerprint="aa", state="recorded", path=str(record))["changed"]
    assert not run_module("convergence", fingerprint="aa", state="recorded", path=str(record))["changed"]
    result = run_module("convergence", fingerprint="aa", path=str(record))
    assert result["matches"] and not result["changed"] and not result["to_change"]
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


PARTS = {"packages": "p1", "repository": "r1", "gpuyard": "g1"}


@pytest.fixture
def compare(run_module, record: Path, tmp_path: Path):
    """Return a function that asks or records for a machine with its files in a folder."""
    common = {"path": str(record), "settings": str(tmp_path / "run"), "not_beside": ["gpuyard"]}

    def call(parts=PARTS, **options):
        return run_module("convergence", **common, fingerprint="-".join(parts.values()), parts=parts, **options)

    return call


@pytest.fixture
def running(tmp_path: Path):
    """Hold the lock that a stage runner holds."""
    (tmp_path / "run").mkdir(exist_ok=True)
    with (tmp_path / "run/runner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_only_what_differs_is_to_do(compare) -> None:
    """X9: a machine that has most of what is wanted is brought into shape only where it differs."""
    assert compare()["todo"] == list(PARTS)
    compare(state="recorded", repository="/src/a", search_path=["/envs/a/bin"])
    same = compare()
    assert (same["matches"], same["todo"], same["differs"], same["running"]) == (True, [], [], False)
    assert (same["repository"], same["search_path"]) == ("/src/a", ["/envs/a/bin"])
    other = compare(PARTS | {"repository": "r2"})
    assert (other["matches"], other["todo"]) == (False, ["repository"])
    assert compare(full=True)["todo"] == list(PARTS)


def test_what_was_cut_off_is_done_again_and_the_rest_is_not(compare) -> None:
    compare(state="recorded")
    other = PARTS | {"repository": "r2"}
    assert compare(other, state="begun")["todo"] == ["repository"]
    assert compare(other)["todo"] == ["repository"] and compare()["todo"] == ["repository"]


def test_stages_that_run_are_left_alone(compare, running, record: Path) -> None:
    """X9: without update=true nothing of a machine whose stages run is to be done, whatever differs."""
    compare(state="recorded")
    before = record.read_text()
    for state in ("compared", "begun"):
        found = compare(PARTS | {"repository": "r2", "gpuyard": "g2"}, state=state, full=True)
        assert (found["running"], found["todo"], found["changed"], found["to_change"]) == (True, [], False, False)
        assert (found["differs"], found["waiting"]) == (["repository", "gpuyard"], ["gpuyard"])
    assert record.read_text() == before


def test_an_update_beside_them_leaves_what_cannot_lie_beside(compare, running) -> None:
    compare(state="recorded")
    other = PARTS | {"repository": "r2", "gpuyard": "g2"}
    found = compare(other, update=True, state="begun")
    assert (found["todo"], found["waiting"]) == (["repository"], ["gpuyard"])
    compare(other, state="recorded", left=found["waiting"])
    after = compare(other, update=True)
    assert (after["matches"], after["differs"], after["todo"], after["to_change"]) == (False, ["gpuyard"], [], False)


def test_what_nobody_needs_any_more_is_removed(compare, tmp_path: Path) -> None:
    """The running stage's folders, those of the settings and the new ones stay, with the notes about them."""
    src, envs = tmp_path / "src", tmp_path / "envs"
    for name in ("old", "used", "told", "new"):
        (src / name / "deep").mkdir(parents=True)
        (src / f".{name}.json").write_text("{}")
        (src / f".{name}.build.log").touch()
        (envs / name / "bin").mkdir(parents=True)
    (src / "old/link").symlink_to(tmp_path)
    (envs / "image").symlink_to(tmp_path)
    (tmp_path / "run").mkdir()
    used = {"repository": str(src / "used"), "path": [str(envs / "used/bin")]}
    told = {"repository": str(src / "told"), "path": [str(envs / "told/bin")]}
    (tmp_path / "run/taken-up.json").write_text(json.dumps(used))
    (tmp_path / "run/settings.json").write_text(json.dumps(told))
    prune = {"state": "recorded", "prune": [str(src), str(envs), str(tmp_path / "nowhere")]}
    new = {"repository": str(src / "new"), "search_path": [str(envs / "new/bin")]}
    assert compare(check=True, **prune, **new)["removed"] == [] and (src / "old").exists()
    removed = compare(**prune, **new)["removed"]
    assert sorted(removed) == sorted(map(str, [src / "old", envs / "image", envs / "old"]))
    assert {path.name.strip(".").split(".")[0] for path in src.iterdir()} == {"used", "told", "new"}
    assert {path.name for path in envs.iterdir()} == {"used", "told", "new"} and tmp_path.is_dir()


def test_a_volume_that_did_not_come_back_is_brought_again(
    run_module, record: Path, tmp_path: Path, monkeypatch
) -> None:
    """After a reboot the record still says that everything is there."""
    parts = {"volumes": "1", "persist": "2", "rust": "3"}
    call = {"fingerprint": "aa", "parts": parts, "path": str(record)}
    run_module("convergence", state="recorded", **call)
    fstab = tmp_path / "fstab"
    monkeypatch.setattr(convergence, "FSTAB", str(fstab))
    assert run_module("convergence", **call)["matches"]
    fstab.write_text("UUID=a /no/such/place ext4 nofail,x-gpuyard.volume=cache 0 2\n")
    result = run_module("convergence", **call)
    assert not result["matches"] and result["todo"] == ["volumes", "persist"]
    # A workload without volumes has nothing to do with what an earlier one has left.
    without = {name: value for name, value in parts.items() if name != "volumes"}
    run_module("convergence", state="recorded", **{**call, "parts": without})
    assert run_module("convergence", **{**call, "parts": without})["matches"]
