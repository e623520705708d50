"""A real sandbox with real containers, brought up once for these tests and taken down after them."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from gpuyard.sandbox import lifecycle
from gpuyard.sandbox.client import Control
from gpuyard.sandbox.engine import Engine, find
from gpuyard.sandbox.info import SandboxInfo, load

BOOT_SECONDS = 1.0
WAIT_S = 240.0


@dataclass
class Sandbox:
    """A running sandbox and the calls that the tests make of it."""

    state: Path
    private_key: Path
    seen: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def info(self) -> SandboxInfo:
        return load(self.state)

    @property
    def control(self) -> Control:
        return Control(self.info)

    @property
    def public_key(self) -> str:
        return self.private_key.with_suffix(".pub").read_text(encoding="utf-8").strip()

    def vast(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **more: Any
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {key or self.info.vast_key}"}
        return requests.request(
            method, f"{self.info.endpoints['vast']}{path}", json=body, headers=headers, timeout=WAIT_S, **more
        )

    def vultr(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.info.vultr_key}", **more.pop("headers", {})}
        return requests.request(
            method, f"{self.info.endpoints['vultr']}{path}", json=body, headers=headers, timeout=WAIT_S, **more
        )

    def offers(self, **query: Any) -> list[dict[str, Any]]:
        query = {"verified": {"eq": True}, "rentable": {"eq": True}, "order": [["dph_total", "asc"]], **query}
        return list(self.vast("POST", "/api/v0/bundles/", query).json()["offers"])

    def rent_vast(self, **body: Any) -> int:
        ask = self.offers(direct_port_count={"gt": 0})[0]["id"]
        wanted = {"image": "vastai/pytorch", "disk": 20, "runtype": "ssh_direc ssh_proxy", **body}
        answer = self.vast("PUT", f"/api/v0/asks/{ask}/", wanted)
        assert answer.ok, answer.text
        return int(answer.json()["new_contract"])

    def vast_row(self, contract: int) -> dict[str, Any]:
        return dict(self.vast("GET", f"/api/v0/instances/{contract}/?owner=me").json()["instances"])

    def wait_vast(self, contract: int, status: str = "running") -> dict[str, Any]:
        return wait(lambda: self.vast_row(contract), lambda row: row["actual_status"] == status)

    def vultr_key(self) -> str:
        body = {"name": "test", "ssh_key": self.public_key}
        return str(self.vultr("POST", "/ssh-keys", body).json()["ssh_key"]["id"])

    def rent_vultr(self, **body: Any) -> str:
        wanted = {
            "region": "ewr",
            "plan": "vcg-a16-2c-8g-2vram",
            "os_id": 2136,
            "sshkey_id": [self.vultr_key()],
            **body,
        }
        answer = self.vultr("POST", "/instances", wanted)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["instance"]["id"])

    def vultr_row(self, instance: str) -> dict[str, Any]:
        return dict(self.vultr("GET", f"/instances/{instance}").json()["instance"])

    def wait_vultr(self, instance: str, power: str = "running") -> dict[str, Any]:
        return wait(
            lambda: self.vultr_row(instance),
            lambda row: (row["status"], row["power_status"], row["server_status"]) == ("active", power, "ok"),
        )

    def ssh(
        self, host: str, port: int | str, command: str, *, key: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a box, trying again while its sshd is not there yet."""
        options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
        words = ["ssh", "-i", str(key or self.private_key), *(word for option in options for word in ("-o", option))]
        end = time.monotonic() + WAIT_S
        while True:
            done = subprocess.run(
                [*words, "-o", "LogLevel=ERROR", "-p", str(port), f"root@{host}", command],
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                check=False,
            )
            early = any(text in done.stderr for text in ("refused", "reset by", "closed by", "timed out", "banner"))
            if not early or time.monotonic() > end:
                return done
            time.sleep(0.2)

    def ssh_vast(self, row: dict[str, Any], command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.ssh(row["public_ipaddr"].strip(), row["ports"]["22/tcp"][0]["HostPort"], command, **more)

    def bill(self) -> dict[str, Any]:
        return dict(self.control.status()["bill"])

    def open_lines(self, rental_id: int | str) -> set[str]:
        return {line["what"] for line in self.bill()["billable"] if line["id"] == str(rental_id)}

    def destroy_all(self) -> None:
        for row in self.control.status()["instances"]:
            if row["provider"] == "vast":
                self.vast("DELETE", f"/api/v0/instances/{row['id']}/")
            else:
                self.vultr("DELETE", f"/instances/{row['id']}")


def wait(look: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Look until it is good, and return what was seen then."""
    end = time.monotonic() + WAIT_S
    while True:
        row = look()
        if good(row):
            return row
        assert time.monotonic() < end, f"not within {WAIT_S:g} s: {row}"
        time.sleep(0.1)


def encode(script: str) -> str:
    """Return user data as Vultr wants it."""
    return base64.b64encode(script.encode()).decode()


def make_key(folder: Path, name: str) -> Path:
    """Make an SSH key pair and return the private half."""
    file = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(file)], check=True)
    return file


@pytest.fixture(scope="session")
def engine() -> Engine:
    return find()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("sandbox")
    sandbox = Sandbox(folder / "state", make_key(folder, "key"))
    lines: list[str] = []
    info = lifecycle.up(sandbox.state, lines.append, lifecycle.Options(boot_seconds=BOOT_SECONDS))
    yield sandbox
    lifecycle.down(sandbox.state, lines.append)
    assert engine.containers(info.name) == engine.volumes(info.name) == []
    assert not (sandbox.state / "sandbox.json").exists()


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    """The running sandbox with our key on the Vast account; afterwards nothing is rented and nothing fails."""
    running.vast("POST", "/api/v0/ssh/", {"ssh_key": running.public_key})
    yield running
    running.destroy_all()
    running.control.clear_faults()
