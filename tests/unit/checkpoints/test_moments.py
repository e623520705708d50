"""Files and journal of a set are of one moment, also when a stage ends while it is sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from gpuyard.box.checkpoints import publish, restore
from gpuyard.box.checkpoints.listing import read_manifest
from gpuyard.box.checkpoints.local_store import LocalStore
from gpuyard.formats.journal import Journal, summary
from gpuyard.formats.manifest import JOURNAL

ORDER = [(number, "train") for number in range(9)]
PROGRESS = partial(summary, order=ORDER)


class Slow(LocalStore):
    """A folder during whose every large file something happens."""

    def __init__(self, folder: Path, happens: Callable[[], None]) -> None:
        super().__init__(folder)
        self.happens = happens
        self.streams: list[str] = []

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        """Store it, and let it happen."""
        super().put_stream(key, stream)
        self.streams.append(key)
        self.happens()


def train(root: Path, iteration: int) -> None:
    """Do what a stage does: save its model over the last one, and end."""
    (root / "model.new").write_text(f"model of {iteration}")
    (root / "model.new").rename(root / "model")
    journal = Journal(root / JOURNAL)
    journal.append("stage-start", iteration=iteration, stage="train", attempt=1)
    journal.append("stage-end", iteration=iteration, stage="train", attempt=1, outcome="done", exit_code=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "large").write_bytes(b"x" * (9 << 20))
    train(root, 0)
    return root


def restored(store: LocalStore, place: Path) -> tuple[str, int]:
    """Return the model that a new machine gets, and how many stages it believes to be done."""
    restore(lambda: store, "run-0", place)
    return (place / "model").read_text(), len(Journal(place / JOURNAL).progress(ORDER).done)


def test_a_stage_that_ends_meanwhile_has_the_set_made_of_its_moment(root: Path, tmp_path: Path) -> None:
    left = [1]

    def one_more_stage() -> None:
        if left:
            train(root, left.pop())

    store = Slow(tmp_path / "bucket", one_more_stage)
    done = publish(store, "run-0", root, progress=PROGRESS)
    assert restored(store, tmp_path / "new") == ("model of 1", 2)
    assert len(store.streams) == 1, "what was sent is not sent again"
    assert (done.files_sent, done.bytes_sent > 9 << 20) == (4, True)
    (manifest,) = [read_manifest(store, "run-0", done.sequence)]
    assert manifest.progress["done"] == [[0, "train"], [1, "train"]]
    assert all(entry.tag for entry in manifest.files)


def test_what_the_tries_have_left_goes_with_the_sets(root: Path, tmp_path: Path) -> None:
    left = [1]
    store = Slow(tmp_path / "bucket", lambda: train(root, left.pop()) if left else None)
    first = publish(store, "run-0", root, progress=PROGRESS)
    train(root, 2)
    second = publish(store, "run-0", root, progress=PROGRESS)
    assert len(store.streams) == 1 and second.sequence > first.sequence
    kept = {
        entry.key
        for number in (first.sequence, second.sequence)
        for entry in read_manifest(store, "run-0", number).files
    }
    assert kept <= {item.key for item in store.objects("run-0/")}
    assert restored(store, tmp_path / "new") == ("model of 2", 3)


def test_where_stages_end_quicker_than_files_are_sent_there_is_a_set_all_the_same(root: Path, tmp_path: Path) -> None:
    left = list(range(8, 0, -1))

    def a_new_large_file_and_a_stage() -> None:
        if left:
            (root / f"large-{len(left)}").write_bytes(bytes([len(left)]) * (9 << 20))
            train(root, left.pop())

    store = Slow(tmp_path / "bucket", a_new_large_file_and_a_stage)
    done = publish(store, "run-0", root, progress=PROGRESS)
    assert done.sequence and len(store.streams) == 3
    model, stages = restored(store, tmp_path / "new")
    assert int(model.rpartition(" ")[2]) >= stages - 1, "what the journal calls done is in the files"
