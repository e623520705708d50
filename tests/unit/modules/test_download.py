# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Downloads go on where they were cut, take only what belongs together, and trust whom the machine trusts.

The server is a real one on loopback, which does on demand what servers, proxies and networks do.
"""

from __future__ import annotations

import datetime
import hashlib
import http.server
import importlib
import ipaddress
import json
import os
import re
import resource
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, at any path but ``/gone``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.tag = '"1"'
        self.cuts: list[int] = []  # after how many bytes the next answers break off
        self.busy = 0  # how many answers are 503
        self.knows_ranges = True
        self.heeds_conditions = True
        self.shift = 0  # so many bytes before what was asked for
        self.asked: list[tuple[str | None, str | None]] = []
        self.credentials: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/program"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted, condition = self.server, self.headers["Range"], self.headers["If-Range"]
        server.asked.append((wanted, condition))
        server.credentials.append(self.headers["Authorization"])
        if server.busy:
            server.busy -= 1
            self.send_error(503)
            return
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        same = not condition or condition == server.tag or not server.heeds_conditions
        begin = 0
        if wanted and server.knows_ranges and same:
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) - server.shift
            if begin >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """Return the pauses that were made."""
    return []


@pytest.fixture
def download(run_module: Any, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Any:
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._download")
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    return module


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder/program"


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


def leave(target: Path, content: bytes, **note: str) -> None:
    """Have what a killed command has left."""
    target.with_name("program.part").write_bytes(content)
    if note:
        target.with_name("program.part.from").write_text(json.dumps(note))


def test_a_file_comes_whole_and_leaves_nothing_else(
    download: Any, server: Server, target: Path, pauses: list[float]
) -> None:
    came: list[int] = []
    download.fetch(server.url, target, ["0" * 64, SHA256], received=came.append)
    assert target.read_bytes() == CONTENT and left(target) == {"program"}
    assert sum(came) == len(CONTENT) and server.asked == [(None, None)] and pauses == []
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT


def test_one_that_is_cut_in_the_middle_goes_on(
    download: Any, server: Server, target: Path, pauses: list[float]
) -> None:
    """As long as anything comes, however often it is cut."""
    server.cuts = [20_000] * 9
    download.fetch(server.url, target, [SHA256])
    assert target.read_bytes() == CONTENT
    assert server.asked[:3] == [(None, None), ("bytes=20000-", '"1"'), ("bytes=40000-", '"1"')]
    assert pauses == [1.0] * 9


def test_one_that_gives_nothing_is_given_up(download: Any, server: Server, target: Path, pauses: list[float]) -> None:
    server.cuts = [HALF] + [0] * 9
    sentence = f"{server.url} cannot be fetched after 4 attempts: the connection ended after {HALF} of 300000 bytes."
    with pytest.raises(download._box.BoxError, match=f"^{re.escape(sentence)}$"):
        download.fetch(server.url, target)
    assert pauses == [1.0, 2.0, 4.0]
    server.cuts = []
    download.fetch(server.url, target)
    assert server.asked[-1] == (f"bytes={HALF}-", '"1"') and target.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(download: Any, server: Server, target: Path) -> None:
    server.busy = 3
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    server.busy = 4
    with pytest.raises(download._box.BoxError, match="after 4 attempts: the server answered 503 Service Unavailable"):
        download.fetch(server.url, target)


@pytest.mark.parametrize("heeds_conditions", [True, False])
def test_a_file_that_has_changed_begins_anew(
    download: Any, server: Server, target: Path, heeds_conditions: bool
) -> None:
    server.heeds_conditions = heeds_conditions
    leave(target, b"x" * HALF, url=server.url, validator='"0"')
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT and left(target) == {"program"}
    assert server.asked[0] == (f"bytes={HALF}-", '"0"')


def test_the_bytes_of_another_range_are_not_taken(download: Any, server: Server, target: Path) -> None:
    server.shift = 7
    leave(target, CONTENT[:HALF], url=server.url, validator='"1"')
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT and server.asked[-1] == (None, None)


def test_a_server_that_knows_no_ranges_sends_all_of_it(download: Any, server: Server, target: Path) -> None:
    server.knows_ranges = False
    leave(target, CONTENT[:HALF], url=server.url, validator='"1"')
    download.fetch(server.url, target, [SHA256])
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("note", "accepted"),
    [
        ({"url": "another"}, [SHA256]),  # of another address
        ({}, []),  # of whatever it was, and no checksum tells
    ],
)
def test_what_may_be_of_another_file_is_not_used(
    download: Any, server: Server, target: Path, note: dict[str, str], accepted: list[str]
) -> None:
    leave(target, CONTENT[:HALF], **note)
    download.fetch(server.url, target, accepted)
    assert server.asked == [(None, None)] and target.read_bytes() == CONTENT


def test_with_a_checksum_any_rest_will_do(download: Any, server: Server, target: Path) -> None:
    """Without a word of the server's: what does not fit is fetched anew, once."""
    server.tag = ""
    leave(target, CONTENT[:HALF])
    download.fetch(server.url, target, [SHA256])
    assert server.asked == [(f"bytes={HALF}-", None)] and target.read_bytes() == CONTENT
    leave(target, b"x" * HALF)
    download.fetch(server.url, target, [SHA256])
    assert server.asked[1:] == [(f"bytes={HALF}-", None), (None, None)] and target.read_bytes() == CONTENT


