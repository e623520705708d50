from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import CloudSync, get_cloud_sync_from_env, open_store
from gpuyard.errors import CheckpointError, UsageError

CANARY = "canary-secret-91d2e7aa40"


@pytest.fixture(params=["local", "s3"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudSync:
    """A configured environment, as the stage's own, and what is made of it."""
    monkeypatch.setenv("CLOUD_PROVIDER", request.param)
    if request.param == "local":
        monkeypatch.setenv("CLOUD_BUCKET", str(tmp_path / "bucket"))
    else:
        bucket = request.getfixturevalue("bucket")
        monkeypatch.setenv("CLOUD_BUCKET", f"{bucket.name}/{tmp_path.name}")
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
    return get_cloud_sync_from_env()


def test_files_and_folders_go_there_and_back(cloud: CloudSync, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_text("one")
    (source / "deep/b").write_bytes(os.urandom(9 * 1024 * 1024))
    assert checkpoints.upload_file(source / "a", "files/a")
    assert checkpoints.download_file("files/a", tmp_path / "new folder/a")
    assert (tmp_path / "new folder/a").read_text() == "one"
    assert checkpoints.upload_directory(source, "/tree/")
    assert checkpoints.download_directory("tree", tmp_path / "copy")
    assert (tmp_path / "copy/deep/b").read_bytes() == (source / "deep/b").read_bytes()
    assert checkpoints.sync_logs(source, "run-7")
    assert cloud.download_file("run-7/logs/a", tmp_path / "log")
    assert not list(tmp_path.rglob("*.gpuyard-part"))


def test_checkpoints_are_whole_sets_and_local_files_win(cloud: CloudSync, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "manifest.json").write_text("a file of the program's, with the name of ours")
    for step in range(4):
        (source / "model").write_text(f"step {step}")
        assert checkpoints.sync_checkpoints(source, "run-7", keep_last=2)
    assert checkpoints.download_checkpoints("run-7", tmp_path / "fresh")
    assert (tmp_path / "fresh/model").read_text() == "step 3"
    assert (tmp_path / "fresh/manifest.json").read_text() == (source / "manifest.json").read_text()
    (tmp_path / "fresh/model").write_text("step 4")
    assert checkpoints.download_checkpoints("run-7", tmp_path / "fresh")
    assert (tmp_path / "fresh/model").read_text() == "step 4"
    assert cloud.download_checkpoints("never-seen", tmp_path / "empty"), "nothing anywhere: start"
    assert cloud.download_directory("run-7/checkpoints", tmp_path / "sets")
    assert sorted(path.parent.name for path in (tmp_path / "sets").glob("*/manifest.json")) == ["000003", "000004"]


def test_a_set_that_cannot_be_read_is_named(cloud: CloudSync, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").write_text("step 0")
    assert cloud.sync_checkpoints(source, "run-7")
    (tmp_path / "empty").touch()
    assert cloud.upload_file(tmp_path / "empty", "run-7/checkpoints/000001/manifest.json")
    with caplog.at_level(logging.WARNING, logger="gpuyard.box.checkpoints"):
        assert not cloud.download_checkpoints("run-7", tmp_path / "fresh"), "it is not nothing"
        assert cloud.sync_checkpoints(source, "run-7", keep_last=1)
    assert all("run-7/checkpoints/000001/manifest.json is empty" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2 and "No older checkpoint is removed" in caplog.text
    assert cloud.download_checkpoints("run-7", tmp_path / "fresh")


def test_local_without_a_folder_leaves_everything_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUD_PROVIDER", raising=False)
    monkeypatch.delenv("CLOUD_BUCKET", raising=False)
    sync = get_cloud_sync_from_env()
    assert sync.stays_local
    assert sync.upload_file(tmp_path / "not even there", "x") and sync.sync_checkpoints(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_a_warning_and_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-access-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    sync = CloudSync("s3", "yard", endpoint="http://127.0.0.1:9")
    (tmp_path / "a").write_text("x")
    with caplog.at_level(logging.WARNING, logger="gpuyard.box.checkpoints"):
        assert not sync.upload_file(tmp_path / "a", "a")
        assert not sync.download_file("a", tmp_path / "b")
        assert not sync.upload_directory(tmp_path, "tree")
        assert not sync.download_directory("tree", tmp_path / "copy")
        assert not sync.sync_checkpoints(tmp_path, "run")
        assert not sync.download_checkpoints("run", tmp_path / "fresh")
    assert len(caplog.records) == 6
    assert all("s3://yard at http://127.0.0.1:9 cannot be used" in record.getMessage() for record in caplog.records)
    assert "canary" not in caplog.text
    assert not (tmp_path / "b").exists()


def test_a_missing_object_is_false(cloud: CloudSync, tmp_path: Path) -> None:
    assert not cloud.download_file("no/such/file", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not cloud.upload_file(tmp_path / "not there", "x")


@pytest.mark.parametrize(
    ("provider", "bucket", "message"),
    [
        ("gcs", "b", "CLOUD_PROVIDER=gcs is not supported yet: use s3"),
        ("azure", "b", "CLOUD_PROVIDER=azure is not supported yet: use s3"),
        ("ftp", "b", "CLOUD_PROVIDER='ftp' is unknown: use local or s3."),
        ("s3", "", "CLOUD_PROVIDER=s3 needs CLOUD_BUCKET"),
    ],
)
def test_what_cannot_be_configured_is_one_sentence(provider: str, bucket: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CloudSync(provider, bucket)


def test_a_python_without_boto3_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = None
    monkeypatch.setitem(sys.modules, "boto3", broken)
    with pytest.raises(CheckpointError, match="needs the Python package boto3"):
        open_store("s3://yard")
