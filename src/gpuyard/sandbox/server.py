"""The sandbox's process: the emulated APIs and the control API on one loopback port.

Started by ``gpuyard sandbox up`` as ``python -m gpuyard.sandbox.server --state DIR``; ends on SIGTERM. The containers
live on without it and are found again at the next start.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from json import dumps
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from gpuyard.errors import GpuyardError, UsageError
from gpuyard.files import write_whole
from gpuyard.sandbox import control_api, engine
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds import BASE_PATHS, EMULATED
from gpuyard.sandbox.clouds.emulated import EmulatedCloud
from gpuyard.sandbox.faulty import Faulty
from gpuyard.sandbox.fields import MOST_BYTES, shown
from gpuyard.sandbox.info import INFO_FILE
from gpuyard.sandbox.services import FROM_BOXES, SOCKET
from gpuyard.sandbox.settings import LOOPBACK, Settings
from gpuyard.sandbox.web import BodyLimit, SlashInsensitive


def build(cloud: Cloud, state: Path, clouds: Sequence[EmulatedCloud] = tuple(EMULATED.values())) -> ASGIApp:
    """Return the whole application, with the APIs of these clouds."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await cloud.resume()
        info = state / INFO_FILE
        write_whole(info, dumps(cloud.settings.sandbox_json(os.getpid(), BASE_PATHS), indent=1), durable=True)
        yield
        info.unlink(missing_ok=True)
        await cloud.close()

    routes = [Mount(one.path, one.app(cloud)) for one in clouds]
    routes.append(Mount("/sandbox", control_api.app(cloud)))
    application = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: partial(_unrouted, clouds)}
    )
    return BodyLimit(SlashInsensitive(Faulty(application, cloud.take_fault, clouds)))


async def _unrouted(clouds: Sequence[EmulatedCloud], request: Request, error: Exception) -> Response:
    """Answer what no route answers, in the words of the API it was meant for.

    A route that the real API has and the sandbox has not is no 404: clients would take that for "there is none".
    """
    status = error.status_code if isinstance(error, HTTPException) else 404
    missing = f"The sandbox has no route {request.method} {shown(request.url.path)}."
    large = f"The body is larger than {MOST_BYTES} bytes."
    text = {404: "Not found.", 405: "Method not allowed.", 413: large}.get(status, missing)
    asked = next((one for one in clouds if request.url.path.startswith(f"{one.path}/")), EMULATED["vast"])
    return asked.refusal(status, text)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Errors are one sentence on standard error, which ``up`` shows."""
    parser = argparse.ArgumentParser(prog="gpuyard.sandbox.server")
    parser.add_argument("--state", type=Path, required=True)
    state: Path = parser.parse_args(arguments).state
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = Settings.load(state)
        if settings is None:
            raise UsageError(f"There is no sandbox in {state}: run `gpuyard sandbox up`.")
        cloud = Cloud(engine.find(settings.engine), settings, state)
    except GpuyardError as error:
        print(error, file=sys.stderr)
        return 2
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, settings.port))
        # From here on a call waits for its answer: `up` returns when the file is there, and uvicorn listens only later.
        listener.listen(socket.SOMAXCONN)
    except OSError:
        print(f"Port {settings.port} is taken: choose another one with `--port`.", file=sys.stderr)
        return 2
    try:
        inner = _listener_for_boxes(state)
    except OSError as error:
        print(f"The sandbox cannot listen in {state}: {error.strerror}.", file=sys.stderr)
        return 2
    config = uvicorn.Config(build(cloud, state), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener, inner])
    return 0


def _listener_for_boxes(state: Path) -> socket.socket:
    """Return a listener on the socket that :func:`gpuyard.sandbox.services.clouds` passes on to the boxes' network.

    Boxes do not reach this machine's loopback.
    """
    file = state / FROM_BOXES / SOCKET
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The path of a socket may have 107 characters, which that of a folder can exceed.
    folder = os.open(file.parent, os.O_DIRECTORY | os.O_PATH)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{SOCKET}")
    finally:
        os.close(folder)
    listener.listen(socket.SOMAXCONN)
    return listener


if __name__ == "__main__":
    sys.exit(main())