def test_what_is_whole_already_is_not_fetched_again(download: Any, server: Server, target: Path) -> None:
    leave(target, CONTENT, url=server.url, validator='"1"')
    download.fetch(server.url, target, [SHA256])
    assert target.read_bytes() == CONTENT and server.asked == [(f"bytes={len(CONTENT)}-", '"1"')]
    leave(target, CONTENT + b"more", url=server.url, validator='"1"')
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(download: Any, server: Server, target: Path) -> None:
    with pytest.raises(download.WrongChecksumError, match=f"has the SHA-256 {SHA256}, but {'0' * 64} is pinned"):
        download.fetch(server.url, target, ["0" * 64])
    assert left(target) == set() and len(server.asked) == 1


def test_a_file_that_is_not_there_is_told_at_once(download: Any, server: Server, target: Path) -> None:
    address = server.url.replace("127.0.0.1", "me:canary-90@127.0.0.1").replace("/program", "/gone?signed=canary-90")
    with pytest.raises(download._box.BoxError, match="/gone cannot be fetched: the server answered 404") as failed:
        download.fetch(address, target)
    assert len(server.asked) == 1 and "canary" not in str(failed.value) and left(target) == set()


def test_a_full_disk_is_one_sentence_and_what_has_come_stays(download: Any, server: Server, target: Path) -> None:
    """The file may have only so many bytes here, which a program sees as it sees a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(download._box.BoxError) as failed:
            download.fetch(server.url, target, [SHA256])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(failed.value) == (f"{server.url} cannot be fetched: File too large in {target.parent}; make room there.")
    assert len(server.asked) == 1 and "program.part" in left(target)
    download.fetch(server.url, target, [SHA256])
    assert target.read_bytes() == CONTENT and server.asked[-1] == ("bytes=100000-", '"1"')


def test_a_file_of_the_machine_is_an_address_too(
    download: Any, target: Path, tmp_path: Path, pauses: list[float]
) -> None:
    (tmp_path / "here").write_bytes(CONTENT)
    download.fetch((tmp_path / "here").as_uri(), target, [SHA256])
    assert target.read_bytes() == CONTENT
    with pytest.raises(download._box.BoxError, match=r"/none cannot be fetched: .*No such file or directory.*\.$"):
        download.fetch((tmp_path / "none").as_uri(), target)
    assert pauses == []


def test_the_play_can_see_how_far_it_is(
    download: Any, server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._progress")
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_SHARE", 0)
    monkeypatch.setattr(progress, "_write", written.append)
    monkeypatch.setattr(download, "_BLOCK", 100_000)
    download.fetch(server.url, target)
    assert [(record["done"], record["total"]) for record in written] == [
        (number * 100_000, 300_000) for number in (1, 2, 3)
    ]
    assert written[0]["what"] == "fetching program"


def certificate(folder: Path) -> Path:
    """Write a certificate for loopback that only those trust who are told to, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of its own")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(signed.public_bytes(encoding) + secret)
    return file


def test_a_download_trusts_whom_the_machine_trusts(
    download: Any, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    encrypted = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted := certificate(tmp_path))
    encrypted.socket = context.wrap_socket(encrypted.socket, server_side=True)
    with serving(encrypted):
        url = encrypted.url.replace("http:", "https:")
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        download.fetch(url, target, [SHA256])
        assert target.read_bytes() == CONTENT
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(download._box.BoxError, match=r"cannot be fetched: .*certificate verify failed"):
            download.fetch(url, target, [SHA256])


def test_a_download_brings_no_password_along(
    download: Any, server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password canary-netrc-51d0c7\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    download.fetch(server.url, target, [SHA256])
    assert server.credentials == [None]
