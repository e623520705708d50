from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from gpuyard import boxzip, cloud_sync
from gpuyard.box.checkpoints import LocalStore, open_store, publish
from gpuyard.cloud_sync import CloudSync, get_cloud_sync_from_env
from gpuyard.errors import CheckpointError

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


def test_e2_files_and_folders_go_there_and_back(cloud: CloudSync, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_text("one")
    (source / "deep/b").write_bytes(os.urandom(9 * 1024 * 1024))
    assert cloud_sync.upload_file(source / "a", "files/a")
    assert cloud_sync.download_file("files/a", tmp_path / "new folder/a")
    assert (tmp_path / "new folder/a").read_text() == "one"
    assert cloud_sync.upload_directory(source, "/tree/")
    assert cloud_sync.download_directory("tree", tmp_path / "copy")
    assert (tmp_path / "copy/deep/b").read_bytes() == (source / "deep/b").read_bytes()
    assert cloud_sync.sync_logs(source, "run-7")
    assert cloud.download_file("run-7/logs/a", tmp_path / "log")
    assert not list(tmp_path.rglob("*.gpuyard-part"))


def test_e2_checkpoints_are_whole_sets_and_local_files_win(cloud: CloudSync, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "manifest.json").write_text("a file of the program's, with the name of ours")
    for step in range(4):
        (source / "model").write_text(f"step {step}")
        assert cloud_sync.sync_checkpoints(source, "run-7", keep_last=2)
    assert cloud_sync.download_checkpoints("run-7", tmp_path / "fresh")
    assert (tmp_path / "fresh/model").read_text() == "step 3"
    assert (tmp_path / "fresh/manifest.json").read_text() == (source / "manifest.json").read_text()
    (tmp_path / "fresh/model").write_text("step 4")
    assert cloud_sync.download_checkpoints("run-7", tmp_path / "fresh")
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
    with caplog.at_level(logging.WARNING, logger="gpuyard.cloud_sync"):
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
    with caplog.at_level(logging.WARNING, logger="gpuyard.cloud_sync"):
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


@pytest.mark.parametrize(
    ("provider", "bucket", "names"),
    [
        ("s3", "yard/deep", {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": CANARY}),
        ("gcs", "yard/deep", {"STORAGE_EMULATOR_HOST": "127.0.0.1:9"}),
        ("azure", "yard/deep", {"AZURE_STORAGE_KEY": base64.b64encode(CANARY.encode()).decode()}),
        ("azure", "yard/deep", {"AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={CANARY}"}),
        ("azure", "yard/deep", {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={CANARY}"}),
    ],
)
def test_e11_debug_output_names_provider_and_bucket_and_no_key(
    provider: str,
    bucket: str,
    names: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a").write_text("x")
    with caplog.at_level(logging.DEBUG):
        sync = CloudSync(provider, bucket, endpoint="http://127.0.0.1:9/account")
        assert not sync.upload_file(tmp_path / "a", "a") and not sync.download_checkpoints("run", tmp_path / "fresh")
    ours = [record.getMessage() for record in caplog.records if record.name == "gpuyard.cloud_sync"]
    assert len(ours) == 3 and all("://yard/deep at http://127.0.0.1:9" in text for text in ours)
    assert f"(provider {provider})" in ours[0]
    for secret in (CANARY, base64.b64encode(CANARY.encode()).decode()):
        assert secret not in caplog.text and secret not in repr(sync)


@pytest.mark.parametrize("words", [{}, {"provider": None}, {"bucket_name": None}, {"provider": None, "endpoint": None}])
def test_e6_what_the_environment_does_not_have_keeps_nobody_from_training(
    words: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("x")
    sync = CloudSync(**words)
    assert sync.stays_local and sync.upload_file(tmp_path / "a", "a")


def test_a_missing_object_is_false(cloud: CloudSync, tmp_path: Path) -> None:
    assert not cloud.download_file("no/such/file", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not cloud.upload_file(tmp_path / "not there", "x")


@pytest.mark.parametrize(
    ("provider", "bucket", "message"),
    [
        ("gcs", "", "CLOUD_PROVIDER=gcs needs a bucket: set CLOUD_BUCKET."),
        ("azure", "s3://b", "CLOUD_PROVIDER=azure does not fit CLOUD_BUCKET=s3://b"),
        ("ftp", "b", "CLOUD_PROVIDER='ftp' is not known: use s3, gcs, azure or local."),
        ("s3", "", "CLOUD_PROVIDER=s3 needs a bucket: set CLOUD_BUCKET."),
        ("s3", "a/../b", "the prefix has no '.'"),
    ],
)
def test_e6_a_wrong_configuration_is_a_warning_and_training_goes_on(
    provider: str, bucket: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("x")
    with caplog.at_level(logging.WARNING, logger="gpuyard.cloud_sync"):
        sync = CloudSync(provider=provider, bucket_name=bucket)
        assert not sync.upload_file(tmp_path / "a", "a"), "it is not in a bucket, so it must not say so"
        assert not sync.sync_checkpoints(tmp_path, "run") and not sync.download_checkpoints("run", tmp_path / "b")
    (record,) = caplog.records
    assert message in record.getMessage() and "stay local" in record.getMessage()


def test_e6_nothing_raises_whatever_is_wrong(
    cloud: CloudSync, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("x")
    with caplog.at_level(logging.WARNING, logger="gpuyard.cloud_sync"):
        assert not cloud.upload_directory(tmp_path / "not there", "tree"), "nothing was uploaded"
        assert not cloud.download_checkpoints("run", tmp_path / "a"), "a file where the folder is to be"
        assert not cloud.upload_file(tmp_path / "a", "../a")
        monkeypatch.setattr("gpuyard.cloud_sync.open_store", lambda place: 1 / 0)
        assert not CloudSync("local", str(tmp_path / "b")).upload_file(tmp_path / "a", "a")
    assert len(caplog.records) == 4 and "ZeroDivisionError" in caplog.text


def _a_training(cloud: CloudSync, folder: Path) -> int:
    """Train as a program does that may be started anywhere, for one step, and return the step that it began with."""
    assert cloud.download_checkpoints("policy", folder)
    model = folder / "model"
    step = int(model.read_text()) if model.exists() else 0
    model.write_text(str(step + 1))
    return step


def test_e4_nothing_anywhere_starts(cloud: CloudSync, tmp_path: Path) -> None:
    assert _a_training(cloud, tmp_path / "box") == 0


def test_e4_local_only_goes_on_from_local(cloud: CloudSync, tmp_path: Path) -> None:
    _a_training(cloud, tmp_path / "box")
    assert _a_training(cloud, tmp_path / "box") == 1


def test_e4_cloud_only_is_downloaded_then_resumed(cloud: CloudSync, tmp_path: Path) -> None:
    _a_training(cloud, tmp_path / "box")
    assert cloud.sync_checkpoints(tmp_path / "box", "policy")
    assert _a_training(cloud, tmp_path / "another box") == 1


def test_e4_both_goes_on_from_local(cloud: CloudSync, tmp_path: Path) -> None:
    _a_training(cloud, tmp_path / "box")
    assert cloud.sync_checkpoints(tmp_path / "box", "policy")
    _a_training(cloud, tmp_path / "box")
    assert _a_training(cloud, tmp_path / "box") == 2


def test_e4_a_bucket_that_does_not_answer_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert not CloudSync("s3", "yard", endpoint="http://127.0.0.1:9").download_checkpoints("policy", tmp_path / "box")


def test_e5_every_few_generations_a_final_one_and_the_logs(cloud: CloudSync, tmp_path: Path) -> None:
    checkpoints, logs = tmp_path / "checkpoints", tmp_path / "runs"
    checkpoints.mkdir()
    (logs / "tensorboard").mkdir(parents=True)
    for generation in range(1, 13):
        (checkpoints / "population").write_text(str(generation))
        (logs / "tensorboard/events.out.tfevents.1").write_bytes(bytes(generation))
        if generation % 5 == 0:
            assert cloud_sync.sync_checkpoints(checkpoints, "evolution")
    assert cloud_sync.sync_checkpoints(checkpoints, "evolution")
    assert cloud_sync.sync_logs(logs, "evolution")
    assert cloud.download_directory("evolution", tmp_path / "bucket copy")
    sets = sorted((tmp_path / "bucket copy/checkpoints").glob("*/files/population"))
    assert [file.read_text() for file in sets] == ["5", "10", "12"]
    copied = tmp_path / "bucket copy/logs/tensorboard/events.out.tfevents.1"
    assert copied.read_bytes() == bytes(12)


def test_f7_keys_are_those_that_the_program_names(cloud: CloudSync, tmp_path: Path) -> None:
    (tmp_path / "step").write_text("1")
    names = [f"fairy2/qwen/checkpoint_step_{step}.pt" for step in (500, 1000)] + ["fairy2/qwen/final_checkpoint.pt"]
    for name in names:
        assert cloud_sync.upload_file(tmp_path / "step", name)
    assert cloud.download_directory("fairy2/qwen", tmp_path / "copy")
    assert sorted(f"fairy2/qwen/{file.name}" for file in (tmp_path / "copy").iterdir()) == sorted(names)


def test_what_training_code_publishes_leaves_no_trace_in_the_runs_own_set(cloud: CloudSync, tmp_path: Path) -> None:
    """A persisted folder may be one that the training syncs itself; what that notes there would make every set new."""
    models = tmp_path / "persistent/models"
    models.mkdir(parents=True)
    (models / "policy").write_text("1")
    store = LocalStore(tmp_path / "the run's bucket")
    assert cloud.sync_checkpoints(models, "policy")
    assert publish(store, "run-0", tmp_path / "persistent").files == 1
    assert cloud.sync_checkpoints(models, "policy") and (models / ".gpuyard/tmp").exists()
    assert publish(store, "run-0", tmp_path / "persistent").unchanged


def test_one_connection_serves_all_calls_until_the_environment_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_PROVIDER", "local")
    monkeypatch.setenv("CLOUD_BUCKET", str(tmp_path / "one"))
    first = get_cloud_sync_from_env()
    assert get_cloud_sync_from_env() is first
    monkeypatch.setenv("CLOUD_BUCKET", str(tmp_path / "other"))
    assert get_cloud_sync_from_env() is not first


def test_a_python_without_boto3_finds_that_of_the_box(bucket: Any, tmp_path: Path) -> None:
    """E2 on a box: the training's own Python has neither gpuyard nor boto3 installed, and uploads all the same."""
    boxzip.build(tmp_path / "box.zip")
    script = """
import sys
assert not any("site-packages" in part for part in sys.path), sys.path
from gpuyard.cloud_sync import upload_file
print(upload_file(sys.argv[1], "greeting"))
"""
    (tmp_path / "file").write_text("hello")
    libraries = Path(boto3.__file__).parents[1]
    for place, expected in ((str(libraries), "True"), ("", "False")):
        answer = subprocess.run(
            [sys.executable, "-S", "-c", script, str(tmp_path / "file")],
            env={
                **bucket.env,
                "PYTHONPATH": str(tmp_path / "box.zip"),
                "CLOUD_PROVIDER": "s3",
                "CLOUD_BUCKET": f"{bucket.name}/{tmp_path.name}",
                "GPUYARD_LIBRARIES": place,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected, answer.stderr
        assert ("add boto3 to the requirements" in answer.stderr) is (expected == "False")
    assert open_store(f"s3://{bucket.name}/{tmp_path.name}", env=bucket.env).get("greeting") == b"hello"


def test_a_python_without_boto3_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = None
    for package in ("boto3", "botocore.exceptions"):  # a small object needs the second only
        monkeypatch.setitem(sys.modules, package, broken)
    with pytest.raises(CheckpointError, match="needs the Python package boto3"):
        open_store("s3://yard")
