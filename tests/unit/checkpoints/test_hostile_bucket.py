"""A bucket in the wrong hands: whatever a set or a listing names, nothing outside the folder is touched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore, publish, restore
from gpuyard.box.checkpoints.stores import StoredObject
from gpuyard.cloud_sync import CloudSync
from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import Manifest

RUN = "miniprover-0"
EVIL = b"written by the bucket"


def file(path: str, data: bytes = EVIL, **fields: Any) -> dict[str, Any]:
    key = f"{RUN}/checkpoints/000001/evil"
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "size": len(data), "sha256": digest, "mode": 0o644, "key": key, **fields}


def link(path: str, target: str) -> dict[str, Any]:
    digest = hashlib.sha256(target.encode()).hexdigest()
    return {"path": path, "size": 0, "sha256": digest, "mode": 0o777, "key": "", "link": target}


JOURNAL = file(".gpuyard/journal.jsonl")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the root, which no test may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "passwd").write_text("precious")

    def state() -> list[tuple[str, int, bytes]]:
        return sorted((str(path), path.lstat().st_ino, path.read_bytes()) for path in folder.iterdir())

    before, beside = state(), set(os.listdir(tmp_path))  # noqa: PTH208
    yield folder
    assert state() == before
    assert set(os.listdir(tmp_path)) <= beside | {"bucket", "root"}  # noqa: PTH208


def offer(store: LocalStore, *entries: dict[str, Any], run: str = RUN) -> None:
    document = {"version": 1, "run": run, "sequence": 1, "time": "2026-03-01T00:00:00Z", "files": entries}
    store.put(f"{RUN}/checkpoints/000001/evil", EVIL)
    store.put(f"{RUN}/checkpoints/000001/manifest.json", json.dumps(document).encode())


def refused(store: LocalStore, root: Path) -> None:
    """Restore, and see that nothing of the set is there: it was not even begun, or it was refused in one sentence."""
    try:
        assert restore(lambda: store, RUN, root).source == "nothing"
    except CheckpointError as error:
        assert "\n" not in str(error)
    assert not (root / ".gpuyard/journal.jsonl").exists()


@pytest.mark.parametrize(
    "entries",
    [
        [link("lnk", "../outside"), file("lnk/passwd")],
        [file("lnk"), file("lnk/passwd")],
        [link("lnk", "{outside}")],
        [link("lnk", "../outside/passwd")],
        [link("a/lnk", "../../outside")],
        [link("one", "a/b"), link("a", "c"), link("c/b", "../../outside")],
        [link("up", "."), link("out", "up/../../outside")],
        [link("a", "b"), link("b", "a")],
        [link("lnk", "")],
        [link("lnk", "a\0b")],
        [{**link("lnk", "x"), "link": 7}],
        [file("x", sha256="{outside}/passwd")],
        [file("x", sha256="../../../../outside/passwd")],
        [file("x", sha256="e3b0")],
        [file("x", size=-1)],
        [file("x", size="many")],
        [file("x", mtime_ns=2**70)],
        [file("x", key="../outside/passwd")],
        [file("x", key=f"{RUN}/checkpoints/../../../outside/passwd")],
        [file("x", key="{outside}/passwd")],
        [file("x", key="another-run/checkpoints/000001/secret")],
        [file("../outside/passwd")],
        [file("{outside}/passwd")],
        [file("a/../../outside/passwd")],
        [file("a//b")],
        [file("a\0b")],
        [file("a\nb")],
        [file("\ud800")],
        [file("")],
        [{**file("x"), "path": ["x"]}],
        [file("x"), file("x", mode=0o600)],
        [file(".gpuyard/tmp/hashes.json")],
        [link(".gpuyard/tmp", "../models")],
        [link(".gpuyard", "models")],
        [file(".gpuyard/brought.json/x")],
        ["x"],
    ],
)
def test_a_set_that_cannot_be_put_safely_is_damaged(
    store: LocalStore, tmp_path: Path, outside: Path, entries: list[dict[str, Any]]
) -> None:
    filled = json.loads(json.dumps(entries).replace("{outside}", str(outside)))
    document = {"version": 1, "run": RUN, "sequence": 1, "time": "", "files": filled}
    with pytest.raises(CheckpointError, match="is not a manifest of gpuyard") as caught:
        Manifest.from_bytes(json.dumps(document).encode(), where="the bucket", run=RUN)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    offer(store, *filled, JOURNAL)
    refused(store, tmp_path / "root")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": 1, "files": 1e999}', "NaN", "null", '{"version": 1}'])
def test_what_is_no_manifest_is_a_sentence(text: str) -> None:
    with pytest.raises(CheckpointError, match="is not a manifest of gpuyard"):
        Manifest.from_bytes(text.encode(), where="the bucket")


def test_a_set_of_another_run_is_not_taken(store: LocalStore, tmp_path: Path, outside: Path) -> None:
    store.put("other-1/checkpoints/000001/secret", EVIL)
    offer(store, file("x", key="other-1/checkpoints/000001/secret"), JOURNAL, run="other-1")
    refused(store, tmp_path / "root")


@pytest.mark.parametrize("path", ["models/passwd", "models/deep/passwd", ".gpuyard/logs/passwd"])
def test_nothing_is_restored_through_a_link_that_lies_there(
    store: LocalStore, tmp_path: Path, outside: Path, path: str
) -> None:
    root = tmp_path / "root"
    way = root / Path(path).parent
    way.parent.mkdir(parents=True)
    way.symlink_to(outside)
    offer(store, file(path), JOURNAL)
    with pytest.raises(CheckpointError, match=rf"{way} is a link, and nothing is written through it: remove it"):
        restore(lambda: store, RUN, root)
    way.unlink()
    assert restore(lambda: store, RUN, root).source == "cloud"


@pytest.mark.parametrize("way", [".gpuyard", ".gpuyard/tmp", ".gpuyard/tmp/restore"])
def test_nothing_is_fetched_through_a_link_that_lies_there(
    store: LocalStore, tmp_path: Path, outside: Path, way: str
) -> None:
    place = tmp_path / "root" / way
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    offer(store, file("x"), JOURNAL)
    with pytest.raises(CheckpointError, match="is a link"):
        restore(lambda: store, RUN, tmp_path / "root")


def test_links_in_the_place_of_files_are_replaced_and_not_followed(
    store: LocalStore, tmp_path: Path, outside: Path
) -> None:
    root = tmp_path / "root"
    parts = root / ".gpuyard/tmp/restore"
    parts.mkdir(parents=True)
    (root / "x").symlink_to(outside / "passwd")
    (root / "dangling").symlink_to(outside / "new")
    entries = [file("x"), file("y"), file("dangling")]
    (parts / entries[0]["sha256"]).symlink_to(outside / "passwd")
    (parts / f"{entries[0]['sha256']}.copy").symlink_to(outside / "passwd")
    offer(store, *entries, link("inner", "y"), JOURNAL)
    assert restore(lambda: store, RUN, root).source == "cloud"
    for name in ("x", "y", "dangling"):
        assert (root / name).read_bytes() == EVIL and not (root / name).is_symlink()
    assert (root / "inner").readlink() == Path("y")


def test_a_link_through_one_that_lies_there_is_refused(store: LocalStore, tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "way").symlink_to(outside)
    offer(store, link("lnk", "way/passwd"), JOURNAL)
    with pytest.raises(CheckpointError, match=rf"lnk would be a link to {outside}/passwd, which is outside of {root}"):
        restore(lambda: store, RUN, root)
    assert not (root / "lnk").is_symlink()


def test_a_folder_or_a_pipe_in_the_place_of_a_file(store: LocalStore, tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    os.mkfifo(root / "y")
    (root / "z").write_text("")
    offer(store, file("y"), file("x"), JOURNAL)
    with pytest.raises(CheckpointError, match=rf"{root}/x is a folder, where x is to be"):
        restore(lambda: store, RUN, root)
    offer(store, file("z/inner"), JOURNAL)
    with pytest.raises(CheckpointError, match=rf"{root}/z is not a folder"):
        restore(lambda: store, RUN, root)
    offer(store, file("y"), JOURNAL)
    assert restore(lambda: store, RUN, root).source == "cloud"
    assert (root / "y").read_bytes() == EVIL


def test_special_permission_bits_are_dropped(store: LocalStore, tmp_path: Path, outside: Path) -> None:
    offer(store, file("x", mode=0o104777), file("y", mode=0o7755), JOURNAL)
    restore(lambda: store, RUN, tmp_path / "root")
    assert [(tmp_path / "root" / name).stat().st_mode & 0o7777 for name in ("x", "y")] == [0o777, 0o755]
    # Nor are they published, so that the set compares equal to what it restores.
    (tmp_path / "root/x").chmod(0o4777)
    assert publish(store, RUN, tmp_path / "root").unchanged


def test_a_name_that_could_not_be_restored_is_not_published(store: LocalStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "fine").write_text("fine")
    (root / "a\nb").write_text("odd")
    assert publish(store, RUN, root).skipped == ["'a\\nb' (its name holds control characters)"]
    assert restore(lambda: store, RUN, tmp_path / "fresh").files == 1


# --- CloudSync ---


class Listing(LocalStore):
    """A store whose listing names keys as a bucket may hold them, and a folder cannot."""

    keys: tuple[str, ...] = ()

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        return iter(StoredObject(key, len(EVIL)) for key in self.keys if key.startswith(prefix))

    def fetch(self, key: str, target: Path, size: int) -> None:
        target.write_bytes(EVIL)


@pytest.mark.parametrize(
    "name", ["../outside/passwd", "a/../../outside/passwd", "/passwd", "a//b", "./x", "way/passwd", "a\0b"]
)
def test_a_folder_is_downloaded_into_that_folder_only(
    tmp_path: Path, outside: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sync = CloudSync("local", str(tmp_path / "bucket"))
    store = Listing(tmp_path / "bucket")
    store.keys = (f"models/{name}",)
    sync._store = store
    (tmp_path / "root").mkdir()
    (tmp_path / "root/way").symlink_to(outside)
    assert not sync.download_directory("models", tmp_path / "root")
    assert len(caplog.messages) == 1
    store.keys = ("models/x", "models/empty/")
    (tmp_path / "root/x").symlink_to(outside / "passwd")
    assert sync.download_directory("models", tmp_path / "root")
    assert (tmp_path / "root/x").read_bytes() == EVIL and not (tmp_path / "root/x").is_symlink()
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["way", "x"]


def test_a_file_is_downloaded_over_a_link_and_not_through_it(tmp_path: Path, outside: Path) -> None:
    sync = CloudSync("local", str(tmp_path / "bucket"))
    LocalStore(tmp_path / "bucket").put("x", EVIL)
    (tmp_path / "root").mkdir()
    target = tmp_path / "root/x"
    target.symlink_to(outside / "passwd")
    (tmp_path / "root/.x.gpuyard-part").symlink_to(outside / "passwd")
    assert sync.download_file("x", target)
    assert target.read_bytes() == EVIL and not target.is_symlink()


@pytest.mark.parametrize("kind", ["sound", "path", "link", "large", "larger than it says", "not what it says", "deep"])
def test_a_hostile_record_of_what_was_brought_only_concerns_files_of_the_set(
    store: LocalStore, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = tmp_path / "root"
    read: list[int] = []
    chunks = LocalStore.chunks

    def counted(self: LocalStore, key: str) -> Iterator[bytes]:
        for chunk in chunks(self, key):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(LocalStore, "chunks", counted)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("first", "second")}
    local = {"data/input": digests["second"]}
    (root / ".gpuyard").mkdir(parents=True)
    (root / ".gpuyard/brought.json").write_text(json.dumps(local))
    (root / "data").mkdir()
    (root / "data/input").write_text("second")
    claimed = {"data/input": digests["first"], "data/none": digests["first"], f"{outside}/passwd": digests["first"]}
    text = json.dumps({"../outside/passwd": digests["first"]} if kind == "path" else claimed).encode()
    if kind == "large":
        text += b" " * (8 << 20)
    if kind == "deep":
        text = b'{"data/input":' * 200_000
    key = f"{RUN}/checkpoints/000001/record"
    record = file(".gpuyard/brought.json", text, key=key)
    if kind == "link":
        record = link(".gpuyard/brought.json", "../data/input")
    if kind == "not what it says":
        record["sha256"] = digests["first"]
    store.put(key, text + b" " * (64 << 20) * (kind == "larger than it says"))
    store.put(f"{RUN}/checkpoints/000001/first", b"first")
    entry = file("data/input", b"first", key=f"{RUN}/checkpoints/000001/first")
    offer(store, record, entry, JOURNAL)
    if kind in ("larger than it says", "not what it says"):
        refused(store, root)
        assert sum(read) < (32 << 20)
        assert (root / "data/input").read_text() == "second"
        assert json.loads((root / ".gpuyard/brought.json").read_text()) == local
        return
    assert restore(lambda: store, RUN, root).source == "cloud"
    stays = kind == "sound"
    assert (root / "data/input").read_text() == ("second" if stays else "first")
    assert json.loads((root / ".gpuyard/brought.json").read_text()) == (local if stays else {})
    assert sum(read) < (8 << 20)
