from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuyard import cli, config, paths
from gpuyard.api.site import Site
from gpuyard.config import BucketSettings
from gpuyard.errors import UsageError
from gpuyard.sandbox import client, info

KEY = "canary-config-5b1e90ad77"


ENDPOINT = "http://127.0.0.1:9"


def sandbox_file(folder: Path, pid: int, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": 1,
        "pid": pid,
        "name": "ab12cd",
        "endpoints": {"vast": ENDPOINT, "vultr": ENDPOINT + "/v2", "s3": ENDPOINT, "control": ENDPOINT},
        "from_boxes": {"s3": "http://bucket:8333"},
        "keys": {
            "vast": KEY,
            "vultr": KEY + "v",
            "control": KEY + "c",
            "s3": {"access_key": "ak", "secret_key": KEY + "s"},
        },
        "bucket": "gpuyard",
        **changes,
    }
    (folder / "sandbox.json").write_text(json.dumps(content))


@pytest.fixture
def serve() -> Iterator[Callable[..., None]]:
    """Return a function that makes a folder that of a running sandbox, whose server is a STAND-IN that only lives."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(folder: Path, **changes: Any) -> None:
        words = ["sh", "-c", "read line", "gpuyard.sandbox.server", str(folder.resolve())]
        processes.append(subprocess.Popen(words, stdin=subprocess.PIPE))
        sandbox_file(folder, processes[-1].pid, **changes)
        while info.read(folder) is None:  # the kernel shows a new process's command line a moment later
            time.sleep(0.01)

    yield begin
    for process in processes:
        process.communicate()


def test_the_environment_names_the_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VULTR_API_KEY", KEY)
    [cloud] = config.connect()
    assert repr(cloud) == "Vultr('https://api.vultr.com/v2')"
    assert KEY not in repr(vars(cloud))


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        (".config/vastai/vast_api_key", KEY + "\n", "vast"),
        (".vast_api_key", KEY, "vast"),
        (".config/vultr-cli.yaml", f"api-key: {KEY}\n", "vultr"),
        (".vultr-cli.yaml", f"api-key: '{KEY}'\n", "vultr"),
    ],
)
def test_the_providers_own_files_are_read(own_home: Path, file: str, content: str, name: str) -> None:
    path = own_home / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert [cloud.name for cloud in config.connect()] == [name]
    assert config.CLOUDS[name].credential.kept({}) == KEY


def test_the_session_key_of_vast_wins_over_the_api_key(own_home: Path) -> None:
    folder = own_home / ".config" / "vastai"
    folder.mkdir(parents=True)
    (folder / "vast_api_key").write_text("old")
    (folder / "vast_tfa_key").write_text(KEY)
    assert config.CLOUDS["vast"].credential.kept({}) == KEY


def test_a_damaged_key_file_is_named_and_not_quoted(own_home: Path) -> None:
    (own_home / ".config").mkdir()
    (own_home / ".config" / "vultr-cli.yaml").write_text(f"api-key: [{KEY}\n")
    with pytest.raises(UsageError, match=r"vultr-cli\.yaml is not YAML") as caught:
        config.connect("vultr")
    assert KEY not in str(caught.value)


def test_no_key_names_both_ways_out() -> None:
    with pytest.raises(UsageError, match=r"VAST_API_KEY.*vast_api_key.*sandbox=true"):
        config.connect("vast")
    with pytest.raises(UsageError, match=r"VAST_API_KEY or VULTR_API_KEY.*sandbox=true"):
        config.connect()
    assert config.connect(require=False) == []
    assert config.connect("vast", require=False) == []


def test_an_unknown_provider_names_the_choices() -> None:
    with pytest.raises(UsageError, match="'aws' is not known; choose one of: vast, vultr"):
        config.connect("aws", require=False)


def test_a_running_sandbox_replaces_everything(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", "a-real-key")
    serve(paths.sandbox_state())
    clouds = config.connect(sandbox=True)
    assert [repr(cloud) for cloud in clouds] == [f"Vast('{ENDPOINT}')", f"Vultr('{ENDPOINT}/v2')"]
    assert all(cloud.emulated and cloud.sandbox == "ab12cd" for cloud in clouds)  # type: ignore[attr-defined]
    assert [cloud.name for cloud in config.connect("vultr", sandbox=True)] == ["vultr"]


def test_the_environment_can_ask_for_the_sandbox(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(tmp_path / "other")
    monkeypatch.setenv("GPUYARD_SANDBOX", "yes")
    monkeypatch.setenv("GPUYARD_SANDBOX_STATE", str(tmp_path / "other"))
    assert len(config.connect()) == 2
    assert config.connect(sandbox=False, require=False) == []
    monkeypatch.setenv("GPUYARD_SANDBOX", "perhaps")
    with pytest.raises(UsageError, match="GPUYARD_SANDBOX='perhaps' is neither"):
        config.connect()


def test_an_inventory_never_starts_a_sandbox(tmp_path: Path) -> None:
    assert config.connect(sandbox=True, sandbox_state=tmp_path, require=False) == []


def test_only_what_rents_starts_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []
    monkeypatch.setattr(client, "ensure_up", lambda state, progress: started.append(state))
    misspelt = tmp_path / "sandobx"
    with pytest.raises(UsageError, match=f"sandbox_state={misspelt}: there is no sandbox there; .*launch.yml"):
        config.connect(sandbox=True, sandbox_state=misspelt)
    assert started == [] and not misspelt.exists()
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UsageError, match="The sandbox is not running under"):
        config.connect(sandbox=True, sandbox_state=tmp_path)
    Site(sandbox=True, sandbox_state=str(misspelt)).start_sandbox()
    assert started == [misspelt]


@pytest.mark.parametrize("verb", ["up", "status", "down"])
def test_a_state_folder_that_can_be_none_is_named(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for state, reason in (
        (tmp_path / "file", "it is a file"),
        (tmp_path / "file" / "below", f"{tmp_path}/file is a file"),
        (Path("/proc/x"), "it would lie in a file system of the kernel's"),
    ):
        assert cli.main(["sandbox", verb, "--state", str(state)]) == 2
        said = capsys.readouterr().err
        assert f"cannot be {state}: {reason}." in said and said.count("\n") == 1
        with pytest.raises(UsageError, match=r"cannot be read: Not a directory|cannot be /proc/x"):
            Site(sandbox=True, sandbox_state=str(state)).start_sandbox()


def test_a_file_left_behind_by_a_killed_sandbox_is_not_a_running_one(tmp_path: Path) -> None:
    sandbox_file(tmp_path, os.getpid())  # the number of a killed server, which a stranger has got
    assert info.read(tmp_path) is None


def test_a_damaged_sandbox_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sandbox.json").write_text('{"keys": 1}')
    with pytest.raises(UsageError, match="gpuyard sandbox down"):
        info.read(tmp_path)


def test_secrets_of_the_sandbox_are_not_shown(serve: Callable[..., None], tmp_path: Path) -> None:
    serve(tmp_path)
    shown = repr(info.read(tmp_path)) + repr(config.s3_settings(sandbox=True, sandbox_state=tmp_path))
    assert KEY not in shown


# -- bucket ------------------------------------------------------------------------------------------------------------


def keys_of(access: str, secret: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}


AWS = keys_of("ak", "sk")
GOOGLE = {"GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json"}
AZURE = {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=mine;AccountKey=a==;EndpointSuffix=core.windows.net"}
SAS = {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"}


def test_the_sandbox_brings_its_bucket(serve: Callable[..., None], tmp_path: Path) -> None:
    serve(tmp_path)
    settings = config.s3_settings(sandbox=True, sandbox_state=tmp_path, env={**AWS, "CLOUD_BUCKET": "real"})
    assert settings == BucketSettings(
        "s3://gpuyard", "http://127.0.0.1:9", "http://bucket:8333", keys_of("ak", KEY + "s"), "us-east-1"
    )
    assert config.s3_settings("s3://gpuyard/x", sandbox=True, sandbox_state=tmp_path).url == "s3://gpuyard/x"


def test_a_sandbox_that_is_down_never_means_the_real_bucket(tmp_path: Path) -> None:
    env = {**AWS, "CLOUD_BUCKET": "real"}
    for bucket in (None, "s3://real"):
        with pytest.raises(UsageError, match="sandbox is not running"):
            config.s3_settings(bucket, sandbox=True, sandbox_state=tmp_path, env=env)
    assert config.s3_settings("", sandbox=True, sandbox_state=tmp_path, env=env) == BucketSettings()


@pytest.mark.parametrize(
    ("bucket", "env", "expected"),
    [
        (None, {}, BucketSettings()),
        ("", AWS, BucketSettings()),
        (None, {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": "x"}, BucketSettings()),
        ("file:///mnt/x", {}, BucketSettings("file:///mnt/x")),
        ("s3://b/p", AWS, BucketSettings("s3://b/p", "", "", AWS, "us-east-1")),
        (
            None,
            {**AWS, "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": "b", "AWS_ENDPOINT_URL": "https://e", "AWS_REGION": "eu"},
            BucketSettings("s3://b", "https://e", "https://e", AWS, "eu"),
        ),
        (
            "s3://b",
            {**AWS, "AWS_ENDPOINT_URL": "https://e", "AWS_ENDPOINT_URL_S3": "https://s3"},
            BucketSettings("s3://b", "https://s3", "https://s3", AWS, "us-east-1"),
        ),
        ("gs://b/p", {**AWS, **GOOGLE}, BucketSettings("gs://b/p", keys=GOOGLE)),
        (
            None,
            {**AWS, **AZURE, "CLOUD_PROVIDER": "azure", "CLOUD_BUCKET": "c/p"},
            BucketSettings("az://c/p", *["https://mine.blob.core.windows.net"] * 2, AZURE),
        ),
        (
            "az://c",
            SAS,
            BucketSettings(
                "az://c",
                *["https://mine.blob.core.windows.net"] * 2,
                {"AZURE_STORAGE_SAS_TOKEN": SAS["AZURE_STORAGE_SAS_TOKEN"]},
            ),
        ),
    ],
)
def test_where_checkpoints_go(bucket: str | None, env: dict[str, str], expected: BucketSettings) -> None:
    assert config.s3_settings(bucket, sandbox=False, env=env) == expected


@pytest.mark.parametrize(
    ("bucket", "env", "said"),
    [
        ("s3://b", {}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("b2://b", AWS, "s3://name"),
        ("az://mine@b/x", AZURE, "must not hold a user"),
        ("s3://", AWS, "s3://name"),
        ("s3://gpuyard/../../x", AWS, "no '.', '..' or empty part"),
        ("s3://gpuyard/a//b", AWS, "no '.', '..' or empty part"),
        ("s3://gpuyard/a?x=1", AWS, "no space"),
        ("file:///mnt/../etc", {}, "without '..'"),
        ("b", AWS, "s3://name"),
        ("file://host/x", {}, "absolute folder"),
        (None, {"CLOUD_PROVIDER": "gcs", "CLOUD_BUCKET": "az://b"}, "does not fit CLOUD_BUCKET=az://b"),
        (None, {"CLOUD_PROVIDER": "gcs"}, "gcs needs a bucket"),
        (None, {"CLOUD_PROVIDER": "ftp", "CLOUD_BUCKET": "b"}, "'ftp' is not known"),
        (None, {"CLOUD_PROVIDER": "s3"}, "CLOUD_BUCKET"),
    ],
)
def test_a_bucket_that_cannot_be_used(bucket: str | None, env: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.s3_settings(bucket, sandbox=False, env=env)


def test_amazons_own_profiles_open_a_bucket_and_a_box_gets_only_keys_that_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E13: the controller goes by profile or role; what ends after some hours is of no use to a run."""
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = ak\naws_secret_access_key = sk\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    settings = config.s3_settings("s3://b", sandbox=False)
    assert settings.keys == {} and config.keys_for_boxes(settings) == AWS
    config.check_keys_for_boxes(settings)
    file.write_text(file.read_text() + "aws_session_token = st\n")
    assert config.keys_for_boxes(config.s3_settings("s3://b", sandbox=False)) == {}
    with pytest.raises(UsageError, match=r"end after some hours.*Nothing was rented"):
        config.check_keys_for_boxes(settings)
    temporary = config.s3_settings("s3://b", sandbox=False, env={**AWS, "AWS_SESSION_TOKEN": "st"})
    with pytest.raises(UsageError, match="end after some hours"):
        config.check_keys_for_boxes(temporary)
    monkeypatch.setenv("AWS_PROFILE", "another")
    with pytest.raises(UsageError, match=r"Amazon's profile cannot be used .*another"):
        config.s3_settings("s3://b", sandbox=False)


