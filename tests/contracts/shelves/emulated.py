"""The emulated clouds on one port of loopback, in this process. Their clock moves only while somebody waits by it.

Between clients and clouds is a :class:`Wire`: it remembers every request, and lets answers get lost or come out wrong.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec
from urllib.parse import urlsplit

import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuyard.config import CLOUDS
from gpuyard.providers.base import PlannedCall
from gpuyard.providers.cloud import Cloud as Client
from gpuyard.providers.rental import Waits
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds import BASE_PATHS
from gpuyard.sandbox.engine import Engine
from gpuyard.sandbox.server import build
from gpuyard.sandbox.settings import Settings
from gpuyard.sandbox.web import LostAnswer

READS = re.compile(r"/(bundles|search|graphql)(/|$)")
"""Paths of requests that change nothing, whatever their method."""
LOST = 0
"""In place of a status: the connection breaks before the answer."""


@dataclass
class Clock:
    """Seconds since 1970, the same for the clouds and for whoever waits for them."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Trouble:
    """What happens to the next ``times`` requests that are one of ``calls``, by method and pattern of the path."""

    calls: Sequence[tuple[str, str]]
    status: int  # what is answered, or LOST
    acts: bool  # whether the cloud carries the request out all the same
    times: int = 1

    def strikes(self, method: str, path: str) -> bool:
        return self.times > 0 and any(method == name and re.fullmatch(pattern, path) for name, pattern in self.calls)


@dataclass
class Wire:
    """What stands between the clients and the clouds."""

    app: ASGIApp | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"].rstrip("/")
        self.requests.append((method, path))
        trouble = next((one for one in self.troubles if one.strikes(method, path)), None)
        if trouble is None:
            await self.app(scope, receive, send)
            return
        trouble.times -= 1
        if trouble.acts:
            await self.app(scope, receive, _nowhere)
        if trouble.status == LOST:
            await LostAnswer()(scope, receive, send)
        elif trouble.status < 300:
            await JSONResponse({"success": True, "data": {}}, trouble.status)(scope, receive, send)
        else:
            await PlainTextResponse("The front end failed.", trouble.status)(scope, receive, send)

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [(method, path) for method, path in self.requests if method != "GET" and not READS.search(path)]


async def _nowhere(_: Message) -> None:
    """Take an answer that nobody gets."""


def patterns(calls: Sequence[PlannedCall]) -> list[tuple[str, str]]:
    """Return planned calls as methods and patterns of paths; ``<…>`` stands for what is not known beforehand."""
    paths = [urlsplit(call.url).path.rstrip("/") for call in calls]
    known = [re.sub(r"<[^>]*>|%3C.*?%3E", "\0", path) for path in paths]
    return [(call.method, re.escape(path).replace("\0", "[^/]+")) for call, path in zip(calls, known, strict=True)]


@dataclass
class Emulated:
    """The clouds of one test."""

    wire: Wire
    clock: Clock
    cloud: Cloud

    def client(self, name: str) -> Client:
        """Return a provider's client. It waits by the clock of the clouds."""
        where: Any = self.cloud.settings.sandbox_json(0, BASE_PATHS)
        client = CLOUDS[name].make(where["keys"][name], base_url=where["endpoints"][name], emulated=True)
        assert isinstance(client, Client)
        client._waits = Waits(sleep=self.clock.sleep, clock=self.clock)
        client._api.sleep = self.clock.sleep
        return client


@contextmanager
def served() -> Iterator[tuple[Wire, int]]:
    """Serve a wire, to which a test's clouds are given, and its port."""
    wire = Wire()
    server = uvicorn.Server(uvicorn.Config(wire, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    yield wire, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def emulated_on(wire: Wire, port: int, state: Path) -> Emulated:
    """Return clouds with nothing in them."""
    engine = create_autospec(Engine, instance=True)  # STAND-IN for a container engine: nobody looks into the boxes
    engine.containers.return_value = []
    clock = Clock()
    cloud = Cloud(engine, Settings(port=port, boot_seconds=4.0), state, clock=clock)
    wire.app = build(cloud, state)
    wire.requests.clear()
    wire.troubles.clear()
    return Emulated(wire, clock, cloud)


def emulated_names() -> list[str]:
    """Return the providers that the sandbox has."""
    keys: Any = Settings().sandbox_json(0, BASE_PATHS)["keys"]
    return [name for name in CLOUDS if name in keys]
