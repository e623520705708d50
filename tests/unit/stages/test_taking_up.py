"""A running stage keeps its code and environment; the next one takes what the settings say when it begins."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from stage_box import Box, until, wait_for

from gpuyard.box.stages import taking_up
from gpuyard.box.stages.taking_up import carry_over

LOOK = 'echo "$STAGE $(cat word) $COLOUR ${PATH%%:*} $PWD" >> "$GPUYARD_PERSIST/seen"'


def code(box: Box, name: str, **files: str) -> Path:
    """Make a code folder as work_tree leaves it, with the record of what belongs to the repository."""
    folder = box.base / "code" / name
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    folder.with_name(f".{name}.json").write_text(json.dumps({"digest": name, "files": dict.fromkeys(files, "hash")}))
    return folder


def tell(box: Box, repository: Path, stages: list[dict[str, Any]], colour: str = "red", **fields: Any) -> None:
    """Write the settings as the module stage_session does."""
    box.describe(stages, environment={"set": {"COLOUR": colour}}, **fields)
    settings = json.loads((box.settings / "settings.json").read_text())
    settings |= {"repository": str(repository), "path": [f"/opt/{colour}/bin"]}
    (box.settings / "settings.json").write_text(json.dumps(settings))


def seen(box: Box) -> list[str]:
    file = box.root / "seen"
    return file.read_text().splitlines() if file.exists() else []


def hold(name: str, more: str = "") -> dict[str, Any]:
    """Return a stage that looks, waits until it may go on, and looks again."""
    wait = until('test -e "$GPUYARD_PERSIST/go"').replace("exit 0", "break").replace("; exit 9", "")
    return {"name": name, "command": f"{LOOK}; {more}{wait}; {LOOK}"}


def test_a_stage_keeps_what_it_began_with_and_the_next_takes_the_new(box: Box) -> None:
    """X9: an update beside a running stage changes nothing for it."""
    old, new = code(box, "old", word="old"), code(box, "new", word="new")
    make = 'mkdir -p cache; echo made > cache/weights; echo made > "$GPUYARD_PERSIST/made"; '
    first, second = hold("first", make), {"name": "second", "command": LOOK}
    tell(box, old, [first, second])
    runner = box.start("run")
    wait_for(lambda: (box.root / "made").exists())
    edited = {"name": "second", "command": f"{LOOK}; cat cache/weights >> $GPUYARD_PERSIST/seen"}
    tell(box, new, [{**first, "command": "false"}, edited], "blue")
    time.sleep(0.3)
    (box.root / "go").touch()
    assert runner.wait(120) == 0
    assert seen(box) == [
        f"first old red /opt/red/bin {old}",
        f"first old red /opt/red/bin {old}",
        f"second new blue /opt/blue/bin {new}",
        "made",
    ]
    assert (
        f"the code is now that of {new}" in box.screen
        and f"what stages wrote into {old} is now in {new}: cache" in box.screen
    )
    assert json.loads((box.settings / "taken-up.json").read_text()) == {
        "repository": str(new),
        "path": ["/opt/blue/bin"],
    }


def test_what_stages_wrote_goes_along_when_the_run_is_started_again(box: Box) -> None:
    old, new = code(box, "old", word="old"), code(box, "new", word="new")
    tell(box, old, [{"name": "first", "command": "echo made > weights; false"}])
    assert box.run() == 1
    tell(box, new, [{"name": "first", "command": "cat weights word > $GPUYARD_PERSIST/seen"}])
    assert box.run() == 0 and seen(box) == ["made", "new"]


def test_what_another_workload_left_on_the_machine_stays_there(box: Box) -> None:
    new = code(box, "new", word="new")
    other = box.base / "other/code"
    other.mkdir(parents=True)
    (other / "weights").touch()
    box.settings.mkdir(exist_ok=True)
    (box.settings / "taken-up.json").write_text(json.dumps({"repository": str(other), "path": []}))
    tell(box, new, [{"name": "first", "command": "test ! -e weights"}])
    assert box.run() == 0 and (other / "weights").exists()


def test_settings_that_cannot_be_read_do_not_end_the_run(box: Box) -> None:
    old = code(box, "old", word="old")
    tell(box, old, [hold("first"), {"name": "second", "command": LOOK}])
    runner = box.start("run")
    wait_for(lambda: seen(box))
    (box.settings / "workload.json").write_text("{")
    (box.root / "go").touch()
    assert runner.wait(120) == 0
    assert [line.split()[:2] for line in seen(box)] == [["first", "old"], ["first", "old"], ["second", "old"]]
    assert "the settings cannot be read, so the next stage takes what the last one had" in box.screen


def test_another_runs_settings_are_not_taken(box: Box) -> None:
    old, new = code(box, "old", word="old"), code(box, "new", word="new")
    tell(box, old, [hold("first"), {"name": "second", "command": LOOK}])
    runner = box.start("run")
    wait_for(lambda: seen(box))
    tell(box, new, [{"name": "second", "command": "false"}])
    settings = json.loads((box.settings / "settings.json").read_text())
    (box.settings / "settings.json").write_text(json.dumps(settings | {"run": "other-0"}))
    (box.root / "go").touch()
    assert runner.wait(120) == 0 and seen(box)[-1].split()[:2] == ["second", "old"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An old code folder with what belongs to its repository and what stages made, and a new one."""
    old, new, volume = tmp_path / "old", tmp_path / "new", tmp_path / "volume"
    tracked = ["main", "gone", "pkg/code"]
    made = [
        "weights",
        "pkg/cache",
        "out/a",
        "out/deep/b",
        "build/x",
        "target/x",
        "late/c",
        "__pycache__/z",
        ".git/HEAD",
    ]
    for name in [*tracked, *made, "target/CACHEDIR.TAG"]:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(f"old {name}")
    for name in ["main", "pkg/code", "build/x", "target/y"]:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(f"new {name}")
    (volume / "late").mkdir(parents=True)
    (new / "late").symlink_to(volume / "late")
    (old / "models").symlink_to(volume)
    (old / "latest").symlink_to("out/a")
    (tmp_path / ".old.json").write_text(json.dumps({"files": dict.fromkeys(tracked, "hash")}))
    return old, new


def test_carrying_over(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    moved = carry_over(old, new)
    assert sorted(moved) == ["late/c", "latest", "out", "pkg/cache", "weights"]
    found = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert found == {
        "main", "pkg/code", "pkg/cache", "build/x", "target/y", "weights", "out/a", "out/deep/b", "latest",
    }  # fmt: skip
    assert (new / "build/x").read_text() == "new build/x" and (tmp_path / "volume/late/c").read_text() == "old late/c"
    assert carry_over(old, new) == []


def test_what_cannot_be_moved_stays(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = folders

    def refuse(*_: Any) -> None:
        raise OSError("busy")

    monkeypatch.setattr(taking_up.shutil, "move", refuse)
    assert carry_over(old, new) == [] and (old / "weights").exists()


def test_git_says_what_belongs_to_a_repository(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / "main").touch()
    (old / "weights").touch()
    assert os.system(f"git init -q {old} && git -C {old} add main") == 0
    assert carry_over(old, new) == ["weights"]
