# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the box's modules share: programs get the words they were given, and downloads trust whom the machine trusts."""

from __future__ import annotations

import datetime
import functools
import hashlib
import http.server
import importlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CONTENT = b"a program\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def box(run_module: Any) -> Any:
    return importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._box")


@pytest.fixture
def module() -> AnsibleModule:
    with patch_module_args({}):
        return AnsibleModule(argument_spec={})


def test_a_program_gets_its_words_and_its_variables(box: Any, module: AnsibleModule) -> None:
    command = ["sh", "-c", 'printf "%s " "$@" "$NAME"', "sh", "$HOME", "~", "*"]
    assert box.run(module, command, purpose="Saying", environment={"NAME": "value"}) == "$HOME ~ * value "


def test_a_program_that_fails_is_a_sentence_and_its_last_lines(box: Any, module: AnsibleModule) -> None:
    with pytest.raises(box.BoxError) as failed:
        box.run(module, ["sh", "-c", "echo out; printf 'bad \\377\\n' >&2; exit 3"], purpose="Trying")
    assert str(failed.value) == "Trying failed with exit code 3:\nout\n\nbad \ufffd" and failed.value.details == {
        "rc": 3
    }
    with pytest.raises(box.BoxError) as missing:
        box.run(module, ["/nowhere/program"], purpose="Trying")
    assert str(missing.value) == "Trying failed: /nowhere/program: No such file or directory."


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a log, and says what it was sent besides."""

    credentials: list[str | None] = []

    def do_GET(self) -> None:
        """Serve a file."""
        self.credentials.append(self.headers["Authorization"])
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the addresses of one file by http and by https, and the certificate of the latter."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/program").write_bytes(CONTENT)
    Quiet.credentials.clear()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    trusted = certificate(tmp_path)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as plain,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as encrypted,
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trusted)
        encrypted.socket = context.wrap_socket(encrypted.socket, server_side=True)
        for server in (plain, encrypted):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "http": f"http://127.0.0.1:{plain.server_address[1]}/program",
            "https": f"https://127.0.0.1:{encrypted.server_address[1]}/program",
            "certificate": str(trusted),
        }
        for server in (plain, encrypted):
            server.shutdown()


def test_a_download_trusts_whom_the_machine_trusts(
    box: Any, servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "_ATTEMPTS", 1)
    target = tmp_path / "program"
    box.download(servers["http"], target, ["0" * 64, SHA256])
    assert target.read_bytes() == CONTENT
    monkeypatch.setenv("SSL_CERT_FILE", servers["certificate"])
    target.unlink()
    box.download(servers["https"], target, [SHA256])
    assert target.read_bytes() == CONTENT
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(box.BoxError, match=r"cannot be fetched after 1 attempts: .*certificate verify failed"):
        box.download(servers["https"], target, [SHA256])


def test_a_download_brings_no_password_along(
    box: Any, servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password canary-netrc-51d0c7\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    box.download(servers["http"], tmp_path / "program", [SHA256])
    assert Quiet.credentials == [None]


def test_a_download_that_differs_leaves_nothing(box: Any, servers: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "program"
    with pytest.raises(box.BoxError, match=f"has the SHA-256 {SHA256}, but {'0' * 64} is pinned"):
        box.download(servers["http"], target, ["0" * 64])
    assert not target.exists()
    with pytest.raises(box.BoxError, match="cannot be fetched: the server answered 404"):
        box.download(servers["http"] + "-gone", target, [SHA256])
