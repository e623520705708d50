"""The one piece of middleware that lets requests fail, in the words of the cloud that they are for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuyard.sandbox import faults
from gpuyard.sandbox.model import Fault, ProviderName
from gpuyard.sandbox.web import LostAnswer

Take = Callable[[ProviderName, str, str], Fault | None]


@dataclass(frozen=True, slots=True)
class Api:
    """What one cloud's requests look like, as ``METHOD /path``, and how it words its failures."""

    provider: ProviderName
    path: str  # below which its API is
    create: re.Pattern[str]
    destroy: re.Pattern[str]
    throttled: Callable[[], Response]
    broken: Callable[[], Response]
    read: re.Pattern[str] = re.compile("GET ")  # what changes nothing

    def place(self, request: str) -> str:
        """Return which of :data:`gpuyard.sandbox.faults.Place` a request is."""
        for name, pattern in (("create", self.create), ("destroy", self.destroy), ("read", self.read)):
            if pattern.match(request):
                return name
        return "write"


def _lambda(status: int, code: str, message: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": {"code": f"global/{code}", "message": message}}, status)


def _runpod(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Callable[[], Response]:
    body = {"title": title, "status": status, "detail": detail}
    return lambda: JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def _vultr(status: int, text: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": text, "status": status}, status)


APIS = (
    Api(
        "vast",
        "/api",
        re.compile(r"PUT /v0/(asks/\d+|volumes)/?$"),
        re.compile(r"DELETE /v0/(instances(/\d+)?|volumes)/?$"),
        lambda: PlainTextResponse("API requests too frequent", 429),
        lambda: PlainTextResponse("<html><body>502 Bad Gateway</body></html>", 502, media_type="text/html"),
        re.compile(r"GET |POST /v0/bundles$|PUT /v0/search/asks$"),
    ),
    Api(
        "vultr",
        "/v2",
        re.compile(r"POST /(instances|bare-metals|blocks|snapshots)$"),
        re.compile(r"DELETE /(instances|bare-metals|blocks|snapshots)/[^/]+$"),
        _vultr(429, "Rate limit exceeded."),
        _vultr(503, "Service unavailable."),
    ),
    Api(
        "lambda",
        "/lambda/api/v1",
        re.compile(r"POST /(instance-operations/launch|filesystems)$"),
        re.compile(r"(POST /instance-operations/terminate|DELETE /filesystems/[^/]+)$"),
        _lambda(429, "too-many-requests", "Too many requests."),
        _lambda(500, "internal-error", "An internal error occurred."),
    ),
    Api(
        "runpod",
        "/runpod/v2",
        re.compile(r"POST /(pods|network-volumes)$"),
        re.compile(r"DELETE /(pods|network-volumes)/[^/]+$"),
        _runpod(429, "Too Many Requests", "rate limit exceeded", {"Retry-After": "1"}),
        _runpod(500, "Internal Server Error", "internal error"),
    ),
)


class Faulty:
    """Lets requests fail as the faults say that ``take`` returns for a provider, a fault's name and a place."""

    def __init__(self, app: ASGIApp, take: Take, apis: Sequence[Api] = APIS) -> None:
        self._app = app
        self._take = take
        self._apis = apis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the cloud's place, or let it answer and then change what of that arrives."""
        api = next((one for one in self._apis if _is_below(scope, one.path)), None)
        if api is None:
            await self._app(scope, receive, send)
            return
        place = api.place(f"{scope['method']} {scope['path'].removeprefix(api.path)}")
        instead: dict[str, Callable[[], Response]] = {
            "no-network": LostAnswer,
            "throttle": api.throttled,
            "server-error": api.broken,
            "lost-answer": LostAnswer,
            "error-after": api.broken,
        }
        for kind, answer in instead.items():
            if not faults.KINDS[kind].after and self._take(api.provider, kind, place):
                await answer()(scope, receive, send)
                return
        if place == "read":
            await self._app(scope, receive, send)
            return
        answered: list[Message] = []

        async def keep(message: Message) -> None:
            answered.append(message)

        await self._app(scope, receive, keep)
        if answered[0]["status"] < 400:
            if self._take(api.provider, "slow-answer", place):
                await asyncio.sleep(faults.SLOW_ANSWER_S)
            for kind in ("lost-answer", "error-after"):
                if self._take(api.provider, kind, place):
                    await instead[kind]()(scope, receive, send)
                    return
        for message in answered:
            await send(message)


def _is_below(scope: Scope, path: str) -> bool:
    return scope["type"] == "http" and str(scope["path"]).startswith(f"{path}/")
