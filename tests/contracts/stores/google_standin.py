"""STAND-IN for Google Cloud Storage: the part of its XML interface that ``obstore`` speaks, in memory, without keys.

The emulators that can be had as packages speak Google's JSON interface only, and no client of that is used here. What
this shows is that our store and its library fit together; that the library fits Google is what its makers test.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "yard"
_TIME = "2026-01-01T00:00:00.000Z"
_PAGE = 1000


@dataclass
class Contents:
    """What the server holds: objects by key, with their generation, and the parts of unfinished uploads."""

    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    generations: Any = field(default_factory=lambda: itertools.count(1))
    lock: Any = field(default_factory=threading.Lock)


class _Answer(Exception):
    def __init__(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers


def _refusal(status: int, code: str) -> _Answer:
    return _Answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    contents: Contents

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            if bucket != BUCKET:
                raise _refusal(404, "NoSuchBucket")
            getattr(self, f"_{self.command.lower()}")(key, query, body)
        except _Answer as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _found(self, key: str) -> tuple[bytes, dict[str, str]]:
        if key not in self.contents.objects:
            raise _refusal(404, "NoSuchKey")
        data, generation = self.contents.objects[key]
        return data, {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "x_goog_generation": str(generation),
        }

    def _get(self, key: str, query: dict[str, str], body: bytes) -> None:
        if not key:
            raise _Answer(200, self._listing(query))
        data, headers = self._found(key)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            raise _Answer(206, data[first : last + 1], **headers)
        raise _Answer(200, data, **headers)

    def _head(self, key: str, query: dict[str, str], body: bytes) -> None:
        data, headers = self._found(key)
        raise _Answer(200, b"", Content_Length=str(len(data)), **headers)

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        items: list[str] = []
        folders: set[str] = set()
        more = last = ""
        with self.contents.lock:
            keys = sorted(key for key in self.contents.objects if key.startswith(prefix) and key > after)
        for key in keys:
            folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(prefix + folder + delimiter)
                continue
            if len(items) == _PAGE:
                more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
                break
            last = key
            data, headers = self._found(key)
            items.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{_TIME}</LastModified>"
                f"<ETag>{headers['ETag']}</ETag><Size>{len(data)}</Size></Contents>"
            )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)
        )
        return f"<ListBucketResult>{''.join(items)}{prefixes}{more}</ListBucketResult>".encode()

    def _put(self, key: str, query: dict[str, str], body: bytes) -> None:
        if upload := query.get("uploadId"):
            self.contents.uploads[upload][int(query["partNumber"])] = body
            raise _Answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        with self.contents.lock:
            if self.headers.get("x-goog-if-generation-match") == "0" and key in self.contents.objects:
                raise _refusal(412, "PreconditionFailed")
            self._keep(key, body)
        raise _Answer(200, **self._found(key)[1])

    def _keep(self, key: str, data: bytes) -> None:
        self.contents.objects[key] = data, next(self.contents.generations)

    def _post(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            upload = f"upload-{next(self.contents.generations)}"
            self.contents.uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            raise _Answer(200, text.encode())
        parts = self.contents.uploads.pop(query["uploadId"])
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        with self.contents.lock:
            self._keep(key, b"".join(parts[number] for number in numbers))
        text = "<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
        raise _Answer(200, text.encode(), **self._found(key)[1])

    def _delete(self, key: str, query: dict[str, str], body: bytes) -> None:
        if upload := query.get("uploadId"):
            self.contents.uploads.pop(upload, None)
            raise _Answer(204)
        with self.contents.lock:
            if self.contents.objects.pop(key, None) is None:
                raise _refusal(404, "NoSuchKey")
        raise _Answer(204)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve() -> ThreadingHTTPServer:
    """Return a server on a free port of loopback, which a thread of its own serves until it is shut down."""
    handler = type("Bound", (Handler,), {"contents": Contents()})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, name="STAND-IN for Google", daemon=True).start()
    return server
