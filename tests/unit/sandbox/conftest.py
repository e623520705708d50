"""The emulated APIs in this process, on a stand-in for the container engine."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.engine import ContainerSpec, ContainerState, Engine
from gpuyard.sandbox.server import build
from gpuyard.sandbox.settings import Settings


@dataclasses.dataclass
class Clock:
    """A clock that moves when it is told to."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class StandInEngine(Engine):
    """STAND-IN for a container engine: remembers what it was told, starts nothing."""

    def __init__(self) -> None:
        super().__init__("stand-in", "podman")
        object.__setattr__(self, "specs", {})
        object.__setattr__(self, "alive", {})
        object.__setattr__(self, "stored", set())

    specs: dict[str, ContainerSpec]
    alive: dict[str, bool]
    stored: set[str]  # names of volumes

    def create(self, spec: ContainerSpec) -> None:
        self.specs[spec.name] = spec
        self.alive[spec.name] = False

    def copy_in(self, container: str, tar: bytes) -> None:
        assert container in self.specs

    def execute(self, container: str, *command: str, stdin: bytes = b"") -> None:
        assert container in self.specs

    def start(self, container: str) -> None:
        self.alive[container] = True

    def stop(self, container: str, *, grace_s: int = 10) -> None:
        self.alive[container] = False

    def kill(self, container: str) -> None:
        self.alive[container] = False

    def remove(self, container: str) -> None:
        self.specs.pop(container, None)
        self.alive.pop(container, None)

    def ensure_volume(self, volume: str, labels: Mapping[str, str]) -> None:
        self.stored.add(volume)

    def remove_volume(self, volume: str) -> None:
        self.stored.discard(volume)

    def state(self, container: str) -> ContainerState | None:
        if container not in self.specs:
            return None
        return ContainerState(container, self.alive[container], 0, self.specs[container].labels, "10.9.8.7")

    def containers(self, sandbox: str) -> list[str]:
        return list(self.specs)

    def running(self, sandbox: str) -> set[str]:
        return {name for name, alive in self.alive.items() if alive}


@dataclasses.dataclass
class Apis:
    """Both APIs over HTTP without a socket."""

    client: TestClient
    cloud: Cloud
    clock: Clock

    def vast(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.cloud.settings.vast_key}"}
        return self.client.request(method, f"/api{path}", json=body, headers=headers, **more)

    def vultr(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.cloud.settings.vultr_key}"}
        return self.client.request(method, f"/v2{path}", json=body, headers=headers, **more)

    def rent_vast(self, ask: int = 11402000, **body: Any) -> int:
        answer = self.vast("PUT", f"/v0/asks/{ask}/", {"image": "vastai/pytorch", "disk": 20, **body})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["new_contract"])

    def rent_vultr(self, **body: Any) -> str:
        wanted = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136, **body}
        answer = self.vultr("POST", "/instances", wanted)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["instance"]["id"])


Start = Callable[..., Apis]


@contextlib.contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve an application on loopback, and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def apis(tmp_path: Path) -> Iterator[Apis]:
    clock = Clock()
    settings = Settings(port=1, boot_seconds=10.0)
    cloud = Cloud(StandInEngine(), settings, tmp_path, clock=clock)
    with TestClient(build(cloud, tmp_path)) as client:
        yield Apis(client, cloud, clock)
