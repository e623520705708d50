from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Offer
from gpuyard.providers.http import Patience
from gpuyard.providers.rental import Waits
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr

from .standin import Reply, Standin, serve

VAST_KEY = "canary-vast-3f9ac1d27be84056aa19"
VULTR_KEY = "canary-vultr-77d0e2f5b19c4a3d8e60"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx gpuyard"


@dataclass
class FakeTime:
    """A clock that stands still except while somebody sleeps by it."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def service() -> Iterator[Standin]:
    with serve(Standin()) as standin:
        yield standin


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the keys, the settings or the state of whoever runs it."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (
        *(
            "VAST_API_KEY",
            "VULTR_API_KEY",
            "LAMBDA_API_KEY",
            "GPUYARD_SANDBOX",
            "GPUYARD_SANDBOX_STATE",
            "XDG_CONFIG_HOME",
        ),
        *("CLOUD_PROVIDER", "CLOUD_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"),
        *("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GPUYARD_HOME", str(home / ".gpuyard"))
    return home


@pytest.fixture
def patience() -> Patience:
    return Patience(tries=3, first_delay=0.01, longest_delay=0.02, read_timeout=60)


@pytest.fixture
def waits(fake_time: FakeTime) -> Waits:
    return Waits(sleep=fake_time.sleep, clock=fake_time.clock)


@pytest.fixture
def vast(service: Standin, patience: Patience, waits: Waits) -> Vast:
    return Vast(VAST_KEY, base_url=service.url, patience=patience, waits=waits)


def without_metal(service: Standin) -> None:
    """Let there be no bare metal at Vultr."""
    missing = Reply({"error": "Not found.", "status": 404}, 404)
    empty = Reply({"bare_metals": []})
    service.on("GET", "/bare-metals", lambda request: empty if request.path == "/bare-metals" else missing)
    service.on("GET", "/plans-metal", Reply({"plans_metal": []}))


@pytest.fixture
def vultr(service: Standin, patience: Patience, waits: Waits) -> Vultr:
    without_metal(service)
    return Vultr(VULTR_KEY, base_url=service.url, patience=patience, waits=waits)


def an_offer(**changes: object) -> Offer:
    values: dict[str, object] = {
        "provider": "vast",
        "id": "4711",
        "gpu_name": "RTX 4090",
        "gpu_count": 1.0,
        "gpu_ram_gb": 24.6,
        "cpu_cores": 8.0,
        "ram_gb": 32.0,
        "disk_gb": 200.0,
        "region": "Oslo, NO",
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
        **changes,
    }
    return Offer(**values)  # type: ignore[arg-type]


def a_spec(**changes: object) -> CreateSpec:
    values: dict[str, object] = {"ref": RunRef("miniprover-0", "miniprover"), "ssh_public_key": SSH_KEY, **changes}
    return CreateSpec(**values)  # type: ignore[arg-type]
