"""STAND-IN for a cloud that somebody adds: its HTTP API, and the type by which the sandbox serves it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds.emulated import Boot, EmulatedCloud
from gpuyard.sandbox.model import Rental

KEY = "toy-key"
KIND = {"id": "large", "gpu": "RTX 4090", "price": 0.5}


class EmulatedToy(EmulatedCloud):
    """What the sandbox has to know of it."""

    name: ClassVar[Any] = "toy"  # the sandbox's own clouds are listed by name
    path: ClassVar[str] = "/toy"
    base_path: ClassVar[str] = "/toy"
    outcomes: ClassVar[tuple[str, ...]] = ("gone",)
    creates: ClassVar[re.Pattern[str]] = re.compile(r"POST /machines$")
    destroys: ClassVar[re.Pattern[str]] = re.compile(r"DELETE /machines/\d+$")

    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API."""
        return app()

    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""
        return self.refusal(429, "slower")

    def broken(self) -> Response:
        """Return its answer when it is out of order."""
        return self.refusal(500, "broken")

    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes."""
        return JSONResponse({"error": text}, status)

    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a box is given; its machines have none."""
        return Boot({})

    def state(self, rental: Rental, fraction: float) -> str:
        """Return a machine's state."""
        return "up"


def app() -> Starlette:
    """Return the whole cloud."""
    machines: dict[str, dict[str, Any]] = {}

    async def kinds(_: Request) -> Response:
        return JSONResponse({"kinds": [KIND, {**KIND, "id": "larger", "price": 0.9}]})

    async def create(request: Request) -> Response:
        body = await request.json()
        machine = {"id": str(len(machines) + 1), "label": body["label"], "gpu": KIND["gpu"], "price": KIND["price"]}
        machines[str(machine["id"])] = machine
        return JSONResponse({"machine": machine}, 201)

    async def listing(_: Request) -> Response:
        return JSONResponse({"machines": [*filter(None, machines.values())]})

    async def one(request: Request) -> Response:
        found = machines.get(request.path_params["id"])
        if not found:
            return JSONResponse({"error": "there is none"}, 404)
        if request.method == "DELETE":
            machines[request.path_params["id"]] = {}
        return JSONResponse({"machine": found})

    def guarded(handler: Any) -> Any:
        async def answer(request: Request) -> Response:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return JSONResponse({"error": "who are you?"}, 401)
            found: Response = await handler(request)
            return found

        return answer

    return Starlette(
        routes=[
            Route("/kinds", guarded(kinds)),
            Route("/machines", guarded(listing)),
            Route("/machines", guarded(create), methods=["POST"]),
            Route("/machines/{id}", guarded(one), methods=["GET", "DELETE"]),
        ]
    )
