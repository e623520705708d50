"""A machine that another controller has rented is reached, with this one's key, where its cloud can add one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gpuyard import paths, ssh
from gpuyard.config import SshKey
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.renting import access, ready

from .conftest import SSH_KEY
from .standin import Reply, Request, Standin

KEY = SshKey(Path("/keys/id"), SSH_KEY)
BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIP4dFgb4JeCnyIIF6NFQc/4n2hjIm8X0XmqljzQkIRD9"


def an_instance(provider: str, **changes: Any) -> Instance:
    values: dict[str, Any] = {
        "label": "gpuyard/miniprover-0/miniprover",
        "ref": RunRef("miniprover-0", "miniprover"),
        "state": State.RUNNING,
        "status_text": "running",
        "region": "Oslo, NO",
        "gpu_name": "RTX 4090",
        "gpu_count": 1.0,
        "gpu_ram_gb": 24.6,
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
        "ssh_host": "203.0.113.9",
        "ssh_port": 20544,
        **changes,
    }
    return Instance(provider=provider, id="7", **values)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an ``ssh`` on PATH that pins a host key, and refuses until the file ``admitted`` is in the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    paths.ensure_private(paths.home())
    (folder / "ssh").write_text(
        f"#!/bin/sh\necho x >> {folder}/calls\n"
        f"for alias in vast vultr; do echo gpuyard-$alias-7 ssh-ed25519 {BLOB} >> {paths.known_hosts()}; done\n"
        f"[ -e {folder}/admitted ] && exit 0\necho 'root@203.0.113.9: Permission denied (publickey).' >&2; exit 255\n"
    )
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_living_machine_gets_the_key_of_the_controller_that_takes_it_over(
    vast: Vast, service: Standin, box: Path
) -> None:
    def attach(request: Request) -> Reply:
        assert request.body == {"ssh_key": SSH_KEY}
        (box / "admitted").touch()
        return Reply({"success": True, "msg": "SSH key added to instance."})

    service.on("GET", "/api/v0/ssh/", Reply([]))
    service.on("POST", "/api/v0/instances/7/ssh/", attach)
    told: list[str] = []
    access.let_in([vast], [an_instance("vast")], KEY, progress=told.append)
    assert len(service.calls("POST")) == 1 and told == []
    assert ssh.host_key_fingerprint(an_instance("vast")) is not None
    calls = (box / "calls").read_text()
    # One that is known costs no question.
    access.let_in([vast], [an_instance("vast")], KEY)
    assert (box / "calls").read_text() == calls


def test_where_no_key_can_be_added_that_is_one_sentence(
    vultr: Vultr, service: Standin, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "KEY_REFUSED_S", 0.5)
    service.on("GET", "/ssh-keys", Reply({"ssh_keys": []}))
    told: list[str] = []
    access.let_in([vultr], [an_instance("vultr")], KEY, progress=told.append)
    assert len(told) == 1 and "another controller has rented it, with a key of its own" in told[0]
    assert "-e ssh_key=PATH" in told[0]
    assert [request.method for request in service.seen] == ["GET"]
    # With another key the next visit is a first one again.
    assert ssh.host_key_fingerprint(an_instance("vultr")) is None
    (box / "admitted").touch()
    access.let_in([vultr], [an_instance("vultr")], KEY, progress=told.append)
    assert len(told) == 1 and ssh.host_key_fingerprint(an_instance("vultr")) is not None


@pytest.mark.parametrize("changes", [{"ref": None}, {"state": State.PENDING}, {"ssh_host": ""}])
def test_only_running_machines_of_runs_are_asked(vast: Vast, box: Path, changes: dict[str, Any]) -> None:
    access.let_in([vast], [an_instance("vast", **changes)], KEY)
    access.let_in([], [an_instance("vast")], KEY)
    assert not (box / "calls").exists()


def test_the_roles_use_the_connection_of_the_first_contact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(Path, "home", lambda: short)
    machine, other = an_instance("vast"), an_instance("vultr")
    shared = ssh.by_shared_connection(machine, KEY)
    # Not among its arguments: a task that needs a connection of its own says so there.
    assert shared[1] == f"ControlPath={ssh.ansible_vars(machine, KEY)['ansible_control_path']}"
    assert ssh.shared_connection_args(machine, KEY)[:2] == shared != ssh.by_shared_connection(other, KEY)
    # The kernel takes no longer name for a socket, so there is none to share.
    monkeypatch.setattr(Path, "home", lambda: tmp_path / ("x" * 90))
    assert ssh.by_shared_connection(machine, KEY) == ssh.shared_connection_args(machine, KEY) == []
