"""A newer file of the repository is not lost to the checkpoint's, and the run's own work not to the repository's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore, manifest_of, publish, restore, restoring
from gpuyard.formats.manifest import BROUGHT

RUN = "miniprover-0"


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


def make_root(tmp_path: Path, name: str) -> Path:
    root = tmp_path / name
    (root / ".gpuyard").mkdir(parents=True)
    (root / ".gpuyard/journal.jsonl").write_text('{"event": "run-start"}\n')
    (root / "weights").write_text("weights")
    return root


TEXTS = ("first", "second", "third")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def brought(root: Path, **files: str) -> None:
    """Write files, and the record that the repository has brought them there."""
    record = {}
    for name, text in files.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_text(text)
        record[f"data/{name}"] = digest(text)
    (root / ".gpuyard").mkdir(exist_ok=True)
    (root / BROUGHT).write_text(json.dumps(record))


def record(root: Path) -> dict[str, str]:
    """Return the record with the texts in place of their hashes."""
    texts = {digest(text): text for text in TEXTS}
    return {path: texts[found] for path, found in json.loads((root / BROUGHT).read_text()).items()}


def test_a_newer_file_of_the_repository_stays_where_the_run_had_not_changed_it(
    folder: LocalStore, tmp_path: Path
) -> None:
    old = make_root(tmp_path, "old")
    brought(old, same="first", newer="first", changed="first", both="first", met="first", gone="first")
    (old / "data/changed").write_text("the run's")
    (old / "data/both").write_text("the run's")
    (old / "data/met").write_text("second")
    (old / "data/gone").unlink()
    publish(folder, RUN, old)
    new = tmp_path / "new"
    brought(new, same="first", newer="second", changed="first", both="second", met="second", gone="second", own="third")
    restored = restore(lambda: folder, RUN, new)
    assert restored.source == "cloud" and len(restored.warnings) == 1
    assert "another version of data/both than this machine got" in restored.warnings[0]
    expected = {"same": "first", "newer": "second", "changed": "the run's", "both": "the run's", "met": "second"}
    assert {path.name: path.read_text() for path in (new / "data").iterdir()} == {
        **expected,
        "gone": "second",
        "own": "third",
    }
    # The next machine judges by what this one has.
    assert record(new) == {
        **dict.fromkeys(("data/same", "data/changed", "data/both"), "first"),
        **dict.fromkeys(("data/newer", "data/met", "data/gone"), "second"),
        "data/own": "third",
    }
    publish(folder, RUN, new)
    last = tmp_path / "last"
    brought(last, newer="third", both="third", own="third")
    restored = restore(lambda: folder, RUN, last)
    assert (last / "data/newer").read_text() == "third" and (last / "data/both").read_text() == "the run's"
    assert "data/both" in restored.warnings[0] and "data/newer" not in restored.warnings[0]


def test_a_set_without_a_record_is_restored_as_it_is(folder: LocalStore, tmp_path: Path) -> None:
    old = make_root(tmp_path, "old")
    (old / "data").mkdir()
    (old / "data/input").write_text("first")
    publish(folder, RUN, old)
    new = tmp_path / "new"
    brought(new, input="second")
    assert restore(lambda: folder, RUN, new).warnings == []
    assert (new / "data/input").read_text() == "first" and record(new) == {}


def test_a_file_that_is_not_what_was_brought_here_gives_way_to_the_set(folder: LocalStore, tmp_path: Path) -> None:
    old, new = make_root(tmp_path, "old"), tmp_path / "new"
    brought(old, input="first", other="first")
    publish(folder, RUN, old)
    brought(new, input="second", other="second")
    (new / "data/input").write_text("neither")
    (new / "data/other").unlink()
    restore(lambda: folder, RUN, new)
    assert (new / "data/input").read_text() == (new / "data/other").read_text() == "first"
    assert record(new) == {"data/input": "first", "data/other": "first"}


def test_a_restore_that_was_cut_off_keeps_the_newer_file_at_the_second_try(
    folder: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_root(tmp_path, "old"), tmp_path / "new"
    brought(old, input="first")
    publish(folder, RUN, old)
    brought(new, input="second")

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "place_part", broken)
        with pytest.raises(OSError, match="No space"):
            restore(lambda: folder, RUN, new)
    assert restore(lambda: folder, RUN, new).source == "cloud"
    assert (new / "data/input").read_text() == "second" and record(new) == {"data/input": "second"}


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, '{"data/input": 7}', '{"data/input": "../x"}'])
def test_a_damaged_record_is_an_empty_one(folder: LocalStore, tmp_path: Path, text: str) -> None:
    for damaged in ("old", "new"):
        old, new = make_root(tmp_path, f"old-{damaged}"), tmp_path / f"new-{damaged}"
        brought(old, input="first")
        brought(new, input="second")
        ((old if damaged == "old" else new) / BROUGHT).write_text(text)
        publish(folder, RUN, old)
        assert restore(lambda: folder, RUN, new).warnings == []
        assert (new / "data/input").read_text() == "first"


def test_a_set_whose_record_has_rotted_gives_way_to_the_older_one(folder: LocalStore, tmp_path: Path) -> None:
    old, new = make_root(tmp_path, "old"), tmp_path / "new"
    brought(old, input="first")
    publish(folder, RUN, old)
    brought(old, input="third")
    publish(folder, RUN, old)
    entry = next(entry for entry in manifest_of(folder, RUN, 2).files if entry.path == BROUGHT)
    folder.put(entry.key, folder.get(entry.key)[:-1] + b" ")
    brought(new, input="second")
    restored = restore(lambda: folder, RUN, new)
    assert restored.sequence == 1 and "Checkpoint 2" in restored.warnings[0]
    assert (new / "data/input").read_text() == "second"
