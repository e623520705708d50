"""What the APIs share over HTTP: JSON bodies and their limit, ids, answers that get lost, per-endpoint rate limits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuyard.sandbox import fields
from gpuyard.sandbox.model import Json

_LONGEST_ID = 18  # digits


class BadBody(Exception):
    """The request's body is not a JSON object."""


async def read_json(request: Request) -> Json:
    """Return the body as an object; an empty body is an empty object."""
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        data = fields.parse(raw)
    except ValueError:
        raise BadBody from None
    if not isinstance(data, dict):
        raise BadBody
    return data


class Id(Convertor[int]):
    """A number in a path. One that is longer than any id stands for an id that nothing has."""

    regex = "[0-9]+"

    def convert(self, value: str) -> int:
        """Return the number; Python itself reads a few thousand digits at most."""
        return int(value) if len(value) <= _LONGEST_ID else -1

    def to_string(self, value: int) -> str:
        """Return the number as it stands in a path."""
        return str(value)


register_url_convertor("id", Id())


async def no_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what no route of an API takes: not with 404, which clients would take for "there is none"."""
    raise HTTPException(501)


class BodyLimit:
    """Answers 413 to a body that is larger than :data:`gpuyard.sandbox.fields.MOST_BYTES`, and reads no more of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what comes of its body: not every request declares a length."""
        declared = dict(scope["headers"]).get(b"content-length", b"") if scope["type"] == "http" else b""
        # What is no number is the server's to refuse.
        read = int(declared[:_LONGEST_ID]) if declared.isdigit() else 0
        if read <= fields.MOST_BYTES:
            read = 0

        async def limited() -> Message:
            nonlocal read
            if read <= fields.MOST_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
            if read > fields.MOST_BYTES:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


class LostAnswer(Response):
    """An answer of which the client sees the first line at most: the connection ends where the body should begin."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Promise a body, then end without one; the server has to drop the connection."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"64")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


class Spacing:
    """A least time between calls of one kind, as Vast enforces it (docs/reference/vast.md, Limits)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def allows(self, kind: str, seconds: float) -> bool:
        """Return whether a call of this kind may happen now; a refused call does not count."""
        now = self._clock()
        if now - self._last.get(kind, float("-inf")) < seconds:
            return False
        self._last[kind] = now
        return True


class Rate:
    """A number of calls in any such time, as Vultr enforces it, and Vast for its search."""

    def __init__(self, calls: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls = calls
        self._seconds = seconds
        self._clock = clock
        self._times: deque[float] = deque()

    def allows(self) -> bool:
        """Return whether one more call may happen now."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._seconds:
            self._times.popleft()
        if len(self._times) >= self._calls:
            return False
        self._times.append(now)
        return True


class SlashInsensitive:
    """Lets paths match with or without their trailing slash, as Vast's front end does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its path without the slash."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/")}
        await self._app(scope, receive, send)
