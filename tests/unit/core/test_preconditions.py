"""F9: what a launch needs, asked of real servers on loopback."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gpuyard.api import preconditions
from gpuyard.api.site import Site
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.workload import Workload, parse_workload

from .conftest import without_metal
from .standin import Reply, Request, Standin

KEY = "canary-key-1d7c55e0ab"
WANDB_KEY = "canary-wandb-0f4b9d2c77"


def vast_account(service: Standin, credit: float = 12.5) -> Vast:
    service.on("GET", "/api/v0/users/current", Reply({"credit": credit}))
    service.on("GET", "/api/v1/instances/", Reply({"instances": [], "next_token": None}))
    service.on("GET", "/api/v0/ssh/", Reply([]))
    return Vast(KEY, base_url=service.url)


def vultr_account(service: Standin, **account: Any) -> Vultr:
    meta = {"links": {"next": "", "prev": ""}}
    service.on("GET", "/account", Reply({"account": {"balance": -40.0, "pending_charges": 1.5, **account}}))
    for path, name in (("/instances", "instances"), ("/ssh-keys", "ssh_keys"), ("/plans", "plans")):
        service.on("GET", path, Reply({name: [], "meta": meta}))
    without_metal(service)
    return Vultr(KEY, base_url=service.url)


def test_f9_a_key_that_is_fine(service: Standin) -> None:
    found = preconditions.cloud(vast_account(service))
    assert (found.level, found.todo) == ("ok", "")
    assert "key valid" in found.found and "$12.50" in found.found
    assert {request.method for request in service.seen} == {"GET"}


def test_f9_a_wrong_key(service: Standin) -> None:
    service.on("GET", "/api", Reply({"success": False, "error": "auth_error", "msg": "Invalid user key"}, 404))
    found = preconditions.cloud(Vast(KEY, base_url=service.url))
    assert found.level == "failed" and "Invalid user key" in found.found
    assert "VAST_API_KEY" in found.todo and KEY not in str(found)


def test_f9_an_address_that_is_not_allowed(service: Standin) -> None:
    service.on("GET", "/", Reply({"error": "Unauthorized IP address: 192.0.2.7", "status": 401}, 401))
    found = preconditions.cloud(Vultr(KEY, base_url=service.url))
    assert found.level == "failed" and "192.0.2.7" in found.found and "addresses that may use it" in found.todo


@pytest.mark.parametrize(
    ("path", "level", "words"),
    [
        ("/api/v1/instances/", "failed", "may not read machines"),
        ("/api/v0/ssh/", "failed", "may not read SSH keys"),
        ("/api/v0/users/current", "warning", "may not read the credit"),
    ],
)
def test_f9_a_key_without_a_right(service: Standin, path: str, level: str, words: str) -> None:
    cloud = vast_account(service)
    service.on("GET", path, Reply({"success": False, "msg": "This key may not do that."}, 403))
    found = preconditions.cloud(cloud)
    assert found.level == level and words in found.found and found.todo


def test_f9_no_credit(service: Standin) -> None:
    found = preconditions.cloud(vast_account(service, credit=0.0))
    assert found.level == "failed" and "$0.00" in found.found and "Add credit" in found.todo


def test_f9_vultr_also_takes_cards_and_names_rights(service: Standin) -> None:
    assert "$38.50" in preconditions.cloud(vultr_account(service, acls=["provisioning"])).found
    assert preconditions.cloud(vultr_account(service, balance=0.0)).level == "warning"
    few = preconditions.cloud(vultr_account(service, acls=["dns"]))
    assert few.level == "warning" and "provisioning" in few.todo


def workload(**environment: Any) -> Workload:
    document = {
        "name": "tiny",
        "repository": {"path": "."},
        "environment": environment,
        "stages": [{"name": "one", "command": "true"}],
    }
    return parse_workload(json.dumps(document), source=Path("workloads/tiny.yml"))


def viewer(request: Request) -> Reply:
    """STAND-IN for Weights & Biases' login endpoint: it knows one key."""
    expected = base64.b64encode(f"api:{WANDB_KEY}".encode()).decode()
    if request.headers.get("authorization") != f"Basic {expected}":
        return Reply({"errors": [{"message": "user is not logged in"}]}, 401)
    return Reply({"data": {"viewer": {"username": "trainer"}}})


