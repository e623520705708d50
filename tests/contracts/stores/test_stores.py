"""What every store promises, and what checkpoints are on each: the same tests on a folder, S3, Azure and Google.

With STORES_AT_SIZE=1 in the environment the large tests have 10,000 files, and a file of 2 GB.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import (
    LocalStore,
    Retention,
    Store,
    latest_manifest,
    latest_whole_manifest,
    open_store,
    publish,
    restore,
    sequences,
    verify,
)
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES
from gpuyard.cloud_sync import CloudSync
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UsageError

from .servers import Server, container_token

pytestmark = pytest.mark.programs
RUN = "miniprover-0"
AT_SIZE = bool(os.environ.get("STORES_AT_SIZE"))
SMALL_FILES = 10_000 if AT_SIZE else 500
LARGE_BYTES = 2 * 1024**3 if AT_SIZE else 64 * 1024**2
NAMES = ["a b.txt", "ü ñ 漢字.txt", "100%25.txt", "#?&=+;,@:~'\"`^|<>{}[]()!$*.txt", "trailing ", ".hidden", "-dash"]


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tree(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found if ".gpuyard" not in path.parts}


def each(store: Store, work: Callable[[int], Any], count: int = 8) -> list[Any]:
    """Do something in so many threads that all begin at the same moment."""
    gate = threading.Barrier(count)

    def at_once(number: int) -> Any:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(at_once, range(count)))


# -- the store ---------------------------------------------------------------------------------------------------------


def test_an_object_is_put_read_listed_and_deleted(store: Store) -> None:
    assert list(store.objects("")) == [] and store.folders() == [] and store.folders("a/") == []
    store.put("a/b/c", b"one")
    store.put("a/empty", b"")
    store.put("z", b"two")
    assert (store.get("a/b/c"), store.get("a/empty"), list(store.chunks("a/empty"))) == (b"one", b"", [])
    assert {item.key: item.size for item in store.objects("a/b/")} == {"a/b/c": 3}
    assert {item.key for item in store.objects("a/e")} == {"a/empty"}
    assert "z" in {item.key for item in store.objects("z")}
    assert (store.folders(), store.folders("a/"), store.folders("a/b/")) == (["a"], ["b"], [])
    store.delete("z")
    store.delete("z")
    for read in (store.get, lambda key: list(store.chunks(key))):
        with pytest.raises(MissingObjectError, match="holds no z"):
            read("z")
    with pytest.raises(MissingObjectError):
        store.fetch("z", Path(os.devnull), 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_back_as_it_was(store: Store, name: str) -> None:
    key = f"files/{name}/{name}"
    store.put(key, name.encode())
    assert store.get(key) == name.encode()
    assert [item.key for item in store.objects("files/")] == [key]
    assert store.folders("files/") == [name]


def test_a_tag_changes_with_the_content(store: Store) -> None:
    tags = []
    for content in (b"one", b"two"):
        store.put("a", content)
        tags += [item.tag for item in store.objects("a")]
    assert len(set(tags)) == 2 and all(tags)
    assert [item.tag for item in store.objects("a")] == tags[1:]


def test_of_those_who_put_something_new_at_once_one_succeeds(store: Store) -> None:
    for turn in range(5):
        key = f"claims/{turn}"
        won = each(store, lambda number, key=key: store.put_new(key, f"{number}".encode()))
        assert won.count(True) == 1 and store.get(key) == f"{won.index(True)}".encode()
        assert store.put_new(key, store.get(key)), "one's own, sent twice"


class Dribble:
    """A stream that yields less than it is asked for, and can be read only once."""

    def __init__(self, content: bytes) -> None:
        self.rest = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.rest.read(min(size, 700_001))


@pytest.mark.parametrize("more", [-1, 0, 1, SINGLE_REQUEST_BYTES * 4 + 3])
def test_a_stream_is_stored_whole_whatever_its_length(store: Store, tmp_path: Path, more: int) -> None:
    content = os.urandom(1000) * ((SINGLE_REQUEST_BYTES + more) // 1000 + 1)
    content = content[: SINGLE_REQUEST_BYTES + more]
    stream: Any = Dribble(content)
    store.put_stream("large", stream)
    store.fetch("large", tmp_path / "copy", len(content))
    assert (tmp_path / "copy").read_bytes() == content
    assert [item.size for item in store.objects("large")] == [len(content)]


def test_a_stream_that_breaks_off_leaves_nothing(store: Store) -> None:
    class Broken:
        begun = 0

        def read(self, size: int = -1) -> bytes:
            self.begun += size
            if self.begun > 5 * SINGLE_REQUEST_BYTES:
                raise OSError("the disk fails")
            return bytes(size)

    stream: Any = Broken()
    with pytest.raises((OSError, BucketError)):
        store.put_stream("large", stream)
    assert list(store.objects("")) == []
    store.abort_unfinished("")


def test_a_key_leads_nowhere_else(store: Store) -> None:
    if store.url.startswith("s3:"):
        pytest.skip("to S3 such a key is a name like any other, and reaches nothing outside the bucket")
    with pytest.raises(CheckpointError, match=r"\.\./x"):
        store.put("../x", b"")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_two_publishers_at_once_on_one_prefix(store: Store, tmp_path: Path) -> None:
    roots = [fill(tmp_path / f"box{number}", {f"models/{number}": b"%d" % number * 1000}) for number in range(2)]
    made = each(store, lambda number: publish(store, RUN, roots[number]), 2)
    assert len({done.sequence for done in made} & set(sequences(store, RUN))) == 2
    for number, done in enumerate(made):
        assert verify(store, RUN, sequence=done.sequence).damaged == []
        restore(lambda: store, RUN, tmp_path / f"copy{number}", sequence=done.sequence)
        assert tree(tmp_path / f"copy{number}") == tree(roots[number])


def test_a_reader_during_a_publish_sees_the_set_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "box", {"models/a": b"old"})
    publish(store, RUN, root)
    fill(root, {"models/a": b"new", "models/b": bytes(SINGLE_REQUEST_BYTES + 1)})
    seen: list[int] = []
    for name in ("put", "put_stream"):
        original = getattr(store, name)

        def and_look(key: str, content: Any, original: Callable[..., None] = original) -> None:
            found = latest_whole_manifest(store, RUN)
            seen.append(found.sequence if found else 0)
            original(key, content)

        monkeypatch.setattr(store, name, and_look)
    assert publish(store, RUN, root, threads=1).sequence == 2
    assert set(seen) == {1} and len(seen) >= 3
    newest = latest_manifest(store, RUN)
    assert newest and newest.sequence == 2


def test_pruning_during_a_restore_gives_no_mixture(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def content(text: bytes) -> dict[str, bytes]:
        return {f"models/{number}": text * (number + 1) for number in range(4)}

    root, fetch, pruned = fill(tmp_path / "box", content(b"old")), store.fetch, []
    publish(store, RUN, root)

    def prune_first(key: str, target: Path, size: int) -> None:
        if not pruned:
            pruned.append(publish(store, RUN, fill(root, content(b"new")), retention=Retention(keep_last=1)))
        fetch(key, target, size)

    monkeypatch.setattr(store, "fetch", prune_first)
    copy = tmp_path / "copy"
    copy.mkdir()
    with pytest.raises(CheckpointError):
        restore(lambda: store, RUN, copy, threads=1)
    assert pruned[0].removed and tree(copy) == {}
    assert restore(lambda: store, RUN, copy).sequence == 2
    assert tree(copy) == content(b"new")


def test_many_small_files(store: Store, tmp_path: Path) -> None:
    root = fill(tmp_path / "box", {f"{n % 50}/{n}": b"%d" % n for n in range(SMALL_FILES)})
    assert publish(store, RUN, root).files == SMALL_FILES
    assert publish(store, RUN, root).unchanged
    restore(lambda: store, RUN, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(root)


def test_a_large_file(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "box"
    root.mkdir()
    with (root / "model.bin").open("wb") as file:
        for _ in range(LARGE_BYTES // SINGLE_REQUEST_BYTES):
            file.write(os.urandom(SINGLE_REQUEST_BYTES))
    assert publish(store, RUN, root).bytes_sent >= LARGE_BYTES
    restore(lambda: store, RUN, tmp_path / "copy")
    with (root / "model.bin").open("rb") as ours, (tmp_path / "copy/model.bin").open("rb") as theirs:
        while piece := ours.read(SINGLE_REQUEST_BYTES):
            assert theirs.read(SINGLE_REQUEST_BYTES) == piece
        assert not theirs.read(1)


def test_a_flipped_byte_in_every_object_is_found(store: Store, tmp_path: Path) -> None:
    root = fill(tmp_path / "box", {name: name.encode() for name in NAMES} | {"large": bytes(SINGLE_REQUEST_BYTES + 9)})
    publish(store, RUN, root)
    found = latest_manifest(store, RUN)
    assert found and len(found.files) == len(NAMES) + 1
    for entry in found.files:
        sound = store.get(entry.key)
        store.put(entry.key, sound[:-1] + bytes([sound[-1] ^ 1]))
        assert [text.partition(": ")[0] for text in verify(store, RUN).damaged] == [entry.path]
        assert latest_whole_manifest(store, RUN) is None
        store.put(entry.key, sound)
    assert verify(store, RUN).damaged == []


@pytest.mark.parametrize("change", [{"path": "../out"}, {"key": "../../another-run/secret"}, {"path": "/etc/out"}])
def test_a_manifest_that_points_outside_is_refused(store: Store, tmp_path: Path, change: dict[str, str]) -> None:
    publish(store, RUN, fill(tmp_path / "box", {"a": b"1"}))
    key = f"{RUN}/checkpoints/000001/manifest.json"
    document = json.loads(store.get(key))
    document["files"][0] |= change
    store.put(key, json.dumps(document).encode())
    with pytest.raises(CheckpointError):
        restore(lambda: store, RUN, tmp_path / "copy")
    assert not (tmp_path / "out").exists() and tree(tmp_path / "copy") == {}


# -- for training code -------------------------------------------------------------------------------------------------


@pytest.fixture
def sync(server: Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> CloudSync:
    """E1, E3: what training code has, by its environment alone."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    scheme, _, bucket = store.url.partition("://")
    provider = {"s3": "s3", "gs": "gcs", "az": "azure", "file": "local"}[scheme]
    if isinstance(store, LocalStore):
        return CloudSync(provider, str(store.folder))
    return CloudSync(provider, bucket)


