"""Publishing does not stand in the way of the stage, nor of who wants another checkpoint."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from gpuyard.box.checkpoints import LocalStore, Manners, is_asked_again, latest_manifest, publish, restore
from gpuyard.box.checkpoints.manners import BACKGROUND_NICE
from gpuyard.box.checkpoints.publishing import publish_or_warn
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES

RUN = "manners-0"
MB = 1_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "box"
    root.mkdir()
    (root / "a-large.bin").write_bytes(os.urandom(SINGLE_REQUEST_BYTES + 1))
    (root / "small").write_text("small")
    (root / "z-smaller").write_text("s")
    return root


class Watched(LocalStore):
    """A folder that tells in which order, and at what priority, it gets files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.got: list[str] = []
        self.nice: dict[str, int] = {}
        self.goes_on = threading.Event()
        self.begun = threading.Event()
        self.goes_on.set()

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._note(key)

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        self.begun.set()
        assert self.goes_on.wait(60)
        super().put_stream(key, stream)
        self._note(key)

    def _note(self, key: str) -> None:
        name = key.rpartition("/")[2]
        self.got.append(name)
        self.nice[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "bucket")


def test_small_files_go_first(store: Watched, root: Path) -> None:
    publish(store, RUN, root, threads=1)
    files = [name for name in store.got if not name.startswith("claim-")]
    assert files == ["z-smaller", "small", "a-large.bin"]


def test_publishing_beside_a_stage_makes_way_for_it(store: Watched, root: Path) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    publish(store, RUN, root, manners=Manners(background=True))
    assert store.nice["a-large.bin"] == store.nice["small"] == BACKGROUND_NICE
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    (root / "small").write_text("again")
    publish(store, RUN, root, manners=Manners())
    assert store.nice["small"] == own


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority again, and on a box it is root")
def test_the_last_checkpoint_waits_for_none_that_makes_way(store: Watched, root: Path) -> None:
    manners = Manners(0.001, background=True)
    store.goes_on.clear()
    slow = threading.Thread(target=lambda: publish(store, RUN, root, manners=manners))
    slow.start()
    assert store.begun.wait(60)
    manners.hurry()
    store.goes_on.set()
    slow.join(30)
    assert not slow.is_alive(), "with that cap it would take two hours"
    assert store.nice["a-large.bin"] == os.getpriority(os.PRIO_PROCESS, 0)


def test_the_cap_holds_for_all_threads_together(tmp_path: Path) -> None:
    store, root = LocalStore(tmp_path / "bucket"), tmp_path / "box"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.bin").write_bytes(os.urandom(MB))
    began = time.monotonic()
    publish(store, RUN, root, manners=Manners(8))
    # The first megabyte need not wait, since nothing was sent before it.
    assert time.monotonic() - began >= 3 / 8
    began = time.monotonic()
    restore(lambda: store, RUN, tmp_path / "fresh", manners=Manners(8))
    assert time.monotonic() - began >= 3 / 8
    assert (tmp_path / "fresh/3.bin").read_bytes() == (root / "3.bin").read_bytes()


def test_a_cap_holds_within_one_large_file(tmp_path: Path) -> None:
    store, root = LocalStore(tmp_path / "bucket"), tmp_path / "box"
    root.mkdir()
    (root / "large.bin").write_bytes(os.urandom(10 * MB))
    began = time.monotonic()
    publish(store, RUN, root, manners=Manners(20))
    assert time.monotonic() - began >= 8 / 20
    with (root / "large.bin").open("ab") as stream:
        stream.write(os.urandom(6 * MB))
    began = time.monotonic()
    assert publish(store, RUN, root, manners=Manners(20)).bytes_sent < 8 * MB
    assert time.monotonic() - began >= 6 / 20


def test_who_does_not_wait_asks_for_another_set(store: Watched, root: Path) -> None:
    store.goes_on.clear()
    slow = threading.Thread(target=lambda: publish(store, RUN, root))
    slow.start()
    assert store.begun.wait(60)
    (root / "small").write_text("newer")
    said: list[str] = []
    began = time.monotonic()
    assert publish_or_warn(lambda: store, RUN, root, warn=said.append, wait=False) is None
    assert time.monotonic() - began < 5 and said == [
        "A checkpoint is being published just now, and another one follows it at once."
    ]
    store.goes_on.set()
    slow.join(60)
    assert is_asked_again(root)
    published = publish_or_warn(lambda: store, RUN, root)
    assert published is not None and published.sequence == 2 and not is_asked_again(root)
    restored = restore(lambda: store, RUN, root.parent / "fresh")
    assert restored.sequence == 2 and (root.parent / "fresh/small").read_text() == "newer"


def test_who_does_not_wait_publishes_where_nobody_is_at_work(store: Watched, root: Path) -> None:
    published = publish_or_warn(lambda: store, RUN, root, wait=False)
    assert published is not None and published.sequence == 1 and not is_asked_again(root)
    manifest = latest_manifest(store, RUN)
    assert manifest is not None and len(manifest.files) == 3
