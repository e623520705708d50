"""What checkpoints ask of a bucket, asked of SeaweedFS. The unit tests ask rclone's server, which knows less of S3."""

from __future__ import annotations

import contextlib
import io
import os
import time
import uuid

import pytest
from conftest import Sandbox

from gpuyard.box.checkpoints import S3Store, open_store
from gpuyard.box.checkpoints.stores import Piece
from gpuyard.errors import BucketError
from gpuyard.formats.location import Location


def test_the_bucket_does_what_checkpoints_ask_of_it(sandbox: Sandbox) -> None:
    info = sandbox.info
    env = {
        "AWS_ENDPOINT_URL": info.endpoints["s3"],
        "AWS_ACCESS_KEY_ID": info.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": info.s3_secret_key,
    }
    store = open_store(f"s3://{info.bucket}/{uuid.uuid4()}", env=env)
    assert isinstance(store, S3Store)
    client, where = store._client, {"Bucket": store.bucket, "Key": store.prefix + "a/manifest.json"}

    # It honours put-if-absent by itself, so that no look before it is needed.
    client.put_object(**where, Body=b"one", IfNoneMatch="*")
    with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(**where, Body=b"two", IfNoneMatch="*")
    assert not store.put_new("a/manifest.json", b"two") and store.put_new("a/manifest.json", b"one")
    (listed,) = store.objects("a/")
    store.put("a/manifest.json", b"two")
    (changed,) = store.objects("a/")
    assert listed.tag and changed.tag and listed.tag != changed.tag

    where["Key"] = store.prefix + "a/large"
    upload = client.create_multipart_upload(**where)["UploadId"]
    client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"half of it")
    assert store.abort_unfinished("b/") == 0
    assert store.abort_unfinished("a/", spare=lambda key: key == "a/large") == 0
    assert store.abort_unfinished("a/") == 1
    assert store.abort_unfinished("a/") == 0

    # It copies parts of an object, and only of the one whose tag it is told.
    content, block = os.urandom(12 << 20), 6 << 20
    store.put("a/large", content)
    (large,) = store.objects("a/large")
    pieces = [Piece(block), Piece(block, "a/large", 5, large.tag), Piece(7, "a/large", 0, large.tag)]
    assert store.compose("a/made", pieces, io.BytesIO(content[::-1]))
    assert store.get("a/made") == content[::-1][:block] + content[5 : 5 + block] + content[:7]
    assert not store.compose("a/other", [Piece(block, "a/large", 0, "0" * 32)], io.BytesIO())
    assert [item.key for item in store.objects("a/other")] == [] and store.abort_unfinished("a/") == 0
    assert store.compose("a/made", pieces, io.BytesIO(content)), "one refusal of a source is none of the server"

    assert store.keeps_versions() is False
    client.create_bucket(Bucket="versions-of-it")
    versioned = open_store("s3://versions-of-it", env=env)
    try:
        versioned.keep_versions()
        assert versioned.keeps_versions() is True and store.keeps_versions() is False
    finally:
        client.delete_bucket(Bucket="versions-of-it")

    assert store.ends_unfinished() is False
    rule = {
        "ID": "unfinished",
        "Status": "Enabled",
        "Filter": {"Prefix": store.prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    client.put_bucket_lifecycle_configuration(Bucket=store.bucket, LifecycleConfiguration={"Rules": [rule]})
    try:
        assert store.ends_unfinished() is True
    finally:
        client.delete_bucket_lifecycle(Bucket=store.bucket)


def test_the_bucket_is_gone_for_a_while_and_back_with_what_it_held(sandbox: Sandbox) -> None:
    info = sandbox.info
    env = {"AWS_ACCESS_KEY_ID": info.s3_access_key, "AWS_SECRET_ACCESS_KEY": info.s3_secret_key}
    place = Location.parse(f"s3://{info.bucket}/{uuid.uuid4()}", endpoint=info.endpoints["s3"])
    store = open_store(place, env=env)
    store.put("kept", b"content")

    def answers_within(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(BucketError):
                return store.get("kept") == b"content"
            time.sleep(0.2)
        return False

    sandbox.control.stop_bucket(3600)
    with pytest.raises(BucketError):
        store.get("kept")
    sandbox.control.stop_bucket(1)  # the later one says when it ends
    assert answers_within(60)
    sandbox.control.stop_bucket(3600)
    sandbox.control.clear_faults()
    assert answers_within(60)