def test_a_box_gets_the_narrowest_key_or_the_launch_ends_before_it_rents() -> None:
    both = config.s3_settings("az://c", sandbox=False, env={**AZURE, **SAS})
    assert config.keys_for_boxes(both) == {"AZURE_STORAGE_SAS_TOKEN": SAS["AZURE_STORAGE_SAS_TOKEN"]}
    for bucket, variable in (("gs://b", "GOOGLE_APPLICATION_CREDENTIALS"), ("az://b", "AZURE_STORAGE_SAS_TOKEN")):
        with pytest.raises(UsageError, match=f"set .*{variable}.*Nothing was rented"):
            config.check_keys_for_boxes(config.s3_settings(bucket, sandbox=False, env={}))
    config.check_keys_for_boxes(config.s3_settings("gs://b", sandbox=False, env={"STORAGE_EMULATOR_HOST": "h:1"}))
    config.check_keys_for_boxes(config.s3_settings("gs://b", sandbox=False, env=GOOGLE))


def test_no_key_of_a_real_account_goes_with_the_sandbox(serve: Callable[..., None], tmp_path: Path) -> None:
    serve(tmp_path)
    with pytest.raises(UsageError, match="the sandbox has no Azure Blob Storage; name the server of an emulator"):
        config.s3_settings("az://c", sandbox=True, sandbox_state=tmp_path, env=AZURE)
    emulator = config.s3_settings(
        "az://c", bucket_endpoint="http://127.0.0.1:9/a", sandbox=True, sandbox_state=tmp_path, env=AZURE
    )
    assert (emulator.endpoint, emulator.location.account) == ("http://127.0.0.1:9/a", "a")


# -- SSH keys ----------------------------------------------------------------------------------------------------------


def test_a_key_of_our_own_is_made_once() -> None:
    first, second = config.ssh_key(), config.ssh_key("")
    assert first == second
    assert first.public_text.startswith("ssh-ed25519 ")
    assert stat.S_IMODE(first.private_path.stat().st_mode) == 0o600
    assert sorted(path.name for path in first.private_path.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_a_named_key_is_used_also_without_its_public_file(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    with_file = config.ssh_key(str(path))
    (tmp_path / "mine.pub").unlink()
    without = config.ssh_key(str(path))
    assert without.public_text.split()[:2] == with_file.public_text.split()[:2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent", None, "does not exist"),
        ("mine.pub", "ssh-ed25519 AAAA", "is a public key"),
        ("text", "hello", "cannot be read as a private key"),
    ],
)
def test_a_key_that_cannot_be_used(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(UsageError, match=said):
        config.ssh_key(str(path))
