# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run's files brought here: from the bucket, from a machine, only what differs, and never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box import checkpoints, outgoing
from gpuyard.box.checkpoints import LocalStore
from gpuyard.renting import collecting

from .conftest import Verb, World, instance

RULES = [{"path": "results/**", "kind": "results"}, {"path": "*.pt", "kind": "model", "keep": "all"}]


class Run:
    """A run's persistent root, its bucket, and the folder that its files are brought to."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.to, self.store = tmp_path / "root", tmp_path / "to", LocalStore(tmp_path / "bucket")
        self.bucket = f"file://{tmp_path / 'bucket'}"
        for name, content in {
            "results/a b.txt": "one",
            "results/deep/é.txt": "two",
            "m.pt": "weights",
            "x": "x",
        }.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        (self.root / "newest").symlink_to("m.pt")
        (tmp_path / "bucket").mkdir()
        checkpoints.write_record(self.store, "a-0", "miniprover")

    def publish(self) -> None:
        checkpoints.publish(self.store, "a-0", self.root, progress=lambda _journal: {})

    def here(self) -> dict[str, str]:
        """Return what has been brought, the contents by path."""
        files = [file for file in self.to.rglob("*") if file.is_file()]
        return {str(file.relative_to(self.to)): file.read_text() for file in files}


@pytest.fixture
def run(tmp_path: Path, world: World) -> Run:
    """Return a run whose machine is gone."""
    return Run(tmp_path)


@pytest.fixture
def program(run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the run a machine, whose program for sending files runs right here, and return that program's file."""
    (tmp_path / "workload.json").write_text(json.dumps({"persist": {"root": str(run.root), "rules": RULES}}))
    copy = tmp_path / "outgoing.py"
    copy.write_text(Path(outgoing.__file__).read_text().replace(outgoing.WORKLOAD, str(tmp_path / "workload.json")))
    monkeypatch.setattr(outgoing, "__file__", str(copy))
    monkeypatch.setattr(collecting, "_ssh", lambda *_: ["sh", "-c"])
    world.vast.held["1"] = instance("vast", "1", "a-0")
    return copy


ALL = {"results/a b.txt": "one", "results/deep/é.txt": "two", "m.pt": "weights", "x": "x", "newest": "weights"}


def test_the_bucket_has_them_when_the_machine_is_gone(run: Run, verb: Verb) -> None:
    run.publish()
    options: dict[str, Any] = {"run": "a-0", "bucket": run.bucket, "to": str(run.to)}
    planned = verb("run_sync", **options, check=True)
    assert (
        len(planned["files"]) == 5 and "would be brought from checkpoint 1" in planned["text"] and not run.to.exists()
    )
    assert verb("run_sync", **options)["changed"] and run.here() == ALL
    assert os.readlink(run.to / "newest") == "m.pt"  # noqa: PTH115
    assert not verb("run_sync", **options)["changed"]
    # What is different here is brought again, and nothing else; what is only here stays.
    (run.to / "x").write_text("y")
    (run.to / "mine").write_text("mine")
    assert [one["path"] for one in verb("run_sync", **options)["files"]] == ["x"] and run.here() == {
        **ALL,
        "mine": "mine",
    }


def test_a_damaged_object_takes_no_files_place(run: Run, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    run.publish()
    manifest = checkpoints.latest_manifest(run.store, "a-0")
    assert manifest is not None
    monkeypatch.setattr(checkpoints, "latest_whole_manifest", lambda *_args, **_more: manifest)
    run.to.mkdir()
    (run.to / "m.pt").write_text("older")
    key = next(one.key for one in manifest.files if one.path == "m.pt")
    run.store.put(key, b"wei" + b"\0" * 4)
    result = verb("run_sync", run="a-0", bucket=run.bucket, to=str(run.to), what=["m.pt"])
    assert "m.pt in checkpoint 1 of" in result["msg"] and "is damaged" in result["msg"]
    assert run.here() == {"m.pt": "older"}


def test_a_machine_sends_them_without_a_bucket_and_what_is_written_to_is_left_out(
    run: Run, verb: Verb, program: Path
) -> None:
    options: dict[str, Any] = {"run": "a-0", "bucket": "", "to": str(run.to)}
    result = verb("run_sync", **options)
    assert not result.get("failed"), result
    assert result["source"] == "vast 1" and run.here() == ALL
    assert not verb("run_sync", **options)["changed"]
    (run.root / "x").write_text("longer")
    program.write_text(program.read_text().replace('"whole": same', '"whole": path != "x" and same'))
    lines: list[str] = []
    result = verb("run_sync", **options, lines=lines)
    assert result["problems"] == ["x is written to all the time, or is gone, so it was not brought."]
    assert run.here()["x"] == "x" and "1 files were written to while they were sent, and are sent again." in lines


def test_kinds_and_patterns_choose(run: Run, verb: Verb, program: Path) -> None:
    def names(*what: str) -> set[str]:
        result = verb("run_sync", run="a-0", bucket="", to=str(run.to), what=list(what), check=True)
        return {one["path"] for one in result["files"]}

    assert names("models") == names("model") == {"m.pt"}
    assert names("results", "x") == {"results/a b.txt", "results/deep/é.txt", "x"} == names("results/**", "x")
    result = verb("run_sync", run="a-0", bucket="", to=str(run.to), what=["reslts"])
    assert "what=reslts matches no file of the run. There are kinds: model (1), results (2); folders" in result["msg"]


def test_a_machine_that_breaks_off_gives_way_to_the_bucket_and_leaves_no_half_file(
    run: Run, verb: Verb, program: Path
) -> None:
    run.publish()
    text = program.read_text()
    program.write_text(text.replace("left -= len(data)", "sys.exit('it broke')"))
    options: dict[str, Any] = {"run": "a-0", "bucket": run.bucket, "to": str(run.to)}
    result = verb("run_sync", **options, source="box")
    assert "vast 1 has not sent its files: it broke." in result["msg"] and run.here() == {}
    program.write_text("raise SystemExit('no python here')")
    lines: list[str] = []
    assert verb("run_sync", **options, lines=lines)["source"].startswith("checkpoint 1")
    assert "no python here. So the bucket is looked at." in "\n".join(lines) and run.here() == ALL


def test_what_cannot_be_is_one_sentence_before_anything_is_written(
    run: Run, verb: Verb, program: Path, world: World
) -> None:
    options: dict[str, Any] = {"run": "a-0", "bucket": "", "to": str(run.to)}
    (run.to.parent / "file").write_text("mine")
    assert "is a file; name a folder" in verb("run_sync", **{**options, "to": str(run.to.parent / "file")})["msg"]
    assert "cannot be written: " in verb("run_sync", **{**options, "to": "/proc/results"})["msg"]
    assert "Where do the files go?" in verb("run_sync", **{**options, "to": ""})["msg"]
    assert "is not known to the clouds and the bucket" in verb("run_sync", **{**options, "run": "b-0"})["msg"]
    assert "node='x' is no node of run a-0" in verb("run_sync", **options, node="x")["msg"]
    # Whatever a machine says, nothing is written outside of the folder.
    (run.root / "out").symlink_to("../../elsewhere")
    assert "which is outside of" in verb("run_sync", **options)["msg"] and not (run.to / "out").is_symlink()
    world.vast.held.clear()
    said = verb("run_sync", **{**options, "bucket": run.bucket}, source="box")["msg"]
    assert "has no running machine; -e from=bucket takes its newest checkpoint" in said
    assert "has no whole checkpoint in" in verb("run_sync", **{**options, "bucket": run.bucket})["msg"]
