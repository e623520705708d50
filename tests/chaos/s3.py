"""A real S3 server on loopback, and a proxy before it that does what networks and servers do on a bad day."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from botocore.config import Config

from gpuyard.sandbox.services import weed

ACCESS_KEY, SECRET_KEY = "chaos-access", "chaos-secret-of-loopback"
BUCKET = "chaos"
_READY_S = 120.0
_SLOW_S = 0.4


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run SeaweedFS with its data in ``folder``, and yield the endpoint of its S3 server, which has one bucket."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = _free_ports(8)
    folder.mkdir(parents=True)
    command = [
        *(str(weed()), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64"),
        *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=0"),
        *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
        *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (folder.parent / "seaweedfs.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            endpoint = f"http://127.0.0.1:{s3}"
            _make_bucket(endpoint, server)
            yield endpoint
        finally:
            server.kill()
            server.wait()


def _make_bucket(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            return
        except Exception as error:  # whatever a server says that begins
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS does not start: {error}") from error
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Proxy:
    """Passes requests on to an S3 server, but for what ``fault`` says.

    ``fault`` is "" (none), ``slow``, ``errors`` (500), ``down`` (connections end at once), ``cut`` (half a request gets
    through, or half an answer) or ``full`` (nothing can be stored). ``before`` and ``after`` are called around each
    request with its number since they were set.
    """

    target: str
    fault: str = ""
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> str:
        """Listen on a free port, and return the endpoint."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def _pass_on(self) -> None:
        proxy = self.owner
        with proxy.lock:
            proxy.requests += 1
            number, fault = proxy.requests, proxy.fault
        if fault == "down":
            self._hang_up()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(_SLOW_S)
        if fault == "errors" or (fault == "full" and self.command in ("PUT", "POST")):
            code, word = (500, "InternalError") if fault == "errors" else (507, "InsufficientStorage")
            self._answer(code, f"<Error><Code>{word}</Code></Error>".encode(), {"Content-Type": "application/xml"})
            return
        if fault == "cut" and number % 2:
            self._hang_up()
            return
        proxy.before()
        status, headers, data = self._ask(body)
        proxy.after()
        if fault == "cut":
            self._answer(status, data, headers, cut=len(data) // 2)
            self._hang_up()
            return
        self._answer(status, data, headers)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.owner.target.partition("//")[2], timeout=60)
        try:
            # The signature covers the host as the client knows it.
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if cut is None else data[:cut])

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Take requests; a client that is killed in the middle of one is what this is for."""
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on