def test_e1_training_code_reaches_it(sync: CloudSync, store: Store, tmp_path: Path) -> None:
    """E2, F7: files under names of one's own, folders, logs and whole sets."""
    (tmp_path / "step").write_text("500")
    names = ["fairy2/qwen/checkpoint_step_500.pt", "fairy2/qwen/final_checkpoint.pt"]
    assert all(sync.upload_file(tmp_path / "step", name) for name in names)
    assert {item.key for item in store.objects("fairy2/")} == set(names)
    assert sync.download_directory("fairy2/qwen", tmp_path / "down")
    assert set(tree(tmp_path / "down")) == {"checkpoint_step_500.pt", "final_checkpoint.pt"}
    assert sync.download_file(names[0], tmp_path / "one") and (tmp_path / "one").read_text() == "500"
    fill(tmp_path / "checkpoints", {"model.pt": b"1"})
    assert sync.sync_checkpoints(tmp_path / "checkpoints", "fairy2/sets") and sync.sync_logs(
        tmp_path / "down", "fairy2"
    )
    assert sync.download_checkpoints("fairy2/sets", tmp_path / "fresh")
    assert tree(tmp_path / "fresh") == {"model.pt": b"1"}
    assert not sync.download_file("fairy2/none", tmp_path / "none")


# -- what opens a container --------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("azure")
def test_e13_a_token_of_one_container_is_enough(servers: Callable[[str], Server], tmp_path: Path) -> None:
    """What the guide names as the narrowest: to list, create, write, read and delete in one container."""
    container = servers("azure")
    string = container.env["AZURE_STORAGE_CONNECTION_STRING"]
    address = string.partition("BlobEndpoint=")[2].rstrip(";")
    env = {"AZURE_STORAGE_SERVICE_ENDPOINT": address, "AZURE_STORAGE_SAS_TOKEN": container_token("rcwdl")}
    store = open_store(container.url, env=env)
    root = fill(tmp_path / "box", {"a": b"1", "large": bytes(3 * SINGLE_REQUEST_BYTES)})
    publish(store, RUN, root)
    fill(root, {"a": b"2"})
    assert publish(store, RUN, root, retention=Retention(keep_last=1)).removed
    restore(lambda: store, RUN, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(root)
    for token in ("sp=rl&sig=canary", container_token("rl"), container_token("rcwdl", hours=-1)):
        narrow = open_store(container.url, env={**env, "AZURE_STORAGE_SAS_TOKEN": token})
        with pytest.raises(BucketError, match=r"refuses the key \(Auth\w+\): check AZURE_STORAGE_SAS_TOKEN") as refused:
            narrow.put("b", b"")
        assert "canary" not in str(refused.value) and "sig=" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "env", "message"),
    [
        ("az://c", {}, "needs its account: set AZURE_STORAGE_ACCOUNT"),
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}, "/nowhere.json cannot be read: No such file"),
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/hostname"}, "must be the file of a service account"),
    ],
)
def test_what_cannot_open_a_bucket_is_one_sentence(url: str, env: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_store(url, env=env)


@pytest.mark.parametrize("scheme", ["az", "gs"])
def test_a_dead_bucket_is_a_sentence_without_keys_in_bounded_time(scheme: str) -> None:
    env = {
        "AZURE_STORAGE_SERVICE_ENDPOINT": "http://127.0.0.1:9/mine",
        "AZURE_STORAGE_KEY": "Y2FuYXJ5",
        "STORAGE_EMULATOR_HOST": "127.0.0.1:9",
    }
    store = open_store(f"{scheme}://yard", env=env)
    with pytest.raises(BucketError, match=r"yard at http://127.0.0.1:9\S* cannot be used \(no connection\)\.") as said:
        store.folders()
    assert "Y2FuYXJ5" not in str(said.value)
