"""A stand-in for a provider's HTTP service: real sockets on loopback, answers as scripted by a test.

The faithful emulation of the clouds is the sandbox. This one only has to answer wrongly on demand: lose an answer after
acting, refuse in plain text, repeat pages, echo the key.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Request:
    method: str
    path: str
    params: dict[str, str]
    headers: Mapping[str, str]
    body: Any  # decoded JSON, None without one
    connection: int = 0  # the client's port


@dataclass
class Reply:
    body: Any = None  # JSON; a str is sent as plain text
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


LOST = Reply(status=-1)
"""The service has acted and the connection breaks before the answer."""

Handler = Callable[[Request], Reply]


class Standin:
    """Answers each request by the longest route that its path begins with; keeps every request in ``seen``."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.routes: dict[tuple[str, str], Handler] = {}
        self.lock = threading.Lock()
        self.url = ""

    def on(self, method: str, path: str, *replies: Reply | Handler) -> None:
        """Answer a route with ``replies`` one after the other; the last one goes on for ever."""
        rest = list(replies)

        def handle(request: Request) -> Reply:
            with self.lock:
                reply = rest.pop(0) if len(rest) > 1 else rest[0]
            return reply(request) if callable(reply) else reply

        self.routes[method, path] = handle

    def calls(self, method: str, path: str = "") -> list[Request]:
        return [request for request in self.seen if request.method == method and request.path.startswith(path)]

    def answer(self, request: Request) -> Reply:
        with self.lock:
            self.seen.append(request)
        fits = [route for route in self.routes if route[0] == request.method and request.path.startswith(route[1])]
        if not fits:
            return Reply({"success": False, "msg": "Not found", "error": "Not found."}, 404)
        return self.routes[max(fits, key=lambda route: len(route[1]))](request)


@contextmanager
def serve(standin: Standin) -> Iterator[Standin]:
    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
            request.connection = self.client_address[1]
            reply = standin.answer(request)
            if reply.status < 0:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            data = b"" if reply.body is None else reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            data = data.encode() if isinstance(data, str) else data
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
