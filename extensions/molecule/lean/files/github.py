"""STAND-IN for github.com as elan 1 to 3 use it: the page with a release's files, and the files.

github.py FOLDER: FOLDER has key.pem and cert.pem, and lean-<version>-linux.tar.zst.
"""

import http.server
import ssl
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers what elan asks for."""

    def do_GET(self) -> None:
        """Answer the page of a release, or one of its files."""
        release = self.path.rsplit("/", 1)[-1]
        if "/releases/expanded_assets/" in self.path:
            name = f"lean-{release.removeprefix('v')}-linux.tar.zst"
            link = f"/leanprover/lean4/releases/download/{release}/{name}"
            content = f'<a href="{link}">{name}</a>'.encode() if (FOLDER / name).exists() else b""
        else:
            content = (FOLDER / release).read_bytes()
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(FOLDER / "cert.pem", FOLDER / "key.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Answer)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
