"""Large files: of one that changed in places, only what changed is sent."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from gpuyard.box.checkpoints import (
    LocalStore,
    Store,
    latest_manifest,
    manifest_of,
    open_store,
    publish,
    restore,
    verify,
)
from gpuyard.box.checkpoints.blocks import LARGEST_COPY, MOST_PIECES, pieces_of
from gpuyard.box.checkpoints.stores import Piece
from gpuyard.errors import BucketError
from gpuyard.formats.manifest import BLOCK, Manifest

pytestmark = pytest.mark.long

RUN = "blocks-0"
FILE = "models/large.bin"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder copies parts; rclone's S3 server refuses to, so that the whole is sent."""
    if request.param == "folder":
        return LocalStore(tmp_path / "bucket")
    bucket = request.getfixturevalue("bucket")
    return open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three whole blocks and a part of one."""
    root = tmp_path / "box"
    (root / "models").mkdir(parents=True)
    (root / FILE).write_bytes(os.urandom(3 * BLOCK + 100))
    return root


def change(root: Path, offset: int, data: bytes) -> None:
    with (root / FILE).open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def append(root: Path, data: bytes) -> None:
    change(root, (root / FILE).stat().st_size, data)


def check(store: Store, root: Path, fresh: Path) -> None:
    """See that the newest set is whole, and comes back as it was."""
    assert verify(store, RUN).damaged == []
    restore(lambda: store, RUN, fresh)
    assert (fresh / FILE).read_bytes() == (root / FILE).read_bytes()


@pytest.mark.parametrize(
    ("edit", "sent"),
    [
        (lambda root: append(root, b"x" * 1000), 1100),
        (lambda root: change(root, BLOCK + 5, b"changed"), BLOCK),
        (lambda root: change(root, 0, b"changed"), BLOCK),
        (lambda root: os.truncate(root / FILE, 2 * BLOCK + 7), 7),
        (lambda root: os.truncate(root / FILE, 2 * BLOCK), 0),
        (lambda root: (root / FILE).rename(root / "models/step-2.bin") and append_to(root / "models/step-2.bin"), 101),
    ],
    ids=["grown", "middle", "beginning", "cut", "cut at a block", "under another name"],
)
def test_only_the_blocks_that_changed_are_sent(
    tmp_path: Path, root: Path, edit: Callable[[Path], Any], sent: int
) -> None:
    store = LocalStore(tmp_path / "bucket")
    publish(store, RUN, root)
    edit(root)
    published = publish(store, RUN, root)
    assert (published.files_sent, published.bytes_sent) == (1, sent)
    assert verify(store, RUN).damaged == []
    restore(lambda: store, RUN, tmp_path / "fresh")
    for file in (root / "models").iterdir():
        assert (tmp_path / "fresh/models" / file.name).read_bytes() == file.read_bytes()


def append_to(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


def test_every_store_ends_up_with_the_same(store: Store, tmp_path: Path, root: Path) -> None:
    publish(store, RUN, root)
    append(root, b"more")
    publish(store, RUN, root)
    change(root, 5, b"changed")
    publish(store, RUN, root)
    check(store, root, tmp_path / "fresh")
    # The objects are plain files, and those of older sets are as they were.
    assert verify(store, RUN, sequence=1).damaged == []


def test_a_machine_that_restored_the_set_knows_its_blocks(tmp_path: Path, root: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    publish(store, RUN, root)
    other = tmp_path / "other"
    restore(lambda: store, RUN, other)
    append(other, b"x")
    assert publish(store, RUN, other).bytes_sent == 101


def test_blocks_stay_known_while_the_file_is_as_it_was(tmp_path: Path, root: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    publish(store, RUN, root)
    for number in range(2):
        (root / "small").write_text(str(number))
        publish(store, RUN, root)
    append(root, b"x")
    assert publish(store, RUN, root).bytes_sent == 101


def test_a_server_that_refuses_is_asked_once(bucket: Any, tmp_path: Path, root: Path) -> None:
    store: Any = open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env)
    begun: list[str] = []
    store._client.meta.events.register("before-call.s3.UploadPartCopy", lambda params, **_: begun.append(params["url"]))
    publish(store, RUN, root)
    for _ in range(2):
        append(root, b"x")
        published = publish(store, RUN, root)
        assert published.bytes_sent == published.bytes_total == (root / FILE).stat().st_size
    assert len(begun) == 1
    check(store, root, tmp_path / "fresh")
    assert store.abort_unfinished("") == 0


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        ("slow", False),
        ({"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, False),
        ({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, False),
        ({"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}, True),
        ({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, True),
    ],
)
def test_whatever_a_copy_fails_of_the_whole_is_sent(bucket: Any, tmp_path: Path, answer: Any, again: bool) -> None:
    store: Any = open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env)

    def refuse(**_: Any) -> None:
        if answer == "slow":
            raise ReadTimeoutError(endpoint_url="http://bucket.invalid")
        raise ClientError(answer, "UploadPartCopy")

    store._client.meta.events.register("before-call.s3.UploadPartCopy", refuse)
    pieces = [Piece(5), Piece(BLOCK, "old", 0, "tag")]
    assert not store.compose("new", pieces, io.BytesIO(b"piece"))
    assert store._copies_parts is again
    assert list(store.objects("")) == [] and store.abort_unfinished("") == 0


def test_nothing_is_copied_of_an_object_that_is_another_by_now(tmp_path: Path, root: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    publish(store, RUN, root)
    (entry,) = latest(store).files
    store.put(entry.key, os.urandom(entry.size))
    append(root, b"x")
    assert publish(store, RUN, root).bytes_sent == entry.size + 1
    check(store, root, tmp_path / "fresh")


def latest(store: Store) -> Manifest:
    found = latest_manifest(store, RUN)
    assert found is not None
    return found


class ChangingStore(LocalStore):
    """A folder, before whose composing somebody writes to the file."""

    def __init__(self, folder: Path, change: Callable[[], None]) -> None:
        super().__init__(folder)
        self.change = change

    def compose(self, key: str, pieces: Sequence[Piece], stream: BinaryIO) -> bool:
        self.change()
        return super().compose(key, pieces, stream)


def test_a_block_that_changes_before_it_is_sent_is_not_stored(tmp_path: Path, root: Path) -> None:
    def change_unseen() -> None:
        """Write to the file as nothing but its content shows."""
        before = (root / FILE).stat()
        change(root, BLOCK, os.urandom(8))
        os.utime(root / FILE, ns=(before.st_atime_ns, before.st_mtime_ns))

    store = ChangingStore(tmp_path / "bucket", change_unseen)
    publish(store, RUN, root)
    change(root, BLOCK, b"changed")
    published = publish(store, RUN, root, force=True)
    assert published.held == [FILE]
    assert [item.key for item in store.objects(RUN) if item.key.endswith(FILE)] == [latest(store).files[0].key]


def test_pieces_are_as_long_as_they_may_be() -> None:
    there = {str(number): Piece(BLOCK, "old", number * BLOCK, "tag") for number in range(20)}
    blocks = [*map(str, range(10)), "new", "newer", "newest", "19", "last"]
    pieces = pieces_of(blocks, 14 * BLOCK + 1, there)
    assert [(piece.size, piece.offset if piece.key else None) for piece in pieces] == [
        (LARGEST_COPY, 0),
        (2 * BLOCK, LARGEST_COPY),
        (2 * BLOCK, None),
        (BLOCK, None),
        (BLOCK, 19 * BLOCK),
        (1, None),
    ]
    assert pieces_of(["new"], 5, there) == []
    many = ["0", "new"] * (MOST_PIECES // 2)
    assert len(pieces_of(many, len(many) * BLOCK, there)) == MOST_PIECES
    assert pieces_of([*many, "0"], len(many) * BLOCK + BLOCK, there) == []


@pytest.mark.parametrize("blocks", ["", "00", "x" * 256, 7, ["00"] * 4])
def test_a_manifest_with_other_blocks_is_read_without_them(tmp_path: Path, root: Path, blocks: Any) -> None:
    store = LocalStore(tmp_path / "bucket")
    publish(store, RUN, root)
    key = f"{RUN}/checkpoints/000001/manifest.json"
    known = manifest_of(store, RUN, 1).files[0].blocks
    assert len(known) == 4 * 64
    store.put(key, store.get(key).replace(f'"{known}"'.encode(), repr(blocks).replace("'", '"').encode()))
    assert manifest_of(store, RUN, 1).files[0].blocks == ""


def test_a_piece_of_an_object_that_is_gone_or_another_one_is_no_failure(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    store.put("old", b"content")
    (old,) = store.objects("")
    for piece in (
        Piece(7, "nosuch", 0, old.tag),
        Piece(7, "old", 0, "other"),
        Piece(7, "old", 1, old.tag),
    ):
        assert not store.compose("new", [piece], io.BytesIO())
    assert store.compose("new", [Piece(3, "old", 2, old.tag), Piece(1)], io.BytesIO(b"!"))
    assert store.get("new") == b"nte!"
    assert {item.key for item in store.objects("")} == {"old", "new"}
    (tmp_path / "bucket").rename(tmp_path / "gone")
    (tmp_path / "bucket").write_text("no folder")
    with pytest.raises(BucketError):
        store.compose("new", [Piece(1)], io.BytesIO(b"x"))