def test_f9_weights_and_biases(service: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    service.on("POST", "/graphql", viewer)
    monkeypatch.setenv("WANDB_BASE_URL", service.url)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    assert preconditions.wandb(workload()) is None
    assert service.seen == []  # nobody named it
    known = preconditions.wandb(workload(required=["WANDB_API_KEY"]))
    assert known and known.level == "ok" and "trainer" in known.found
    monkeypatch.setenv("WANDB_API_KEY", "canary-other")
    refused = preconditions.wandb(workload(optional=["WANDB_API_KEY"]))
    assert refused and refused.level == "failed" and "refuses the key" in refused.found
    assert "canary" not in str(refused) and "WANDB_API_KEY" in refused.todo
    service.on("POST", "/graphql", Reply({"data": {"viewer": None}}))
    nobody = preconditions.wandb(workload(optional=["WANDB_API_KEY"]))
    assert nobody and nobody.level == "failed"
    # The workload's own address wins.
    other = preconditions.wandb(workload(optional=["WANDB_API_KEY"], set={"WANDB_BASE_URL": "http://127.0.0.1:9"}))
    assert other and other.level == "warning" and "cannot be asked" in other.found


@pytest.mark.parametrize(
    ("off", "level"), [(0.0, "ok"), (-30.0, "ok"), (-300.0, "warning"), (2000.0, "failed"), (-2000.0, "failed")]
)
def test_f9_the_clock(service: Standin, monkeypatch: pytest.MonkeyPatch, off: float, level: str) -> None:
    class Clock:
        @staticmethod
        def time() -> float:
            return time.time() + off

    monkeypatch.setattr(preconditions, "time", Clock)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    found = preconditions.clock(Site(bucket="s3://yard", bucket_endpoint=service.url))
    assert found.level == level, found
    assert bool(found.todo) == (level != "ok")


def test_f9_a_clock_that_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    assert preconditions.clock(Site(bucket="s3://yard", bucket_endpoint="http://127.0.0.1:9")).level == "skipped"
    assert preconditions.clock(Site(bucket="")).level == "skipped"


def test_f9_the_ssh_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert preconditions.ssh_key(Site()).level == "ok"
    assert not (tmp_path / "home" / "keys").exists()  # looking makes none
    for name, phrase in (("plain", ""), ("locked", "secret")):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    plain = tmp_path / "plain"
    assert preconditions.ssh_key(Site(ssh_key=str(plain))).level == "ok"
    locked = preconditions.ssh_key(Site(ssh_key=str(tmp_path / "locked")))
    assert locked.level == "failed" and "ssh-add" in locked.todo
    assert "does not exist" in preconditions.ssh_key(Site(ssh_key=str(tmp_path / "none"))).found
    (tmp_path / "plain.pub").write_text((tmp_path / "locked.pub").read_text())
    assert "belongs to another key" in preconditions.ssh_key(Site(ssh_key=str(plain))).found
    plain.chmod(0o644)
    assert preconditions.ssh_key(Site(ssh_key=str(plain))).todo == f"chmod 600 {plain}"


def test_f9_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {found.what: found.level for found in preconditions.programs()}
    assert levels == {"ssh": "ok", "git": "ok", "Ansible": "ok"}
    for version, words in (("OpenSSH_7.4p1, x", "is too old"), ("Dropbear", "is made for OpenSSH")):
        (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        found = preconditions.programs()[0]
        assert words in found.found + found.todo
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert [found.level for found in preconditions.programs()] == ["failed", "failed", "warning", "ok"]
