"""A STAND-IN for the Hugging Face Hub: the parts of its HTTP API with which the real ``hf`` downloads a model.

It runs in a container of the sandbox, by itself and with the standard library only. Every repository is there, at every
revision that is a whole commit, with the same kinds of files, whose content is made from the repository's name and the
revision. What can go wrong goes wrong by the repository's name, once for each file and client:

- ``cut`` in the name: the connection ends in the middle of a large file;
- ``hanging`` in the name: the connection stands still in the middle of a large file, for a minute;
- ``damaged`` in the name: one byte of a large file is another one;
- ``gated`` in the name: nobody gets it without the token :data:`TOKEN`;
- ``absent`` in the name: there is no such repository.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_sandboxSandboxSandboxSandbox"
"""The token that opens gated repositories. It opens nothing else."""
LARGE = "model.safetensors"
_LARGE_BYTES = 12 << 20
_PAGE = 2
_REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"
_TREE = re.compile(rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[0-9a-f]{{40}})")
_FILE = re.compile(rf"/{_REPOSITORY}/resolve/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@lru_cache(maxsize=8)
def content(repository: str, revision: str) -> dict[str, bytes]:
    """Return the files of a repository: path to content. The large one is 12 MiB that no compression makes smaller."""
    seed = f"{repository}@{revision}".encode()
    return {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": f"A stand-in for {repository}.\n".encode(),
        "config.json": json.dumps({"model_type": "stand-in", "name": repository}, indent=1).encode(),
        "tokenizer/vocab.txt": b"\n".join(b"word%d" % number for number in range(1000)),
        LARGE: hashlib.shake_256(seed).digest(_LARGE_BYTES),
    }


def blob_sha1(data: bytes) -> str:
    """Return what git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server, which remembers what has gone wrong already and counts the bytes of files that it has sent."""

    daemon_threads = True
    hanging_s = 60.0

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)
        self.done: set[tuple[str, ...]] = set()
        self.sent = 0
        self.lock = threading.Lock()

    def first_time(self, *what: str) -> bool:
        """Tell whether this is asked for the first time."""
        with self.lock:
            new = what not in self.done
            self.done.add(what)
        return new


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the list of a revision's files, or with a file or a range of it."""
        path = unquote(urlsplit(self.path).path)
        if found := _TREE.fullmatch(path):
            if self._lets_in(found["repository"]):
                self._send_tree(content(found["repository"], found["revision"]))
        elif found := _FILE.fullmatch(path):
            if self._lets_in(found["repository"]):
                self._send_file(found["repository"], found["revision"], found["path"])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", "The stand-in has no such address.")

    do_HEAD = do_GET

    def _lets_in(self, repository: str) -> bool:
        if "absent" in repository:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        elif "gated" in repository and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            text = f"Access to model {repository} is restricted. You must have access to it and be authenticated."
            self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo", text)
        else:
            return True
        return False

    def _send_tree(self, files: Mapping[str, bytes]) -> None:
        """Send two entries a page, so that a client that reads one page only is found out."""
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        entries: list[dict[str, Any]] = []
        for path, data in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_sha1(data)}
            if path == LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        body = json.dumps(entries[start : start + _PAGE]).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        if start + _PAGE < len(entries):
            address = f"http://{self.headers['Host']}{urlsplit(self.path).path}"
            self.send_header("Link", f'<{address}?recursive=true&expand=false&cursor={start + _PAGE}>; rel="next"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, repository: str, revision: str, path: str) -> None:
        data = content(repository, revision).get(path)
        if data is None:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
            return
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2] or len(data) - 1) + 1, len(data)) if asked else len(data)
        if start >= len(data) > 0:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", "Out of range")
            return
        is_large = path == LARGE
        etag = hashlib.sha256(data).hexdigest() if is_large else blob_sha1(data)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("X-Repo-Commit", revision)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if is_large:
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{etag}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = data[start:end]
        client = self.client_address[0]
        if is_large and "damaged" in repository and self.server.first_time("damaged", client, repository, path):
            body = bytes([body[0] ^ 1]) + body[1:]
        if is_large and "cut" in repository and self.server.first_time("cut", client, repository, path):
            body = body[: len(body) // 2]
            self.close_connection = True
        rest = b""
        if is_large and "hanging" in repository and self.server.first_time("hanging", client, repository, path):
            body, rest = body[: len(body) // 2], body[len(body) // 2 :]
        with suppress(ConnectionError):  # a client that was killed
            self._write(body)
            if rest:
                time.sleep(self.server.hanging_s)
                self._write(rest)

    def _write(self, body: bytes) -> None:
        with self.server.lock:
            self.server.sent += len(body)
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, code: str, text: str) -> None:
        body = json.dumps({"error": text}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say what was asked for, never with which token."""
        print(self.command, self.path, *args[1:2], file=sys.stderr, flush=True)


def main() -> None:
    """Serve on the port that is the only argument."""
    Hub(("", int(sys.argv[1]))).serve_forever()


if __name__ == "__main__":
    main()
