"""A state folder outlives the version that wrote it: older ones are read, newer ones refused (docs/formats)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpuyard.errors import UsageError
from gpuyard.sandbox import info
from gpuyard.sandbox.clouds import BASE_PATHS
from gpuyard.sandbox.model import Phase, Rental, World
from gpuyard.sandbox.settings import Settings

GOLDEN = Path(__file__).parent / "golden/sandbox-state"
FILES = ("settings.json", "state.json", "sandbox.json")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(GOLDEN / "1", tmp_path / "state")
    monkeypatch.setattr(info, "is_server", lambda pid, folder: pid == 4711)
    return tmp_path / "state"


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("version", ["1", "old"])
def test_what_was_written_is_read(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`old` has no version, fewer fields, a field that is gone, and the keys of one provider only."""
    monkeypatch.setattr(info, "is_server", lambda pid, folder: True)
    world = World.load(GOLDEN / version / "state.json")
    (rental,) = world.rentals
    assert (rental.phase, rental.bid, rental.relet, rental.lines[1].what) == (Phase.RUNNING, 0.034, False, "disk")
    assert {name: len(keys) for name, keys in world.keys.items()} == {"vast": 1, "vultr": 0, "lambda": 0, "runpod": 0}
    assert [(one.kind, one.lines[0].what) for one in world.holdings] == (
        [("volume", "volume")] if version == "1" else []
    )
    settings = Settings.load(GOLDEN / version)
    assert settings is not None and (settings.name, settings.port, settings.boot_seconds) == ("ab12cd", 20867, 3.0)
    running = info.load(GOLDEN / version)
    assert (running.vast_key, running.endpoints["vultr"]) == ("sandbox-vast-golden", "http://127.0.0.1:20867/v2")
    known = {"vast": "sandbox-vast-golden", "vultr": "sandbox-vultr-golden"}
    assert running.keys == known | (
        {} if version == "old" else {"lambda": "sandbox-lambda-golden", "runpod": "sandbox-runpod-golden"}
    )
    assert ("LAMBDA_API_KEY" in running.exports()) == (version != "old")


def test_what_is_written_today_is_the_golden_file(tmp_path: Path) -> None:
    """Whoever changes the format sees it here: a new golden file, and a new version where old readers would fail."""
    World.load(GOLDEN / "1/state.json").save(tmp_path / "state.json")
    settings = Settings.load(GOLDEN / "1")
    assert settings is not None
    settings.save(tmp_path)
    (tmp_path / "sandbox.json").write_text(json.dumps(settings.sandbox_json(4711, BASE_PATHS)))
    for name in FILES:
        assert json.loads((tmp_path / name).read_text()) == json.loads((GOLDEN / "1" / name).read_text()), name


def test_what_a_later_version_adds_is_passed_over(state: Path) -> None:
    for name in FILES:
        change(state / name, added_later={"a": [1]})
    world = json.loads((state / "state.json").read_text())
    for part in (
        world["rentals"][0],
        world["rentals"][0]["lines"][0],
        world["holdings"][0],
        world["keys"]["vast"][0],
        world["faults"][0],
    ):
        part["added_later"] = 1
    (state / "state.json").write_text(json.dumps({**world, "keys": {**world["keys"], "later": []}}))
    assert isinstance(World.load(state / "state.json").rentals[0], Rental)
    change(state / "sandbox.json", keys={**json.loads((state / "sandbox.json").read_text())["keys"], "later": "k"})
    assert Settings.load(state) is not None and info.load(state).keys["later"] == "k"


@pytest.mark.parametrize("name", FILES)
def test_a_newer_major_is_refused_and_named(state: Path, name: str) -> None:
    change(state / name, version=2)
    readers = {
        "settings.json": lambda: Settings.load(state),
        "state.json": lambda: World.load(state / name),
        "sandbox.json": lambda: info.is_up(state),
    }
    with pytest.raises(UsageError, match=r"was written by a newer gpuyard \(format 2, this one reads 1\): use that"):
        readers[name]()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["", "[]", '{"version": "x"}', '{"version": null}'])
def test_what_is_no_such_file_is_one_sentence(state: Path, name: str, content: str) -> None:
    (state / name).write_text(content)
    readers = {
        "settings.json": lambda: Settings.load(state),
        "state.json": lambda: World.load(state / name),
        "sandbox.json": lambda: info.load(state),
    }
    with pytest.raises(UsageError, match="cannot be read as a sandbox's"):
        readers[name]()


def test_one_idea_of_running(state: Path) -> None:
    """`gpuyard sandbox` and the plays ask the same: does the process that the file names live?"""
    assert info.is_up(state)
    change(state / "sandbox.json", pid=4712)
    assert info.read(state) is None and not info.is_up(state)
    with pytest.raises(UsageError, match="ended without being shut down"):
        info.load(state)
    (state / "sandbox.json").unlink()
    with pytest.raises(UsageError, match="is not running"):
        info.load(state)
