"""Real servers on loopback for each kind of bucket, and a stand-in for the one that cannot be had."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from gpuyard.box.checkpoints import open_store
from gpuyard.errors import CheckpointError

from . import google_standin

BUCKET = "yard"
ACCOUNT = "devstoreaccount1"
# The key that every Azurite has.
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_START_S = 120
_TOOLS = Path(__file__).resolve().parents[3] / ".tools"


@dataclass(frozen=True)
class Server:
    """A bucket: its address, and the variables with which it is opened."""

    url: str
    env: Mapping[str, str]


def _program(name: str, *places: Path) -> str:
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ["PATH"]]))
    if not found:
        pytest.skip(f"there is no {name} here, which `make test` brings where it can be had")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def _running(command: list[str], ready: Callable[[], bool], env: Mapping[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not ready():
                assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} does not start"
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


@contextmanager
def folder(place: Path) -> Iterator[Server]:
    """A folder."""
    yield Server((place / BUCKET).as_uri(), {})


@contextmanager
def s3(place: Path) -> Iterator[Server]:
    """SeaweedFS, the sandbox's own bucket."""
    weed = _program("weed", Path(sys.executable).parent)
    parts = ("s3", "master", "volume", "filer", "admin")
    ports = iter(_free_ports(2 * len(parts)))
    chosen = [f"-{part}.port{kind}={next(ports)}" for part in parts for kind in ("", ".grpc")]
    flags = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    keys = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    env = keys | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{chosen[0].partition('=')[2]}"}
    server = Server(f"s3://{BUCKET}", env)

    def ready() -> bool:
        try:
            open_store(server.url, env=env).put("ready", b"")
        except CheckpointError:
            return False
        return True

    place.mkdir()
    words = [weed, "mini", f"-dir={place}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", *chosen, *flags]
    with _running(words, ready, keys):
        yield server


def _answers(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False


@contextmanager
def azure(place: Path) -> Iterator[Server]:
    """Azurite, Microsoft's own emulator."""
    azurite = _program("azurite-blob", _TOOLS / "azurite/node_modules/.bin")
    (port,) = _free_ports(1)
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    string = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={address};"
    words = [azurite, "--silent", "--skipApiVersionCheck", "--location", str(place), "--blobPort", str(port)]
    with _running(words, lambda: _answers(port), {}):
        rclone = _program("rclone", Path(sys.executable).parent)
        env = {"RCLONE_CONFIG": os.devnull, "RCLONE_AZUREBLOB_CONNECTION_STRING": string}
        subprocess.run([rclone, "mkdir", f":azureblob:{BUCKET}"], env={**os.environ, **env}, check=True, timeout=60)
        yield Server(f"az://{BUCKET}", {"AZURE_STORAGE_CONNECTION_STRING": string})


@contextmanager
def google(place: Path) -> Iterator[Server]:
    """STAND-IN for Google: the emulators that can be had do not speak the interface that is used."""
    server = google_standin.serve()
    try:
        yield Server(f"gs://{BUCKET}", {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{server.server_address[1]}"})
    finally:
        server.shutdown()
        server.server_close()


KINDS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "folder": folder,
    "s3": s3,
    "azure": azure,
    "google": google,
}


def container_token(rights: str, *, hours: float = 1) -> str:
    """Return a token (SAS) of Azure's for the one container, as its portal makes it."""
    version = "2020-12-06"
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + hours * 3600))
    # rights, start, end, resource, identifier, addresses, protocol, version, kind, snapshot, scope, and five headers
    signed = [rights, "", until, f"/blob/{ACCOUNT}/{BUCKET}", "", "", "", version, "c", "", "", *[""] * 5]
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), "\n".join(signed).encode(), hashlib.sha256).digest()
    fields = {"sv": version, "se": until, "sr": "c", "sp": rights, "sig": base64.b64encode(digest).decode()}
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items())
