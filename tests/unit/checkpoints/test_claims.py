"""Two publishers of one run: whatever the order of their requests, a whole set is left, and each has its own number."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from botocore.stub import Stubber

from gpuyard.box.checkpoints import (
    LocalStore,
    Published,
    Retention,
    S3Store,
    Store,
    StoredObject,
    manifests,
    open_store,
    publish,
    publish_or_warn,
    restore,
    verify,
)
from gpuyard.box.checkpoints.claims import Claim
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES
from gpuyard.errors import BucketError
from gpuyard.renting import runs

RUN = "miniprover-0"
ONE = Retention(keep_last=1)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "bucket")
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env)


class Watched(Store):
    """A store that calls ``before(method, key)`` ahead of every request."""

    def __init__(self, store: Store, before: Callable[[str, str], None]) -> None:
        self.store, self.before = store, before
        self.url, self.tags_tell_content = store.url, store.tags_tell_content
        # A publisher's threads take turns, so that its requests have one order.
        self.one_at_a_time = threading.Lock()

    def _ask(self, method: str, key: str, *arguments: Any) -> Any:
        with self.one_at_a_time:
            self.before(method, key)
            answer = getattr(self.store, method)(key, *arguments)
            return list(answer) if isinstance(answer, Iterator) else answer

    def get(self, key: str) -> bytes:
        return self._ask("get", key)

    def chunks(self, key: str) -> Iterator[bytes]:
        return iter(self._ask("chunks", key))

    def put(self, key: str, data: bytes) -> None:
        self._ask("put", key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        return self._ask("put_new", key, data)

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        self._ask("put_stream", key, stream)

    def fetch(self, key: str, target: Path, size: int) -> None:
        self._ask("fetch", key, target, size)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        return iter(self._ask("objects", prefix))

    def folders(self, prefix: str = "") -> list[str]:
        return self._ask("folders", prefix)

    def delete(self, key: str) -> None:
        self._ask("delete", key)

    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        return self._ask("abort_unfinished", prefix, spare)


def make_root(folder: Path, text: str) -> Path:
    """A box's files: one that all boxes share, one that is its own, one that all have under the same name."""
    for path, content in {
        "shared": "the same everywhere",
        f"only-{folder.name}": text,
        "weights": f"weights of {folder.name}, {text}",
        ".gpuyard/journal.jsonl": f"{folder.name} {text}\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and ".gpuyard/tmp" not in path.as_posix()
    }


def keys(store: Store) -> list[str]:
    return sorted(item.key for item in store.objects(f"{RUN}/"))


def claims(store: Store) -> list[str]:
    return [key for key in keys(store) if "claim-" in key]


def check(store: Store, roots: list[Path], fresh: Path) -> None:
    """The newest set is whole, and one box's own; nothing is left of the race."""
    assert verify(store, RUN).damaged == []
    assert restore(lambda: store, RUN, fresh).source == "cloud"
    assert tree(fresh) in [tree(root) for root in roots]
    assert claims(store) == []


class Turns:
    """Lets two publishers do one request at a time, in an order that ``seed`` decides."""

    def __init__(self, seed: int, names: set[str]) -> None:
        self.random = random.Random(seed)
        self.busy, self.waiting, self.next = set(names), set[str](), ""
        self.changed = threading.Condition()

    def step(self, name: str) -> None:
        with self.changed:
            self.waiting.add(name)
            self._choose()
            assert self.changed.wait_for(lambda: self.next == name, 120)
            self.waiting.remove(name)
            self.next = ""

    def leave(self, name: str) -> None:
        with self.changed:
            self.busy.remove(name)
            self._choose()

    def _choose(self) -> None:
        if self.busy and self.waiting == self.busy:
            self.next = self.random.choice(sorted(self.waiting))
            self.changed.notify_all()


