from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gpuyard.box.checkpoints import (
    LocalStore,
    Retention,
    Store,
    hashing,
    latest_manifest,
    latest_whole_manifest,
    list_runs,
    manifest_of,
    manifests,
    open_store,
    publish,
    publish_or_warn,
    restore,
    restoring,
    sequences,
    verify,
    write_record,
)
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES
from gpuyard.errors import BucketError, CheckpointError, UnreadableManifestError, UsageError
from gpuyard.formats.manifest import FileEntry, Manifest

RUN = "miniprover-0"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "bucket")
    bucket = request.getfixturevalue("bucket")
    # A prefix of its own for every test, in the one bucket.
    return open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env)


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


def make_root(tmp_path: Path, name: str = "box") -> Path:
    root = tmp_path / name
    for path, text in {
        "models/policy.npz": "weights",
        "models/deep/er/ebm.bin": "energy",
        "trajectories/a.jsonl": '{"theorem": 1}\n',
        ".gpuyard/journal.jsonl": '{"event": "run-start"}\n',
        ".gpuyard/logs/0-search.log": "searching\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".gpuyard/tmp" not in path.as_posix()
    }


def keys(store: Store) -> set[str]:
    return {item.key for item in store.objects(f"{RUN}/")}


def rewrite(store: Store, sequence: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Give the entries of a manifest the values that ``change`` returns for each."""
    key = f"{RUN}/checkpoints/{sequence:06d}/manifest.json"
    document = json.loads(store.get(key))
    for entry in document["files"]:
        entry |= change(entry)
    store.put(key, json.dumps(document).encode())


def flip(store: Store, key: str) -> None:
    """Change one byte of an object."""
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


def rot(store: Store, sequence: int, path: str) -> str:
    """Flip a byte of a file's object in a way that its tag does not show, and return the key."""
    key = next(entry.key for entry in manifest_of(store, RUN, sequence).files if entry.path == path)
    flip(store, key)
    (tag,) = (item.tag for item in store.objects(key) if item.key == key)
    for number in sequences(store, RUN):
        rewrite(store, number, lambda entry: {"tag": tag} if entry["key"] == key else {})
    return key


def test_a_published_set_comes_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (root / "models/policy.npz").chmod(0o750)
    (root / "models/large.bin").write_bytes(os.urandom(SINGLE_REQUEST_BYTES * 2 + 17))
    published = publish(store, RUN, root, progress=lambda data: {"seen": len(data)})
    assert (published.sequence, published.files_sent) == (1, 6)
    assert published.bytes_sent == published.bytes_total == sum(map(len, tree(root).values()))
    fresh = tmp_path / "fresh"
    restored = restore(lambda: store, RUN, fresh)
    assert (restored.source, restored.sequence, restored.warnings) == ("cloud", 1, [])
    assert tree(fresh) == tree(root)
    assert (fresh / "models/policy.npz").stat().st_mode & 0o777 == 0o750
    assert (fresh / "models/policy.npz").stat().st_mtime_ns == (root / "models/policy.npz").stat().st_mtime_ns
    assert not list((fresh / ".gpuyard/tmp").glob("restore*"))
    manifest = latest_manifest(store, RUN)
    assert manifest is not None and manifest.progress == {"seen": 23}


def test_keys_are_what_a_person_expects(store: Store, tmp_path: Path) -> None:
    publish(store, RUN, make_root(tmp_path))
    assert f"{RUN}/checkpoints/000001/files/models/policy.npz" in keys(store)
    document = json.loads(store.get(f"{RUN}/checkpoints/000001/manifest.json"))
    assert document["version"] == 1 and document["run"] == RUN and document["sequence"] == 1


def test_no_file_can_take_the_manifests_place(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    for name in ("manifest.json", "damaged.json", "files/manifest.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"a file of the program's, {name}")
    for number in (1, 2):
        (root / "models/policy.npz").write_text(f"weights {number}")
        assert publish(store, RUN, root, retention=Retention(keep_last=1)).sequence == number
    fresh = tmp_path / "fresh"
    assert restore(lambda: store, RUN, fresh).sequence == 2
    assert tree(fresh) == tree(root)


def test_a_set_in_the_old_form_is_read_and_built_upon(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(store, RUN, root)
    # Formerly the files lay beside the manifest.
    for key in keys(store):
        if "/files/" in key:
            store.put(key.replace("/files/", "/"), store.get(key))
            store.delete(key)
    rewrite(store, 1, lambda entry: entry.pop("tag") and {"key": entry["key"].replace("/files/", "/")})
    assert restore(lambda: store, RUN, tmp_path / "old").sequence == 1
    assert tree(tmp_path / "old") == tree(root)
    (root / "models/policy.npz").write_text("newer weights")
    again = publish(store, RUN, root, retention=Retention(keep_last=1))
    assert (again.sequence, again.files_sent) == (2, 1)
    assert restore(lambda: store, RUN, tmp_path / "new").sequence == 2
    assert tree(tmp_path / "new") == tree(root)


def test_unchanged_content_is_not_sent_again(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (root / "models/large.bin").write_bytes(os.urandom(SINGLE_REQUEST_BYTES + 5))
    publish(store, RUN, root)
    (root / "models/large.bin").rename(root / "models/renamed.bin")
    os.utime(root / "models/policy.npz")
    (root / "trajectories/b.jsonl").write_text("new\n")
    again = publish(store, RUN, root)
    assert (again.sequence, again.files_sent, again.bytes_sent) == (2, 1, 4)
    manifest = latest_manifest(store, RUN)
    assert manifest is not None
    by_path = {entry.path: entry.key for entry in manifest.files}
    assert by_path["models/renamed.bin"] == f"{RUN}/checkpoints/000001/files/models/large.bin"
    fresh = tmp_path / "fresh"
    restore(lambda: store, RUN, fresh)
    assert tree(fresh) == tree(root)


def test_content_that_somebody_removed_from_the_bucket_is_sent_again(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    folder.delete(f"{RUN}/checkpoints/000001/files/models/policy.npz")
    again = publish(folder, RUN, root)
    assert (again.sequence, again.files_sent) == (2, 1)
    assert restore(lambda: folder, RUN, tmp_path / "fresh").sequence == 2


def test_a_damaged_object_is_sent_again_and_not_called_whole(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (root / "models/large.bin").write_bytes(os.urandom(SINGLE_REQUEST_BYTES * 2 + 1))
    publish(store, RUN, root)
    (root / "trajectories/a.jsonl").write_text("more")
    publish(store, RUN, root)
    # Both sets share these.
    for path in ("models/policy.npz", "models/large.bin"):
        flip(store, f"{RUN}/checkpoints/000001/files/{path}")
    assert latest_whole_manifest(store, RUN) is None
    again = publish(store, RUN, root, retention=Retention(keep_last=1))
    assert (again.sequence, again.files_sent) == (3, 2), "the box has the good files, and sends just those"
    newest = latest_whole_manifest(store, RUN)
    assert newest is not None and newest.sequence == 3
    assert verify(store, RUN).damaged == []
    assert publish(store, RUN, root).unchanged
    assert restore(lambda: store, RUN, tmp_path / "fresh").sequence == 3
    assert tree(tmp_path / "fresh") == tree(root)


def test_a_tag_that_agrees_spares_the_reading_and_one_that_differs_does_not_condemn(
    store: Store, tmp_path: Path
) -> None:
    root = make_root(tmp_path)
    publish(store, RUN, root)
    read: list[str] = []

    class Counting(type(store)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)

        def chunks(self, key: str) -> Iterator[bytes]:
            read.append(key)
            yield from super().chunks(key)

    assert latest_whole_manifest(Counting(), RUN) is not None
    assert (read == []) is store.tags_tell_content, "a folder has no checksums"
    # A bucket that was copied has tags of its own, and a set in the old form remembers none.
    for tag in ("copied", ""):
        read.clear()
        rewrite(store, 1, lambda entry, tag=tag: {"tag": tag})  # type: ignore[misc]
        said: list[str] = []
        assert latest_whole_manifest(Counting(), RUN, say=said.append) is not None
        assert len(read) == 5 and "Reading 5 objects" in said[0]


def test_verify_reads_all_and_what_it_finds_is_not_built_upon(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(store, RUN, root)
    (root / "trajectories/a.jsonl").write_text("more")
    publish(store, RUN, root)
    assert verify(store, RUN).damaged == []
    with pytest.raises(CheckpointError, match="has no checkpoint 9"):
        verify(store, RUN, sequence=9)
    key = rot(store, 2, "models/policy.npz")
    assert publish(store, RUN, root).unchanged, "nobody can see it"
    store.delete(f"{RUN}/checkpoints/000002/files/trajectories/a.jsonl")
    assert verify(store, RUN).damaged == [
        f"models/policy.npz: {key} does not have the content that it should have",
        f"trajectories/a.jsonl: {RUN}/checkpoints/000002/files/trajectories/a.jsonl is not in the bucket",
    ]
    assert latest_whole_manifest(store, RUN) is None, "the older set shares the object"
    again = publish(store, RUN, root, retention=Retention(keep_last=2))
    assert (again.sequence, again.files_sent) == (3, 2)
    assert verify(store, RUN).damaged == []
    # The note goes with the last set that has the object, or when the object is sound again.
    note = f"{RUN}/checkpoints/000002/damaged.json"
    assert note in keys(store)
    store.put(key, b"weights")
    store.put(f"{RUN}/checkpoints/000002/files/trajectories/a.jsonl", b"more")
    assert verify(store, RUN, sequence=2).damaged == []
    assert note not in keys(store)


def test_restoring_leaves_a_note_of_the_damage_that_stays_as_long_as_the_damage(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(store, RUN, root)
    (root / "models/policy.npz").write_text("newer weights")
    publish(store, RUN, root)
    (root / "trajectories/a.jsonl").write_text("more")
    publish(store, RUN, root)
    key = rot(store, 3, "models/policy.npz")
    assert restore(lambda: store, RUN, tmp_path / "fresh").sequence == 1
    assert latest_whole_manifest(store, RUN) is not None
    note = f"{RUN}/checkpoints/000003/damaged.json"
    assert json.loads(store.get(note))["damaged"] == [key]
    assert publish(store, RUN, root, retention=Retention(keep_last=1, keep_every=2)).files_sent == 1
    assert sorted(manifest.sequence for manifest in manifests(store, RUN)) == [2, 4]
    assert {key, note} <= keys(store), "set 2 still has the damaged object"
    (root / "trajectories/a.jsonl").write_text("and more")
    publish(store, RUN, root, retention=Retention(keep_last=1))
    assert keys(store).isdisjoint({key, note})


def test_what_is_no_note_says_nothing(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    for data in (b"", b"[", b"[]", b'{"damaged": 7}', b'{"damaged": [[]]}', b"[" * 100_000):
        folder.put(f"{RUN}/checkpoints/000001/damaged.json", data)
        assert publish(folder, RUN, root).unchanged


def test_no_set_is_made_when_only_the_journal_grew(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    with (root / ".gpuyard/journal.jsonl").open("a") as journal:
        journal.write('{"event": "published"}\n')
    assert publish(folder, RUN, root).unchanged
    assert keys(folder) == {key for key in keys(folder) if "/000001/" in key}
    forced = publish(folder, RUN, root, force=True)
    assert (forced.sequence, forced.files_sent) == (2, 1)
    # A step in the progress is worth a set, even if no file shows it.
    assert not publish(folder, RUN, root, progress=lambda data: {"stage": "search"}).unchanged


def test_a_change_within_the_same_clock_tick_is_seen(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    file = root / "models/policy.npz"
    publish(folder, RUN, root)
    info = file.stat()
    file.write_text("WEIGHTS")
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert publish(folder, RUN, root).files_sent == 1


def test_an_unchanged_file_is_not_even_read(
    folder: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the files had been there for a while when they were first hashed.
    monkeypatch.setattr(hashing, "RACY_NS", 0)
    root = make_root(tmp_path)
    (root / "models/one.bin").write_bytes(b"1")
    (root / "models/two.bin").write_bytes(b"2")
    publish(folder, RUN, root)
    cache = root / ".gpuyard/tmp/hashes.json"
    known = json.loads(cache.read_bytes())
    known["models/one.bin"][4] = known["models/two.bin"][4]
    cache.write_text(json.dumps(known))
    publish(folder, RUN, root, force=True)
    manifest = latest_manifest(folder, RUN)
    assert manifest is not None
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    # This is the price of not reading 15 GB a minute: the cache is believed.
    assert digests["models/one.bin"] == digests["models/two.bin"]


@pytest.mark.parametrize("how", ["cp -p", "in place"])
def test_a_change_that_brings_size_and_time_along_is_seen(
    folder: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(hashing, "RACY_NS", 0)
    root = make_root(tmp_path)
    file = root / "models/policy.npz"
    os.utime(file, (1_000_000_000, 1_000_000_000))
    publish(folder, RUN, root)
    other = tmp_path / "other"
    other.write_text("WEIGHTS")
    os.utime(other, (1_000_000_000, 1_000_000_000))
    if how == "cp -p":
        subprocess.run(["cp", "-p", other, file], check=True)
    else:
        file.write_text("WEIGHTS")
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert publish(folder, RUN, root).files_sent == 1
    restore(lambda: folder, RUN, tmp_path / "fresh")
    assert (tmp_path / "fresh/models/policy.npz").read_text() == "WEIGHTS"


def test_a_set_without_manifest_is_never_restored(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(store, RUN, root)

    class Dying(Exception):
        pass

    class Torn(type(store)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)

        def put_new(self, key: str, data: bytes) -> bool:
            raise Dying

    (root / "models/policy.npz").write_text("newer weights")
    with pytest.raises(Dying):
        publish(Torn(), RUN, root)
    assert f"{RUN}/checkpoints/000002/files/models/policy.npz" in keys(store)
    fresh = tmp_path / "fresh"
    assert restore(lambda: store, RUN, fresh).sequence == 1
    assert (fresh / "models/policy.npz").read_text() == "weights"
    # The next set takes a number of its own, and clears the torn one away.
    assert publish(store, RUN, root).sequence == 3
    assert not [key for key in keys(store) if "/000002/" in key]
    assert [manifest.sequence for manifest in manifests(store, RUN)] == [3, 1]


def test_retention_keeps_what_a_kept_manifest_needs(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    retention = Retention(keep_last=2, keep_every=3)
    (root / "models/old.npz").write_text("only the first three sets have this")
    for number in range(1, 8):
        (root / "trajectories/a.jsonl").write_text(f"{number}\n" * number)
        if number == 4:
            (root / "models/old.npz").unlink()
        published = publish(store, RUN, root, retention=retention)
    assert published.sequence == 7 and published.removed > 0
    assert sorted(manifest.sequence for manifest in manifests(store, RUN)) == [3, 6, 7]
    present = keys(store)
    for manifest in manifests(store, RUN):
        assert {entry.key for entry in manifest.files} <= present
    # The weights were sent once and live on in the first set's folder; nothing else of it is left.
    assert {key for key in present if "/000001/" in key} == {
        f"{RUN}/checkpoints/000001/files/{path}"
        for path in (
            "models/policy.npz",
            "models/old.npz",
            "models/deep/er/ebm.bin",
            ".gpuyard/journal.jsonl",
            ".gpuyard/logs/0-search.log",
        )
    }
    assert not [key for key in present if "/000002/" in key]
    fresh = tmp_path / "fresh"
    restore(lambda: store, RUN, fresh)
    assert tree(fresh) == tree(root)


DAMAGE = {
    "empty": (b"", "is empty"),
    "cut off": (b'{"version": 1, "files": [', "is not a manifest of gpuyard: it is cut off"),
    "newer": (b'{"version": 2}', "is of version 2, and this gpuyard reads version 1: use the newer gpuyard"),
    "a list": (b"[]", "is not a manifest"),
    "another kind of version": (b'{"version": "x"}', "is not a manifest"),
    "infinite": (
        b'{"version": 1, "files": [{"path": "a", "size": Infinity, "sha256": "", "mode": 1, "key": "k"}]}',
        "is",
    ),
    "deep": (b"[" * 100_000, "is not a manifest"),
    "of another set": (
        f'{{"version": 1, "run": "{RUN}", "sequence": 7, "time": "", "files": []}}'.encode(),
        "calls itself checkpoint 7",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_unreadable_manifest_is_not_nothing(folder: LocalStore, tmp_path: Path, kind: str) -> None:
    data, words = DAMAGE[kind]
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    (root / "models/policy.npz").write_text("newer weights")
    publish(folder, RUN, root)
    folder.put(f"{RUN}/checkpoints/000002/manifest.json", data)
    fresh = tmp_path / "fresh"
    with pytest.raises(UnreadableManifestError, match=words) as caught:
        restore(lambda: folder, RUN, fresh)
    assert f"{folder.url}/{RUN}/checkpoints/000002/manifest.json" in str(caught.value)
    assert "-e restore=1 (there is 1)" in str(caught.value) and len(str(caught.value)) < 700
    with pytest.raises(UnreadableManifestError):
        latest_manifest(folder, RUN)
    assert tree(fresh) == {}
    # By choice, an older one is taken.
    assert restore(lambda: folder, RUN, fresh, sequence=1).sequence == 1
    assert (fresh / "models/policy.npz").read_text() == "weights"
    # What goes on from there is published all the same, says so, and removes nothing.
    before = keys(folder)
    warnings: list[str] = []
    published = publish_or_warn(lambda: folder, RUN, fresh, retention=Retention(keep_last=1), warn=warnings.append)
    assert published is not None and (published.sequence, published.removed) == (3, 0)
    assert before < keys(folder)
    assert (
        len(warnings) == 1 and "000002/manifest.json" in warnings[0] and "No older checkpoint is removed" in warnings[0]
    )
    assert latest_manifest(folder, RUN) is not None


def test_the_only_manifest_that_cannot_be_read_is_not_nothing(store: Store, tmp_path: Path) -> None:
    publish(store, RUN, make_root(tmp_path))
    store.put(f"{RUN}/checkpoints/000001/manifest.json", b"")
    with pytest.raises(UnreadableManifestError, match=r"is empty\. Bring that object back, or name another run"):
        restore(lambda: store, RUN, tmp_path / "fresh")
    # A set that never got a manifest is none, and a run that has no more than that begins.
    store.delete(f"{RUN}/checkpoints/000001/manifest.json")
    assert restore(lambda: store, RUN, tmp_path / "fresh").source == "nothing"


def test_a_checkpoint_is_restored_by_its_number_or_not_at_all(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    for number in range(3):
        (root / "models/policy.npz").write_text(f"weights {number + 1}")
        publish(folder, RUN, root)
    fresh = tmp_path / "fresh"
    with pytest.raises(CheckpointError, match=r"has no checkpoint 9 in file://.*; there are 3, 2, 1\."):
        restore(lambda: folder, RUN, fresh, sequence=9)
    with pytest.raises(CheckpointError, match="restore=2 needs a bucket"):
        restore(None, RUN, fresh, sequence=2)
    folder.delete(f"{RUN}/checkpoints/000001/files/models/policy.npz")
    with pytest.raises(CheckpointError, match="Checkpoint 1 of miniprover-0 is damaged"):
        restore(lambda: folder, RUN, fresh, sequence=1)
    assert restore(lambda: folder, RUN, fresh, sequence=2).sequence == 2
    assert (fresh / "models/policy.npz").read_text() == "weights 2"
    again = restore(lambda: folder, RUN, fresh, sequence=2)
    assert again.source == "local" and "restore=2 was not used: this box has work of its own" in again.warnings[0]


def test_folders_that_are_no_sets_are_passed_over(folder: LocalStore, tmp_path: Path) -> None:
    publish(folder, RUN, make_root(tmp_path))
    for name in ("²", "7", "0000007", "-00001", "000000", "notes"):
        folder.put(f"{RUN}/checkpoints/{name}/manifest.json", b"")
    assert sequences(folder, RUN) == [1]
    assert restore(lambda: folder, RUN, tmp_path / "fresh").sequence == 1


def test_nothing_is_removed_when_any_manifest_is_unreadable(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    for number in range(3):
        (root / "trajectories/a.jsonl").write_text(str(number))
        publish(folder, RUN, root)
    for unreadable in (2, 1):  # one that would stay, and one that would go
        folder.put(f"{RUN}/checkpoints/{unreadable:06d}/manifest.json", b"torn")
        before = keys(folder)
        (root / "trajectories/a.jsonl").write_text(f"last {unreadable}")
        published = publish(folder, RUN, root, retention=Retention(keep_last=3))
        assert published.removed == 0 and before < keys(folder)
        assert "No older checkpoint is removed while it is there" in published.warnings[0]


def test_the_last_whole_set_stays(folder: LocalStore, tmp_path: Path) -> None:
    """Whoever removes objects beside us must not make us remove what is left, nor call whole what is not."""
    root = make_root(tmp_path)
    publish(folder, RUN, root)

    class Losing(LocalStore):
        lost = 0

        def put_new(self, key: str, data: bytes) -> bool:
            written = super().put_new(key, data)
            if self.lost:
                self.lost -= 1
                self.delete(key.replace("manifest.json", "files/models/policy.npz"))
            return written

    store = Losing(folder.folder)
    store.lost = 3
    (root / "models/policy.npz").write_text("newer weights")
    with pytest.raises(CheckpointError, match=r"vanish from file://.* while they are being published, as 3 tries"):
        publish(store, RUN, root, retention=Retention(keep_last=1))
    assert restore(lambda: folder, RUN, tmp_path / "fresh").sequence == 1
    store.lost = 2
    assert publish(store, RUN, root, retention=Retention(keep_last=1)).sequence == 4
    assert [manifest.sequence for manifest in manifests(folder, RUN)] == [4]
    assert verify(folder, RUN).damaged == []


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(0, 0, {1, 2, 3, 4, 5, 6}), (2, 0, {5, 6}), (1, 2, {2, 4, 6}), (9, 0, {1, 2, 3, 4, 5, 6})],
)
def test_retention(keep_last: int, keep_every: int, kept: set[int]) -> None:
    assert Retention(keep_last, keep_every).keeps(range(1, 7)) == kept


def test_the_four_cases(folder: LocalStore, tmp_path: Path) -> None:
    assert restore(lambda: folder, RUN, tmp_path / "a").source == "nothing"
    assert restore(None, RUN, tmp_path / "a").source == "nothing"
    local = make_root(tmp_path, "local")
    assert restore(None, RUN, local).source == "local"
    publish(folder, RUN, local)
    (local / "models/policy.npz").write_text("further on")

    def unreachable() -> Store:
        raise AssertionError("the bucket must not be asked")

    assert restore(unreachable, RUN, local).source == "local"
    assert (local / "models/policy.npz").read_text() == "further on"
    assert restore(lambda: folder, RUN, tmp_path / "cloud only").source == "cloud"


def test_a_run_that_has_nothing_begins_also_without_its_bucket(folder: LocalStore, tmp_path: Path) -> None:
    """Only where somebody has seen that there is nothing: what may be there is never begun over."""
    (tmp_path / "file").touch()
    broken: Callable[[], Store] = lambda: LocalStore(tmp_path / "file" / "bucket")  # noqa: E731
    for expected in (None, 1):
        with pytest.raises(BucketError):
            restore(broken, RUN, tmp_path / "new box", expected=expected)
    with pytest.raises(BucketError):
        restore(broken, RUN, tmp_path / "new box", expected=0, sequence=1)
    begun = restore(broken, RUN, tmp_path / "new box", expected=0)
    assert begun.source == "nothing" and "as the controller has seen" in begun.warnings[0]
    # A bucket that answers is believed, whatever was seen before.
    publish(folder, RUN, make_root(tmp_path))
    assert restore(lambda: folder, RUN, tmp_path / "new box", expected=0).source == "cloud"
    with pytest.raises(CheckpointError, match="has checkpoint 7 in the bucket, as the controller has seen"):
        restore(lambda: folder, "another-0", tmp_path / "other", expected=7)


def test_a_damaged_set_gives_way_to_the_older_one(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    (root / "models/policy.npz").write_text("newer!!")
    publish(folder, RUN, root)
    folder.put(f"{RUN}/checkpoints/000002/files/models/policy.npz", b"bitrot!")
    fresh = tmp_path / "fresh"
    restored = restore(lambda: folder, RUN, fresh)
    assert restored.sequence == 1 and "Checkpoint 2" in restored.warnings[0]
    assert (fresh / "models/policy.npz").read_text() == "weights"


def test_only_damaged_sets_are_an_error_and_leave_nothing(folder: LocalStore, tmp_path: Path) -> None:
    publish(folder, RUN, make_root(tmp_path))
    folder.delete(f"{RUN}/checkpoints/000001/files/models/policy.npz")
    fresh = tmp_path / "fresh"
    with pytest.raises(CheckpointError, match=r"No checkpoint of miniprover-0 in .* is whole"):
        restore(lambda: folder, RUN, fresh)
    assert tree(fresh) == {}


def test_a_restore_that_was_cut_off_is_begun_again(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    fetched: list[str] = []

    class Cut(LocalStore):
        limit = 2

        def fetch(self, key: str, target: Path, size: int) -> None:
            if len(fetched) >= self.limit:
                raise BucketError("the line is dead")
            fetched.append(key)
            super().fetch(key, target, size)

    store = Cut(folder.folder)
    fresh = tmp_path / "fresh"
    with pytest.raises(BucketError):
        restore(lambda: store, RUN, fresh, threads=1)
    assert tree(fresh) == {}, "no file is in place before all are verified"
    store.limit = 99
    assert restore(lambda: store, RUN, fresh).source == "cloud"
    assert tree(fresh) == tree(root)
    assert len(fetched) == len(set(fetched)) == 5, "what had been fetched is used"


def test_a_restore_that_was_cut_off_while_placing_leaves_no_journal(
    folder: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    placed: list[str] = []
    place = restoring.place_part

    def cut(incoming: int, entry: FileEntry, folder: int, name: str, *, last: bool) -> None:
        if len(placed) == 4:
            raise OSError("killed")
        placed.append(entry.path)
        place(incoming, entry, folder, name, last=last)

    fresh = tmp_path / "fresh"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(restoring, "place_part", cut)
        restore(lambda: folder, RUN, fresh)
    assert len(tree(fresh)) >= 4 and not (fresh / ".gpuyard/journal.jsonl").exists()
    assert restore(lambda: folder, RUN, fresh).source == "cloud"
    assert tree(fresh) == tree(root)


def test_the_first_publish_after_a_restore_reads_and_sends_nothing(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    publish(folder, RUN, root)
    fresh = tmp_path / "fresh"
    restore(lambda: folder, RUN, fresh)
    (fresh / "models/policy.npz").chmod(0)
    published = publish(folder, RUN, fresh)
    assert published.files_sent == 0 and published.skipped == []


def test_links_and_oddities(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (tmp_path / "outside.txt").write_text("from outside")
    (tmp_path / "elsewhere").mkdir()
    (root / "models/latest").symlink_to(root / "models/deep")
    (root / "models/best.npz").symlink_to("policy.npz")
    (root / "models/outside.txt").symlink_to(tmp_path / "outside.txt")
    (root / "models/elsewhere").symlink_to(tmp_path / "elsewhere")
    (root / "models/dangling").symlink_to("nowhere")
    (root / ".gpuyard/tmp").mkdir(parents=True, exist_ok=True)
    (root / ".gpuyard/tmp/scratch").write_text("no")
    os.mkfifo(root / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root)
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
    with listener:
        published = publish(folder, RUN, root)
    assert published.skipped == ["models/elsewhere (a link to a folder outside the persistent root)"]
    fresh = tmp_path / "fresh"
    restore(lambda: folder, RUN, fresh)
    assert (fresh / "models/latest").readlink() == Path("deep")
    assert (fresh / "models/best.npz").readlink() == Path("policy.npz")
    assert (fresh / "models/outside.txt").read_text() == "from outside"
    assert not (fresh / "models/outside.txt").is_symlink()
    names = {path.name for path in fresh.rglob("*")}
    assert names.isdisjoint({"dangling", "pipe", "socket", "scratch", "elsewhere"})


def test_a_file_that_grows_while_it_is_sent_is_stored_as_it_was(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    large = root / "trajectories/large.jsonl"
    content = os.urandom(SINGLE_REQUEST_BYTES + 1000) + b"\n"
    large.write_bytes(content)

    class Slow(LocalStore):
        def put_stream(self, key: str, stream: BinaryIO) -> None:
            with large.open("ab") as writer:
                writer.write(b"appended meanwhile")
            super().put_stream(key, stream)

    publish(Slow(folder.folder), RUN, root)
    fresh = tmp_path / "fresh"
    assert restore(lambda: folder, RUN, fresh).warnings == []
    assert (fresh / "trajectories/large.jsonl").read_bytes() == content
    # The appended part is not lost: the next set has it.
    publish(folder, RUN, root)
    restore(lambda: folder, RUN, tmp_path / "later")
    assert (tmp_path / "later/trajectories/large.jsonl").read_bytes() == content + b"appended meanwhile"


def test_the_journal_in_a_set_is_never_ahead_of_its_files(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    journal = root / ".gpuyard/journal.jsonl"
    before = journal.read_bytes()

    class Racing(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            if key.endswith("policy.npz"):
                journal.write_bytes(before + b'{"event": "stage-end", "outcome": "done"}\n')
            super().put(key, data)

    seen: list[bytes] = []
    publish(Racing(folder.folder), RUN, root, progress=lambda data: {"bytes": seen.append(data)})
    restore(lambda: folder, RUN, tmp_path / "fresh")
    assert (tmp_path / "fresh/.gpuyard/journal.jsonl").read_bytes() == before == seen[0]


def test_two_publishers_on_one_box_take_turns(folder: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path)
    inside = threading.Event()
    go_on = threading.Event()

    class Held(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            inside.set()
            assert go_on.wait(120)
            super().put(key, data)

    first = threading.Thread(target=publish, args=(Held(folder.folder), RUN, root))
    first.start()
    assert inside.wait(120)
    with pytest.raises(CheckpointError, match="under way for more than"):
        publish(folder, RUN, root, lock_wait_s=0.1)
    go_on.set()
    first.join()
    assert [manifest.sequence for manifest in manifests(folder, RUN)] == [1]


def test_a_failing_bucket_is_one_warning(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (tmp_path / "file").write_text("in the way")
    warnings: list[str] = []
    broken: Callable[[], Store] = lambda: LocalStore(tmp_path / "file" / "bucket")  # noqa: E731
    assert publish_or_warn(broken, RUN, root, warn=warnings.append) is None
    assert len(warnings) == 1 and "cannot be used" in warnings[0] and "stays on this box" in warnings[0]
    # An impatient caller is not held up by it again, a patient one tries.
    calls: list[int] = []

    def counted() -> Store:
        calls.append(1)
        return LocalStore(tmp_path / "bucket")

    assert publish_or_warn(counted, RUN, root, warn=warnings.append, patient=False) is None
    assert calls == [] and "has just failed" in warnings[1]
    assert publish_or_warn(counted, RUN, root, warn=warnings.append) is not None
    assert publish_or_warn(counted, RUN, root, warn=warnings.append, patient=False) is not None


@pytest.mark.parametrize("kind", ["refused", "silent", "wrong key", "no bucket"])
def test_a_dead_bucket_is_a_sentence_without_keys_in_bounded_time(
    kind: str, bucket: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuyard.box.checkpoints.s3_store.READ_TIMEOUT_S", 1)
    env = dict(bucket.env)  # type: ignore[attr-defined]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    name = "yard"
    if kind in ("refused", "silent"):
        env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if kind == "silent":
        listener.listen()  # a port that is only bound refuses, and nobody else gets it meanwhile
    if kind == "wrong key":
        env["AWS_SECRET_ACCESS_KEY"] = "canary-other-secret-0077aa"
    if kind == "no bucket":
        name = "nobodys-bucket"
    began = time.monotonic()
    with listener, pytest.raises(BucketError) as caught:
        publish(open_store(f"s3://{name}/{tmp_path.name}", env=env), RUN, make_root(tmp_path))
    assert time.monotonic() - began < 60
    text = str(caught.value)
    assert f"s3://{name}" in text and "canary" not in text
    expected = {"wrong key": "refuses the key", "no bucket": "does not exist"}.get(kind, "cannot be used")
    assert expected in text


@pytest.mark.parametrize("url", ["", "ftp://bucket", "bucket", "s3://", "file://host/x", "file:relative"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is not an address of a bucket"):
        open_store(url)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a//b", "", "a/../b"])
def test_a_manifest_cannot_lead_out_of_the_root(folder: LocalStore, tmp_path: Path, path: str) -> None:
    publish(folder, RUN, make_root(tmp_path))
    key = f"{RUN}/checkpoints/000001/manifest.json"
    document = json.loads(folder.get(key))
    document["files"][0]["path"] = path
    with pytest.raises(CheckpointError, match="is not a manifest"):
        Manifest.from_bytes(json.dumps(document).encode(), where="here")
    folder.put(key, json.dumps(document).encode())
    with pytest.raises(UnreadableManifestError):
        latest_manifest(folder, RUN)


def test_a_restore_that_does_not_fit_says_so(
    folder: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, RUN, make_root(tmp_path))
    usage = restoring.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(restoring.shutil, "disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB below .*, where 0\.0 GB are free"):
        restore(lambda: folder, RUN, tmp_path / "fresh")


def test_the_record_of_a_run(store: Store) -> None:
    first = write_record(store, RUN, "miniprover")
    assert first.outcome is None and first.finished is None
    store.put(f"{RUN}/run.json", first.to_bytes().replace(first.created.encode(), b"2026-01-01T00:00:00Z"))
    last = write_record(store, RUN, "miniprover", outcome="done")
    assert last.created == "2026-01-01T00:00:00Z" and last.finished is not None
    store.put("other-0/checkpoints/000001/manifest.json", b"{}")
    store.put("torn-0/run.json", b"[")
    assert [(record.run, record.workload, record.outcome) for record in list_runs(store)] == [
        (RUN, "miniprover", "done"),
        ("other-0", "", None),
        ("torn-0", "", None),
    ]


def test_an_empty_bucket_knows_no_runs(store: Store) -> None:
    assert list_runs(store) == []
    assert latest_manifest(store, RUN) is None


def test_the_lock_is_the_kernels(folder: LocalStore, tmp_path: Path) -> None:
    """A lock file that a killed publisher left behind holds nobody up."""
    root = make_root(tmp_path)
    publish(folder, RUN, root)
    lock = root / ".gpuyard/tmp/publish.lock"
    assert lock.exists()
    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
