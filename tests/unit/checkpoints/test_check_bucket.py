"""F9: a bucket is used before anything is rented, on a real S3 server, and nothing stays of it."""

from __future__ import annotations

from typing import Any

import pytest

from gpuyard.api import preconditions
from gpuyard.api.site import Site
from gpuyard.box.checkpoints import Store, open_store
from gpuyard.errors import BucketError


@pytest.fixture
def keys(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, bucket.env[name])


def find(bucket: Any, address: str) -> preconditions.Finding:
    return preconditions.bucket(Site(bucket=address, bucket_endpoint=bucket.endpoint))


def test_a_bucket_that_can_be_used_stays_as_it_was(bucket: Any, keys: None) -> None:
    address = f"s3://{bucket.name}/checked"
    store = open_store(address, env=bucket.env)
    store.put("run-0/run.json", b"{}")
    found = find(bucket, address)
    assert found.level == "ok"
    assert found.found == (
        f"{address} can be listed, written, read and cleared. It keeps no versions of what is overwritten or removed "
        "(`ansible-playbook checkpoints.yml -e do=keep_versions` has it keep them)."
    )
    assert [item.key for item in store.objects("")] == ["run-0/run.json"]


def test_a_bucket_that_is_missing(bucket: Any, keys: None) -> None:
    found = find(bucket, "s3://nosuch")
    assert found.level == "failed" and "s3://nosuch" in found.found and "does not exist" in found.found
    assert found.todo


def test_a_key_that_is_wrong(bucket: Any, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret-41d0")
    found = find(bucket, f"s3://{bucket.name}")
    assert found.level == "failed" and "refuses the key" in found.found
    assert "canary" not in str(found)


@pytest.mark.parametrize(("step", "right"), [("put", "PutObject"), ("get", "GetObject"), ("delete", "DeleteObject")])
def test_a_right_that_is_lacking_is_named(
    bucket: Any, keys: None, monkeypatch: pytest.MonkeyPatch, step: str, right: str
) -> None:
    """STAND-IN: rclone's server knows no rights, so one call of the real store is refused here."""
    address = f"s3://{bucket.name}/lacking-{step}"

    def refuse(self: Store, *_: Any) -> None:
        raise BucketError(f"The bucket {self.url} refuses the key (AccessDenied).")

    store = open_store(address, env=bucket.env)
    with monkeypatch.context() as patched:
        patched.setattr(type(store), step, refuse)
        found = find(bucket, address)
    assert found.level == "failed" and right in found.todo and "AccessDenied" in found.found
    # What could be written does not stay, as far as it may be deleted.
    assert bool(list(store.objects(""))) == (step == "delete")


def test_a_server_that_does_not_keep_versions_is_no_success(bucket: Any) -> None:
    store = open_store(f"s3://{bucket.name}/checked", env=bucket.env)
    with pytest.raises(BucketError):
        store.keep_versions()
