# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A git server over https that wants a user and a token: git's own ``http-backend`` behind TLS, on loopback.

Also a program, for a machine without this repository: ``private_forge.py FOLDER CERTIFICATE KEY USER TOKEN PORT``.
"""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Forge(ThreadingHTTPServer):
    """Serves the repositories below a folder; ``seen`` are the Authorization headers, ``""`` for none."""

    daemon_threads = True

    def __init__(self, folder: Path, certificate: Path, key: Path, user: str, token: str, port: int = 0) -> None:
        super().__init__(("", port), _Request)
        self.folder = folder
        self.wanted = "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()
        self.seen: list[str] = []
        self.hold = threading.Event()
        self.hold.set()  # cleared: an answer waits
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a client that was killed is part of the tests."""


class _Request(BaseHTTPRequestHandler):
    server: Forge

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        self.server.seen.append(given)
        if given != self.server.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.hold.wait(30)
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "somebody",
        }
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        backend = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False)
        head, _, content = backend.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def main() -> None:
    folder, certificate, key, user, token, port = sys.argv[1:]
    Forge(Path(folder), Path(certificate), Path(key), user, token, int(port)).serve_forever()


if __name__ == "__main__":
    main()
