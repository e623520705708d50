"""X10: the bundles of a bucket, found with one listing, with a real S3 server."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from gpuyard import bundles
from gpuyard.api import snapshot
from gpuyard.api.site import Site
from gpuyard.bundles import Shelf
from gpuyard.config import BucketSettings
from gpuyard.errors import CheckpointError, UsageError
from gpuyard.formats.bundle import Bundle, key_of
from gpuyard.renting import runs

PARTS = {"packages": "p", "rust": "aa", "build": "bb", "stages": "s"}
DATA = (b"one piece", b"another piece", b"the program")


def piece(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


PACKED: dict[str, Any] = {
    "platform": "x86_64-debian12-glibc2.36",
    "parts": {"rust": "aa", "build": "bb"},
    "held": ["build", "rust"],
    "pieces": [piece(data) for data in DATA[:2]],
    "zstd": piece(DATA[2]),
    "folders": ["/opt/gpuyard/rust"],
    "files": ["/usr/local/bin/cargo"],
    "workload": "tiny",
    "unpacked_bytes": 1000,
    "built_s": {"/opt/gpuyard/rust": 12.5},
}


@pytest.fixture
def settings(bucket: Any, request: pytest.FixtureRequest) -> BucketSettings:
    return BucketSettings(
        url=f"s3://{bucket.name}/{request.node.name.replace('[', '-').rstrip(']')}",
        endpoint=bucket.endpoint,
        endpoint_from_boxes=bucket.endpoint.replace("127.0.0.1", "localhost"),
        keys=bucket.env,
        region="us-east-1",
    )


@pytest.fixture
def shelf(settings: BucketSettings) -> Iterator[Shelf]:
    yield bundles.shelf(settings)


def put(shelf: Shelf, packed: dict[str, Any] = PACKED) -> Bundle:
    """Send a bundle as a machine does, and write its manifest."""
    bundle, addresses = shelf.to_send(packed)
    for data in DATA:
        if address := addresses.get(hashlib.sha256(data).hexdigest()):
            with urllib.request.urlopen(urllib.request.Request(address, data, method="PUT")):
                pass
    shelf.finish(bundle)
    return bundle


def test_a_machine_sends_and_fetches_with_addresses_and_no_key(shelf: Shelf, settings: BucketSettings) -> None:
    bundle = put(shelf)
    (found,) = shelf.find(PARTS)
    assert found == bundle and found.key == key_of({"rust": "aa", "build": "bb"}) and found.created
    addresses = shelf.addresses(found)
    assert all(address.startswith("http://localhost:") for address in addresses.values())
    assert settings.keys["AWS_SECRET_ACCESS_KEY"] not in json.dumps(addresses)
    fetched = [urllib.request.urlopen(address).read() for address in addresses.values()]
    assert fetched == list(DATA)


def test_only_the_very_state_is_found(shelf: Shelf) -> None:
    """What a bundle cannot hold, such as packages and stages, is not asked about."""
    put(shelf)
    assert shelf.find({**PARTS, "packages": "other", "stages": "other"})
    assert shelf.find({**PARTS, "build": "other"}) == [] == shelf.find({"rust": "aa"})


def test_after_a_change_of_the_code_the_nearest_bundle_of_the_workload_is_found(shelf: Shelf) -> None:
    """X10"""
    put(shelf)
    changed = PARTS | {"build": "changed"}
    (near,) = shelf.near(changed, "tiny", ["rust", "build"])
    assert near.held == ("rust",) and near.key == key_of(PACKED["parts"])
    for lacking in (["build"], ["build", "python"]):  # the machine has Rust already
        assert shelf.near(changed, "tiny", lacking) == []
    assert shelf.near(changed, "other", ["rust"]) == shelf.near(changed, "", ["rust"]) == []
    assert shelf.near(PARTS | {"rust": "newer"}, "tiny", ["rust", "build"]) == []  # a build alone is none
    put(shelf, PACKED | {"parts": {"rust": "aa", "build": "cc", "python": "p"}, "held": ["build", "python", "rust"]})
    (near,) = shelf.near(changed | {"python": "p"}, "tiny", ["rust", "python"])
    assert near.held == ("python", "rust")


def test_what_is_there_is_not_sent_again_and_what_is_not_needed_goes(shelf: Shelf) -> None:
    put(shelf)
    assert shelf.to_send(PACKED)[1] == {}
    put(shelf, {**PACKED, "pieces": PACKED["pieces"][:1]})
    (found,) = shelf.all()
    names = {item.key.rpartition("/")[2] for item in shelf.store.objects("")}
    assert names == {"manifest.json", piece(DATA[0])["sha256"], piece(DATA[2])["sha256"]}
    assert found.size == len(DATA[0]) + len(DATA[2])


def test_a_bundle_without_all_of_its_pieces_is_none(shelf: Shelf) -> None:
    bundle, _addresses = shelf.to_send(PACKED)
    with pytest.raises(CheckpointError, match="is not in the bucket; make it again"):
        shelf.finish(bundle)
    assert shelf.all() == []


def test_a_bundle_is_no_run(shelf: Shelf, settings: BucketSettings) -> None:
    put(shelf)
    store = runs.open_bucket(settings)
    assert store is not None and runs.stored(store).records == {}


def test_a_damaged_manifest_hides_no_other_one(shelf: Shelf) -> None:
    bundle = put(shelf)
    shelf.store.put(bundle.folder.replace("debian12", "debian13") + "manifest.json", b"{")
    newer = json.loads(bundle.to_bytes()) | {"version": 2, "platform": "x86_64-debian14-libc"}
    shelf.store.put(bundle.folder.replace("debian12", "debian14") + "manifest.json", json.dumps(newer).encode())
    assert shelf.all() == [bundle]


def test_a_bundle_is_listed_and_deleted_by_the_beginning_of_its_key(
    shelf: Shelf, settings: BucketSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Site, "bucket_settings", lambda _self: settings)
    bundle = put(shelf)
    (listed,) = snapshot.listed(Site())
    assert snapshot.describe(listed).startswith(f"{bundle.key[:12]}  tiny             x86_64-debian12-glibc2.36  0 MB")
    with pytest.raises(
        UsageError, match=r"bundle=ffff names no one bundle: the bucket has none like that; .*state=listed"
    ):
        snapshot.delete(Site(), "ffff")
    assert snapshot.delete(Site(), bundle.key[:6], check=True) == [bundle] == shelf.all()
    assert snapshot.delete(Site(), bundle.key[:6]) == [bundle]
    assert list(shelf.store.objects("")) == []


def test_a_folder_of_one_machine_is_no_place_for_bundles() -> None:
    with pytest.raises(
        UsageError, match=r"Bundles need a bucket of S3 that all machines reach: .* instead of file:///folder\."
    ):
        bundles.shelf(BucketSettings("file:///folder"))


@pytest.mark.parametrize(
    "changes",
    [
        {"platform": "../elsewhere"},
        {"held": ["lean"]},
        {"folders": ["relative"]},
        {"files": ["/opt/../etc/passwd"]},
        {"pieces": [{"sha256": "../../run.json", "bytes": 1}]},
        {"pieces": None},
    ],
)
def test_what_a_machine_says_is_checked(shelf: Shelf, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="something that is no bundle"):
        shelf.to_send({**PACKED, **changes})