def race(store: Store, roots: list[Path], seed: int) -> dict[str, Published | Exception]:
    """Publish all roots at once, in the order of ``seed``; return what each publisher said."""
    turns = Turns(seed, {root.name for root in roots})
    said: dict[str, Published | Exception] = {}

    def one(root: Path) -> None:
        watched = Watched(store, lambda method, key: turns.step(root.name))
        try:
            said[root.name] = publish(watched, RUN, root, retention=ONE, threads=2)
        except Exception as error:
            said[root.name] = error
        finally:
            turns.leave(root.name)

    threads = [threading.Thread(target=one, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_two_publishers_in_any_order_leave_a_whole_set(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuyard.box.checkpoints.claims.time.sleep", lambda seconds: None)
    roots = [make_root(tmp_path / name, "0") for name in ("first", "second")]
    publish(store, RUN, roots[0])
    for seed in range(10 if isinstance(store, LocalStore) else 4):
        for root in roots:
            make_root(root, f"{seed}")
        said = race(store, roots, seed)
        numbers = [published.sequence for published in said.values() if isinstance(published, Published)]
        assert len(numbers) == len(set(numbers)) == 2, (seed, said)
        check(store, roots, tmp_path / f"fresh-{seed}")


def test_a_second_publisher_at_any_moment_of_the_first(folder_only: LocalStore, tmp_path: Path) -> None:
    """The whole of the second one's work falls between two requests of the first, wherever that is."""

    def at(moment: int) -> int:
        """Let the second one publish before the first one's request number ``moment``; return how many there were."""
        folder = tmp_path / str(moment)
        roots = [make_root(folder / name, "0") for name in ("first", "second")]
        store = LocalStore(folder_only.folder / str(moment))
        publish(store, RUN, roots[0])
        for root in roots:
            make_root(root, "1")
        asked: list[str] = []

        def second(method: str, key: str) -> None:
            asked.append(method)
            if len(asked) == moment:
                publish(store, RUN, roots[1], retention=ONE)

        publish(Watched(store, second), RUN, roots[0], retention=ONE)
        check(store, roots, folder / "fresh")
        return len(asked)

    moment, last = 1, 1
    while moment <= last:
        last = max(last, at(moment))
        moment += 1
    assert last > 10


def test_what_was_seen_before_the_claim_is_not_relied_on_when_another_has_published_since(
    store: Store, tmp_path: Path
) -> None:
    """The second one has decided what to remove before the first one's claim is there, and removes it after its end."""
    roots = [make_root(tmp_path / name, f"of {name}") for name in ("first", "second")]
    publish(store, RUN, roots[0])
    (roots[0] / "weights").write_text("newer")  # the rest of the first set is to be used again
    about_to_remove, first_is_done = threading.Event(), threading.Event()

    def second(method: str, key: str) -> None:
        if method == "delete" and "claim-" not in key:
            about_to_remove.set()
            assert first_is_done.wait(120)

    other = threading.Thread(target=publish, args=(Watched(store, second), RUN, roots[1]), kwargs={"retention": ONE})

    def first(method: str, key: str) -> None:
        if method == "put" and "claim-" in key and not about_to_remove.is_set():
            other.start()
            assert about_to_remove.wait(120)

    try:
        published = publish(Watched(store, first), RUN, roots[0])
    finally:
        first_is_done.set()
        other.join()
    assert (published.sequence, published.files_sent) == (3, 3)
    assert restore(lambda: store, RUN, tmp_path / "fresh").sequence == 3
    check(store, roots[:1], tmp_path / "again")


@pytest.fixture
def folder_only(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


def test_a_number_is_claimed_before_anything_is_sent(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    (root / "large").write_bytes(os.urandom(SINGLE_REQUEST_BYTES + 1))
    asked: list[tuple[str, str]] = []
    publish(Watched(store, lambda method, key: asked.append((method, key))), RUN, root)
    writing = [(method, key.removeprefix(f"{RUN}/checkpoints/")) for method, key in asked if "put" in method]
    assert writing[0][1].startswith("000001/claim-") and writing[-1] == ("put_new", "000001/manifest.json")
    first = [key for method, key in asked].index(f"{RUN}/checkpoints/000001/files/shared")
    assert asked[2][0] == "objects", "what is relied on is listed after the claim"
    assert first > 2 and claims(store) == []


def test_an_unchanged_publish_asks_little_and_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    (root / "many").mkdir()
    for number in range(200):
        (root / f"many/{number}").write_text(f"{number}")
    publish(store, RUN, root)
    before = keys(store)
    asked: list[str] = []
    watched = Watched(store, lambda method, key: asked.append(method))
    assert publish(watched, RUN, root).unchanged
    assert asked == ["objects", "get"], "one listing, and the newest manifest"
    assert keys(store) == before
    asked.clear()
    (root / "many/7").write_text("seven")
    published = publish(watched, RUN, root, retention=Retention(keep_last=9))
    assert published.files_sent == 1 and len(asked) <= 10, asked


def test_a_killed_publisher_is_cleared_away_by_the_next_one_of_its_machine(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    publish(store, RUN, root)
    dead: list[bool] = []

    def kill(method: str, key: str) -> None:
        if dead or method == "put_new":
            dead.append(True)
            raise BucketError("Nothing of a killed process reaches the bucket.")

    make_root(root, "2")
    with pytest.raises(BucketError):
        publish(Watched(store, kill), RUN, root, retention=ONE)
    assert len(claims(store)) == 1
    # Nothing new any more: the claim goes all the same.
    make_root(root, "1")
    assert publish(store, RUN, root, retention=ONE).unchanged and claims(store) == []
    assert [key for key in keys(store) if "/000002/" in key]
    make_root(root, "3")
    dead.clear()
    with pytest.raises(BucketError):
        publish(Watched(store, kill), RUN, root, retention=ONE)
    published = publish(store, RUN, root, retention=ONE)
    assert (published.sequence, published.warnings) == (4, [])
    assert not [key for key in keys(store) if "/000002/" in key or "/000003/" in key]
    check(store, [root], tmp_path / "fresh")


def test_nothing_is_removed_while_another_machine_publishes(folder_only: LocalStore, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    publish(folder_only, RUN, root)
    others = [f"{RUN}/checkpoints/000002/{name}" for name in ("claim-0123456789abcdef.json", "files/half")]
    for key in others:
        folder_only.put(key, b"{}")
    make_root(root, "2")
    warnings: list[str] = []
    published = publish_or_warn(lambda: folder_only, RUN, root, retention=ONE, warn=warnings.append)
    assert published is not None and (published.sequence, published.removed) == (3, 0)
    assert "Another machine has begun a checkpoint of miniprover-0 within the last hour" in warnings[0]
    assert set(others) <= set(keys(folder_only))
    # One that has sent nothing for an hour has been given up.
    for key in others:
        os.utime(folder_only.folder / key, (time.time() - 3700,) * 2)
    make_root(root, "3")
    assert publish(folder_only, RUN, root, retention=ONE).removed > 0
    assert set(others).isdisjoint(keys(folder_only))
    assert [manifest.sequence for manifest in manifests(folder_only, RUN)] == [4]


def leave_unfinished(store: Store, key: str) -> None:
    """Leave what a killed upload to ``key`` leaves."""
    if isinstance(store, LocalStore):
        part = (store.folder / key).with_name(".gpuyard-part-abcdefgh")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half of it")
        return
    assert isinstance(store, S3Store)
    target = {"Bucket": store.bucket, "Key": store.prefix + key}
    upload = store._client.create_multipart_upload(**target)["UploadId"]
    store._client.upload_part(**target, UploadId=upload, PartNumber=1, Body=b"half of it")


def unfinished(store: Store) -> list[str]:
    """The folders in which unfinished uploads are."""
    if isinstance(store, LocalStore):
        parts = store.folder.rglob(".gpuyard-part-*")
        return sorted(part.parent.relative_to(store.folder).as_posix() for part in parts)
    assert isinstance(store, S3Store)
    found = store._client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", ())
    return sorted(item["Key"].removeprefix(store.prefix).rpartition("/")[0] for item in found)


def test_unfinished_uploads_end_with_the_next_checkpoint(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    publish(store, RUN, root)
    sets = f"{RUN}/checkpoints"
    for number, other in ((1, "files"), (2, "files/models"), (3, "files")):
        leave_unfinished(store, f"{sets}/{number:06d}/{other}/large.bin")
    leave_unfinished(store, "other-0/checkpoints/000001/files/large.bin")
    # Another machine is at number 3; nothing shows that it has sent anything yet.
    store.put(f"{sets}/000003/claim-0123456789abcdef.json", b"{}")
    assert publish(store, RUN, root).unchanged
    assert len(unfinished(store)) == 4, "an unchanged one does not even look"
    make_root(root, "2")
    assert publish(store, RUN, root).sequence == 4
    kept = [f"{sets}/000003/files", "other-0/checkpoints/000001/files"]
    assert unfinished(store) == kept
    assert runs.cancel(store, RUN, check=True) is True
    assert unfinished(store) == kept
    # With its machines the run's publishers are gone, whatever they claimed.
    assert runs.cancel(store, RUN) is True
    assert unfinished(store) == kept[1:] and claims(store) == []
    leave_unfinished(store, f"{sets}/000005/files/large.bin")
    assert runs.cancel(store, RUN) is False, "torn down already"
    assert unfinished(store) == kept[1:]


def test_a_killed_publishers_uploads_end_even_when_nothing_is_new(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    publish(store, RUN, root)
    claim = Claim(store, RUN, root)
    leave_unfinished(store, claim.key("large.bin"))
    assert publish(store, RUN, root).unchanged
    assert unfinished(store) == [] and claims(store) == []


def test_a_failed_upload_leaves_nothing(store: Store, tmp_path: Path) -> None:
    class Failing:
        left = 3 * SINGLE_REQUEST_BYTES

        def read(self, amount: int = -1) -> bytes:
            if self.left <= 0:
                raise OSError(errno.EIO, "the disk fails")
            self.left -= amount
            return b"x" * amount

    with pytest.raises((OSError, BucketError)):
        store.put_stream("a/large.bin", Failing())  # type: ignore[arg-type]
    assert unfinished(store) == [] and list(store.objects("a/")) == []


RULE = {"ID": "x", "Status": "Enabled", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        ([RULE | {"Filter": {"Prefix": ""}}], True),
        ([RULE | {"Prefix": "yard/"}], True),
        ([RULE | {"Filter": {"And": {"Prefix": "yard/deep/"}}}], True),
        ([RULE | {"Filter": {"Prefix": "elsewhere/"}}], False),
        ([RULE | {"Filter": {}, "Status": "Disabled"}], False),
        ([{"ID": "x", "Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}], False),
        ("NoSuchLifecycleConfiguration", False),
        ("AccessDenied", None),
        ("NotImplemented", None),
    ],
)
def test_whether_a_rule_ends_unfinished_uploads(answer: Any, ends: bool | None, tmp_path: Path) -> None:
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    store = open_store("s3://bucket/yard/deep", env=env)
    assert isinstance(store, S3Store)
    with Stubber(store._client) as answers:
        if isinstance(answer, str):
            answers.add_client_error("get_bucket_lifecycle_configuration", answer)
        else:
            answers.add_response("get_bucket_lifecycle_configuration", {"Rules": answer})
        assert store.ends_unfinished() is ends
    assert store.ends_unfinished() is None, "nobody answers there"
    assert LocalStore(tmp_path).ends_unfinished() is None


def test_a_new_object_takes_no_others_place(store: Store) -> None:
    assert store.put_new("a/b", b"one") and store.put_new("a/b", b"one"), "again, as after a lost answer"
    assert not store.put_new("a/b", b"two")
    assert store.get("a/b") == b"one"
    assert [item.key for item in store.objects("")] == ["a/b"]


def test_a_folder_without_hard_links_will_do(folder_only: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("gpuyard.box.checkpoints.local_store.os.link", refuse)
    test_a_new_object_takes_no_others_place(folder_only)


def test_a_run_whose_name_has_several_parts(store: Store, tmp_path: Path) -> None:
    root = make_root(tmp_path / "box", "1")
    for number in (1, 2):
        make_root(root, str(number))
        assert publish(store, "group/run-7", root, retention=ONE).sequence == number
    assert restore(lambda: store, "group/run-7", tmp_path / "fresh").sequence == 2
    assert tree(tmp_path / "fresh") == tree(root)


def test_a_server_that_refuses_a_wrong_clock_is_told_from_a_wrong_key() -> None:
    store = open_store("s3://nobodys/x", env={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert isinstance(store, S3Store)
    with Stubber(store._client) as answers, pytest.raises(BucketError, match="whose clock is wrong: set this one's"):
        answers.add_client_error("get_object", "RequestTimeTooSkewed")
        store.get("key")
