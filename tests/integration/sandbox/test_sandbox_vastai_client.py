"""The published ``vastai`` client, unchanged, against the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Sandbox

VERSION = "1.9.1"
Client = Callable[..., subprocess.CompletedProcess[str]]


def program() -> str:
    """Return the client's program: ``$GPUYARD_VASTAI``, the checkout's tool folder, or PATH."""
    beside = Path(__file__).parents[3] / ".tools" / "vastai" / "bin" / "vastai"
    found = os.environ.get("GPUYARD_VASTAI") or (str(beside) if beside.exists() else shutil.which("vastai"))
    assert found, "the vastai client is missing: `make` installs it into .tools/vastai, or name it in GPUYARD_VASTAI"
    return found


@pytest.fixture
def vastai(sandbox: Sandbox, tmp_path: Path) -> Client:
    """Return a function that runs the client as a user does, after `eval "$(gpuyard sandbox env)"`."""
    home = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    environment = {**os.environ, **home, **sandbox.info.exports()}
    executable = program()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return call


def raw(vastai: Client, *arguments: str) -> Any:
    return json.loads(vastai(*arguments, "--raw").stdout)


def test_it_is_the_client_that_the_facts_were_read_from(vastai: Client) -> None:
    assert VERSION in vastai("--version").stdout


def test_searching_offers(vastai: Client) -> None:
    rows = raw(vastai, "search", "offers", "num_gpus=1 gpu_ram>=12 reliability>0.98", "-o", "dph", "--storage", "20")
    assert rows
    assert all(row["num_gpus"] == 1 and row["gpu_ram"] >= 12_000 and row["reliability"] > 0.98 for row in rows)
    assert all(row["verified"] and row["emulated"] for row in rows)
    assert [row["dph_total"] for row in rows] == sorted(row["dph_total"] for row in rows)
    names = raw(vastai, "search", "offers", "gpu_name=RTX_4090", "-n")
    assert {row["gpu_name"] for row in names} == {"RTX 4090"}
    assert {row["verification"] for row in names} == {"verified", "unverified"}
    bids = raw(vastai, "search", "offers", "gpu_name in [RTX_4090,L40S] geolocation=NO", "-i")
    assert {row["gpu_name"] for row in bids} == {"RTX 4090"}
    assert all(row["is_bid"] for row in bids)
    assert "RTX" in vastai("search", "offers", "num_gpus=1").stdout
    assert raw(vastai, "search", "offers", "cpu_ram>100 driver_version>=550.90.07", "--new")


def test_an_instance_from_create_to_destroy(vastai: Client, sandbox: Sandbox) -> None:
    offer = raw(vastai, "search", "offers", "num_gpus=1 direct_port_count>0", "-o", "dph")[0]
    created = raw(
        vastai, "create", "instance", str(offer["id"]), "--image", "vastai/pytorch", "--disk", "20",
        "--ssh", "--direct", "--label", "from-the-client", "--env", "-e GREETING=hello -p 8080:8080",
        "--onstart-cmd", "echo $GREETING > /root/seen",
    )  # fmt: skip
    assert created["success"] is True
    contract = str(created["new_contract"])
    row = sandbox.wait_vast(int(contract))
    assert sandbox.ssh_vast(row, "cat /root/seen").stdout == "hello\n"

    shown = raw(vastai, "show", "instance", contract)
    assert (shown["label"], shown["extra_env"]["GREETING"]) == ("from-the-client", "hello")
    assert contract in vastai("show", "instance", contract).stdout
    assert [item["id"] for item in raw(vastai, "show", "instances")] == [int(contract)]
    assert vastai("show", "instances", "--quiet").stdout.split() == [contract]
    assert row["gpu_name"] in vastai("show", "instances").stdout  # the table itself drops columns that do not fit
    assert [item["id"] for item in raw(vastai, "show", "instances-v1")] == [int(contract)]
    assert f"root@{row['public_ipaddr'].strip()}" in vastai("ssh-url", contract).stdout

    vastai("label", "instance", contract, "renamed")
    assert raw(vastai, "show", "instance", contract)["label"] == "renamed"
    vastai("stop", "instance", contract)
    assert raw(vastai, "show", "instance", contract)["actual_status"] == "exited"
    vastai("start", "instance", contract)
    sandbox.wait_vast(int(contract))
    vastai("reboot", "instance", contract)
    sandbox.wait_vast(int(contract))
    vastai("destroy", "instance", contract, "--yes")
    assert raw(vastai, "show", "instances") == []
    assert sandbox.open_lines(contract) == set()


def test_ssh_keys(vastai: Client, sandbox: Sandbox, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "new")], check=True)
    public = (tmp_path / "new.pub").read_text(encoding="utf-8").strip()
    vastai("create", "ssh-key", public)
    keys = [key for key in raw(vastai, "show", "ssh-keys") if key["public_key"] == public]
    assert len(keys) == 1
    row = sandbox.wait_vast(sandbox.rent_vast())
    assert sandbox.ssh_vast(row, "true", key=tmp_path / "new").returncode == 0
    vastai("delete", "ssh-key", str(keys[0]["id"]))
    assert public not in [key["public_key"] for key in raw(vastai, "show", "ssh-keys")]

    other = sandbox.wait_vast(sandbox.rent_vast())
    assert sandbox.ssh_vast(other, "true", key=tmp_path / "new").returncode == 255
    vastai("attach", "ssh", str(other["id"]), public)
    assert sandbox.ssh_vast(other, "true", key=tmp_path / "new").returncode == 0


def test_the_user(vastai: Client) -> None:
    assert 0 < raw(vastai, "show", "user")["credit"] <= 100
    assert "sandbox@localhost" in vastai("show", "user").stdout


def test_it_retries_what_is_throttled(vastai: Client, sandbox: Sandbox) -> None:
    sandbox.control.fault("throttle", "vast", 2)
    assert raw(vastai, "show", "user")["id"]


def test_a_wrong_key_is_refused(vastai: Client) -> None:
    done = vastai("--api-key", "canary-wrong-key-3f9a", "show", "instances")
    assert "Invalid user key" in done.stdout + done.stderr


def test_variables_and_volumes(vastai: Client, sandbox: Sandbox) -> None:
    vastai("create", "env-var", "token", "first")
    vastai("update", "env-var", "TOKEN", "second")
    assert raw(vastai, "show", "env-vars") == {"TOKEN": "*****"}
    vastai("delete", "env-var", "TOKEN")
    assert raw(vastai, "show", "env-vars") == {}

    offer = raw(vastai, "search", "volumes", "disk_space>=20 machine_id=11402")[0]
    vastai("create", "volume", str(offer["id"]), "--size", "20", "--name", "data")
    [volume] = raw(vastai, "show", "volumes")
    assert (volume["label"], volume["machine_id"], volume["status"]) == ("data", 11402, "created")
    assert "data" in vastai("show", "volumes").stdout
    vastai("delete", "volume", str(volume["id"]))
    assert raw(vastai, "show", "volumes") == [] and sandbox.open_lines(volume["id"]) == set()
