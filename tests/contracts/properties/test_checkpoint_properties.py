"""Publishers that are cut off at any write: what is in the bucket then is whole, and the newest set is found.

The writes of real publishers are recorded, with which of them were under way at the same time. A bucket that has got
any prefix of them, and any part of those under way, is one that a killed publisher can leave.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpuyard.box.checkpoints import (
    LocalStore,
    Retention,
    latest_manifest,
    manifests,
    publish,
    restore,
    verify,
)
from gpuyard.formats.manifest import JOURNAL

RUN = "miniprover-0"
NAMES = ("policy.npz", "models/1.bin", "models/2.bin", "results.jsonl")
TREES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from([b"", b"one", b"two", b"x" * 3000]), min_size=1),
    min_size=1,
    max_size=4,
)

pytestmark = pytest.mark.long
RETENTIONS = st.builds(Retention, st.integers(0, 2), st.sampled_from([0, 0, 2]))


@dataclass(frozen=True)
class Write:
    """One change of the bucket: the new content of a key, ``None`` for a removal; when it began and ended."""

    key: str
    data: bytes | None
    began: int
    ended: int


class Recording(LocalStore):
    """A folder as a store that keeps what is written to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writes: list[Write] = []
        self._clock = 0
        self._lock = threading.Lock()

    def _tick(self) -> int:
        with self._lock:
            self._clock += 1
            return self._clock

    def _record(self, key: str, data: bytes | None, change: Callable[[], object]) -> None:
        began = self._tick()
        change()
        ended = self._tick()
        with self._lock:
            self.writes.append(Write(key, data, began, ended))

    def put(self, key: str, data: bytes) -> None:
        self._record(key, data, lambda: super(Recording, self).put(key, data))

    def put_new(self, key: str, data: bytes) -> bool:
        if self._path(key).exists():
            return super().put_new(key, data)
        self._record(key, data, lambda: super(Recording, self).put_new(key, data))
        return True

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        self.put(key, stream.read())

    def delete(self, key: str) -> None:
        self._record(key, None, lambda: super(Recording, self).delete(key))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about what a crash of the whole machine leaves."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write_tree(root: Path, tree: dict[str, bytes], number: int) -> None:
    for path in NAMES:
        (root / path).unlink(missing_ok=True)
    for path, data in {**tree, JOURNAL: f"state {number}\n".encode()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def read_tree(root: Path) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in (*NAMES, JOURNAL) if (root / path).is_file()}


def cut_off(writes: list[Write], moment: int, arrived: Callable[[Write], bool]) -> dict[str, bytes]:
    """Return what the bucket holds when all publishers are gone at ``moment``; ``arrived``: so is what had begun."""
    there: dict[str, bytes] = {}
    for write in sorted(writes, key=lambda one: one.ended):
        if write.ended <= moment or (write.began <= moment and arrived(write)):
            if write.data is None:
                there.pop(write.key, None)
            else:
                there[write.key] = write.data
    return there


def check_bucket(folder: Path, there: dict[str, bytes], trees: list[dict[str, bytes]]) -> int:
    """Every set is one of ``trees``, and whole; return the number of the newest, 0 when there is none."""
    shutil.rmtree(folder, ignore_errors=True)
    for key, data in there.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    store, newest = LocalStore(folder), 0
    for manifest in manifests(store, RUN):
        newest = newest or manifest.sequence
        for entry in manifest.files:
            assert hashlib.sha256(there[entry.key]).hexdigest() == entry.sha256
        assert {entry.path: there[entry.key] for entry in manifest.files} in trees
    found = latest_manifest(store, RUN)
    assert (found.sequence if found else 0) == newest
    return newest


@settings(max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
@given(TREES, RETENTIONS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_whenever_a_publisher_is_cut_off_the_newest_whole_set_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    trees: list[dict[str, bytes]],
    retention: Retention,
    machines: int,
    chance: Callable[[], float],
) -> None:
    base = tmp_path_factory.mktemp("sets")
    store = Recording(base / "bucket")
    states, ends = [], [0]
    for number, tree in enumerate(trees):
        root = base / f"machine-{number % machines}"
        write_tree(root, tree, number)
        states.append(read_tree(root))
        publish(store, RUN, root, retention=retention, force=True)
        ends.append(max(write.ended for write in store.writes))
    newest = 0
    for moment in range(ends[-1] + 1):
        there = cut_off(store.writes, moment, lambda _: chance.random() < 0.5)  # type: ignore[attr-defined]
        found = check_bucket(base / "cut", there, states)
        over = sum(moment >= end for end in ends) - 1
        assert over <= found <= over + 1, "as many sets as publishers had ended, and one more at most"
        assert found >= newest or moment not in ends
        newest = max(newest, found)
    moment = chance.randint(0, ends[-1])  # type: ignore[attr-defined]
    there = cut_off(store.writes, moment, lambda _: chance.random() < 0.5)  # type: ignore[attr-defined]
    before = check_bucket(base / "cut", there, states)
    left = LocalStore(base / "cut")
    fresh = base / "fresh"
    assert restore(lambda: left, RUN, fresh).sequence == (before or None)
    if before:
        assert read_tree(fresh) == states[before - 1]
    # Whoever goes on makes the next set out of what is there, and that is whole, too.
    write_tree(fresh, {"policy.npz": b"one", "models/1.bin": b"next"}, 99)
    published = publish(left, RUN, fresh, retention=retention, force=True)
    assert published.sequence > before
    assert verify(left, RUN).damaged == []
    again = base / "again"
    restore(lambda: left, RUN, again)
    assert read_tree(again) == read_tree(fresh)


@settings(max_examples=10, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(TREES, min_size=1, max_size=3), RETENTIONS)
def test_what_a_kept_set_needs_stays(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[dict[str, bytes]]], retention: Retention
) -> None:
    base = tmp_path_factory.mktemp("kept")
    store, number = LocalStore(base / "bucket"), 0
    for machine, trees in enumerate(rounds):
        for tree in trees:
            root = base / f"machine-{machine}"
            write_tree(root, tree, number)
            publish(store, RUN, root, retention=retention, force=True)
            number += 1
            there = {found.sequence for found in manifests(store, RUN)}
            assert there == retention.keeps(range(1, number + 1)) | {number}
            for sequence in there:
                assert verify(store, RUN, sequence=sequence).damaged == []


@settings(max_examples=100, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
@given(st.sets(st.integers(1, 10**6), max_size=30), st.integers(0, 6), st.integers(0, 6))
def test_retention_keeps_the_newest_and_asks_for_nothing_twice(numbers: set[int], last: int, every: int) -> None:
    retention = Retention(last, every)
    kept = retention.keeps(numbers)
    assert kept <= numbers
    assert kept >= set(sorted(numbers)[-last:]) if last else kept == numbers
    assert retention.keeps(kept) == kept
    if every and last:
        assert all(number in kept for number in numbers if number % every == 0)
