"""What a rented box is: a real machine's look, opened by the given key alone."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import boto3
import requests
from conftest import WAIT_S, Sandbox, encode, make_key, wait

from gpuyard.sandbox.engine import Engine


def test_a_vast_box_is_opened_only_by_the_key_on_the_account(sandbox: Sandbox, tmp_path: Path) -> None:
    row = sandbox.wait_vast(sandbox.rent_vast(label="gpuyard/boxes-0/boxes"))
    assert sandbox.ssh_vast(row, "echo in").stdout == "in\n"
    stranger = sandbox.ssh_vast(row, "echo in", key=make_key(tmp_path, "stranger"))
    assert stranger.returncode == 255
    assert "Permission denied" in stranger.stderr


def test_a_vast_box_has_no_systemd_and_keeps_its_environment_from_ssh(sandbox: Sandbox) -> None:
    contract = sandbox.rent_vast(
        # The last two would end or divert the container engine, if it ever saw them.
        env={
            "GIVEN": "canary-environment",
            "-p 8080:8080": "1",
            "LD_PRELOAD": "/root/nothing.so",
            "CONTAINERS_CONF": "/root/nothing.conf",
        },
        onstart="echo $GIVEN > /root/seen; touch ~/.no_auto_tmux",
    )
    row = sandbox.wait_vast(contract)
    seen = sandbox.ssh_vast(
        row,
        "cat /proc/1/comm; echo over-ssh=$GIVEN; cat /root/seen; which git tmux gcc; id -un; "
        "tr '\\0' '\\n' < /proc/1/environ | grep nothing | sort",
    ).stdout.splitlines()
    assert seen == [
        "gpuyard-init",
        "over-ssh=",
        "canary-environment",
        "/usr/bin/git",
        "/usr/bin/tmux",
        "/usr/bin/gcc",
        "root",
        "CONTAINERS_CONF=/root/nothing.conf",
        "LD_PRELOAD=/root/nothing.so",
    ]
    assert set(row["ports"]) == {"22/tcp", "8080/tcp"}
    assert all(int(port[0]["HostPort"]) >= 20_000 for port in row["ports"].values())


def test_a_vultr_box_has_systemd_an_address_of_its_own_and_runs_its_user_data(sandbox: Sandbox, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho first-boot >> /root/user-data\n"
    instance = sandbox.rent_vultr(user_data=encode(script), hostname="trainer-0")
    row = sandbox.wait_vultr(instance)
    assert row["main_ip"].startswith("127.77.")
    seen = sandbox.ssh(
        row["main_ip"],
        22,
        "systemctl is-system-running --wait; cat /root/user-data; hostname; cat /proc/1/comm; "
        "passwd -S root | cut -d' ' -f2",
    ).stdout.splitlines()
    assert seen == ["running", "first-boot", "trainer-0", "systemd", "L"]
    assert sandbox.ssh(row["main_ip"], 22, "true", key=make_key(tmp_path, "stranger")).returncode == 255

    sandbox.vultr("POST", f"/instances/{instance}/reboot")
    sandbox.wait_vultr(instance)
    assert sandbox.ssh(row["main_ip"], 22, "cat /root/user-data").stdout == "first-boot\n"


def test_boxes_have_host_keys_of_their_own(sandbox: Sandbox) -> None:
    rows = [sandbox.wait_vast(contract) for contract in (sandbox.rent_vast(), sandbox.rent_vast())]
    keys = {sandbox.ssh_vast(row, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout for row in rows}
    assert len(keys) == 2


def test_nvidia_smi_says_that_it_is_a_stand_in(sandbox: Sandbox) -> None:
    row = sandbox.wait_vast(sandbox.rent_vast())
    query = "nvidia-smi --query-gpu=name,memory.total --format=csv"
    done = sandbox.ssh_vast(row, f"nvidia-smi; nvidia-smi -L; {query}; {query},noheader,nounits")
    plain, listing, table = done.stdout.splitlines()[0], done.stdout.splitlines()[3], done.stdout.splitlines()[4:]
    assert "STAND-IN" in plain
    assert "STAND-IN" in done.stderr
    assert listing.startswith(f"GPU 0: {row['gpu_name']} STAND-IN")
    memory = row["gpu_ram"]
    assert table == ["name, memory.total [MiB]", f"{row['gpu_name']}, {memory} MiB", f"{row['gpu_name']}, {memory}"]


def test_the_bucket_works_from_here_and_from_a_box_and_needs_the_key(sandbox: Sandbox, engine: Engine) -> None:
    info = sandbox.info
    client = boto3.client(
        "s3",
        endpoint_url=info.endpoints["s3"],
        aws_access_key_id=info.s3_access_key,
        aws_secret_access_key=info.s3_secret_key,
        region_name="us-east-1",
    )
    key = f"probe/{uuid.uuid4()}"
    client.put_object(Bucket=info.bucket, Key=key, Body=b"content")
    assert client.get_object(Bucket=info.bucket, Key=key)["Body"].read() == b"content"
    assert [item["Key"] for item in client.list_objects_v2(Bucket=info.bucket, Prefix=key)["Contents"]] == [key]
    assert requests.get(f"{info.endpoints['s3']}/{info.bucket}/{key}", timeout=120).status_code == 403

    # The box has no S3 client yet; a signed address shows that it reaches the bucket by its name there.
    inside = boto3.client(
        "s3",
        endpoint_url=info.from_boxes["s3"],
        aws_access_key_id=info.s3_access_key,
        aws_secret_access_key=info.s3_secret_key,
        region_name="us-east-1",
    )
    signed = inside.generate_presigned_url("get_object", Params={"Bucket": info.bucket, "Key": key})
    row = sandbox.wait_vast(sandbox.rent_vast())
    assert sandbox.ssh_vast(row, f"curl -sf '{signed}'").stdout == "content"

    # A box sees nothing of the bucket's and the mirror's other servers, and without the key nothing of the bucket.
    address = f"{info.from_boxes['s3']}/{info.bucket}/{key}"
    assert sandbox.ssh_vast(row, f"curl -s -o /dev/null -w '%{{http_code}}' {address}").stdout == "403"
    for server, port in (("bucket", 8333), ("mirror", 8080)):
        # Whatever listens there at all is tried from the box.
        sockets = engine.execute(f"gpuyard-{info.name}-{server}", "ss", "-ltnH").splitlines()
        ports = " ".join(sorted({line.split()[3].rpartition(":")[2] for line in sockets}))
        probe = f"for port in {ports}; do (: < /dev/tcp/{server}/$port) 2>/dev/null && echo $port; done"
        assert sandbox.ssh_vast(row, probe).stdout.split() == [str(port)]


def test_no_key_of_the_sandbox_is_on_a_command_line(sandbox: Sandbox) -> None:
    info = sandbox.info
    secrets = [info.vast_key, info.vultr_key, info.control_key, info.s3_secret_key]
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(file.read_bytes())
    assert lines
    assert not [line for line in lines for secret in secrets if secret.encode() in line]
    assert oct((sandbox.state / "sandbox.json").stat().st_mode & 0o777) == "0o600"
    log = (sandbox.state / "sandbox.log").read_text(encoding="utf-8")
    assert not [secret for secret in secrets if secret in log]


def test_what_is_in_a_network_volume_outlives_its_pods(sandbox: Sandbox, engine: Engine) -> None:
    """RunPod, whose volumes come with a pod when it is created, and go only when they are deleted."""

    def call(method: str, path: str, body: object = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {sandbox.info.keys['runpod']}"}
        url = f"{sandbox.info.endpoints['runpod']}{path}"
        return requests.request(method, url, json=body, headers=headers, timeout=WAIT_S)

    def in_a_pod(volume: str, command: str) -> str:
        gpu = {"id": "NVIDIA RTX A4000", "count": 1}
        body = {"name": "x", "image": "x", "gpu": gpu, "disk": 20, "ports": ["22/tcp"]}
        mounts = {"network": [{"volumeId": volume, "path": "/data"}]}
        pod = call("POST", "/pods", {**body, "env": {"PUBLIC_KEY": sandbox.public_key}, "mounts": mounts}).json()["id"]
        row = wait(lambda: call("GET", f"/pods/{pod}").json(), lambda row: row["status"] == "RUNNING")
        direct = row["ssh"]["direct"]
        said = sandbox.ssh(direct["host"], direct["port"], command).stdout
        assert call("DELETE", f"/network-volumes/{volume}").status_code == 409
        assert call("DELETE", f"/pods/{pod}").status_code == 204
        return said

    volume = call("POST", "/network-volumes", {"name": "x", "size": 10, "dataCenter": "EU-RO-1"}).json()["id"]
    in_a_pod(volume, "echo kept > /data/seen")
    assert in_a_pod(volume, "cat /data/seen") == "kept\n"
    assert sandbox.open_lines(volume) == {"filesystem"}
    assert call("DELETE", f"/network-volumes/{volume}").status_code == 204
    assert sandbox.open_lines(volume) == set()
    assert engine.volumes(sandbox.info.name) == []
