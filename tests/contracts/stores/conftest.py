from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gpuyard.box.checkpoints import Store, open_store

from .servers import KINDS, Server


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Start the server of a kind when it is first asked for. Each takes seconds, so they run until the end."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(kind: str) -> Server:
            if kind not in running:
                running[kind] = stack.enter_context(KINDS[kind](tmp_path_factory.mktemp(kind) / "server"))
            return running[kind]

        yield start


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS])
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    return servers(request.param)


@pytest.fixture
def store(server: Server) -> Store:
    # A prefix of its own for every test, in the one bucket.
    return open_store(f"{server.url}/{uuid.uuid4().hex}", env=server.env)
