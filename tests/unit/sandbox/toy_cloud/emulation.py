"""STAND-IN for a cloud that somebody adds: its HTTP API, and the row by which the sandbox's faults strike it."""

from __future__ import annotations

import re
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpuyard.sandbox.faulty import Api

KEY = "toy-key"
API = Api(
    "toy",  # type: ignore[arg-type]  # the sandbox's own clouds are listed by name
    "/toy",
    re.compile(r"POST /machines$"),
    re.compile(r"DELETE /machines/\d+$"),
    lambda: JSONResponse({"error": "slower"}, 429),
    lambda: JSONResponse({"error": "broken"}, 500),
)
KIND = {"id": "large", "gpu": "RTX 4090", "price": 0.5}


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
            Route("/toy/kinds", guarded(kinds)),
            Route("/toy/machines", guarded(listing)),
            Route("/toy/machines", guarded(create), methods=["POST"]),
            Route("/toy/machines/{id}", guarded(one), methods=["GET", "DELETE"]),
        ]
    )
