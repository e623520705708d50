"""The one piece of middleware that lets requests fail, in the words of the cloud that they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuyard.sandbox import faults
from gpuyard.sandbox.clouds.emulated import EmulatedCloud
from gpuyard.sandbox.model import Fault, ProviderName
from gpuyard.sandbox.web import LostAnswer

Take = Callable[[ProviderName, str, str], Fault | None]


class Faulty:
    """Lets requests fail as the faults say that ``take`` returns for a provider, a fault's name and a place."""

    def __init__(self, app: ASGIApp, take: Take, clouds: Sequence[EmulatedCloud]) -> None:
        self._app = app
        self._take = take
        self._clouds = clouds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the cloud's place, or let it answer and then change what of that arrives."""
        api = next((one for one in self._clouds if _is_below(scope, one.path)), None)
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
            if not faults.KINDS[kind].after and self._take(api.name, kind, place):
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
            if self._take(api.name, "slow-answer", place):
                await asyncio.sleep(faults.SLOW_ANSWER_S)
            for kind in ("lost-answer", "error-after"):
                if self._take(api.name, kind, place):
                    await instead[kind]()(scope, receive, send)
                    return
        for message in answered:
            await send(message)


def _is_below(scope: Scope, path: str) -> bool:
    return scope["type"] == "http" and str(scope["path"]).startswith(f"{path}/")
