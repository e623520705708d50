"""A sandbox's identity: its name, ports and throw-away keys, chosen once and kept in ``settings.json``."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpuyard.errors import UsageError
from gpuyard.files import write_whole
from gpuyard.sandbox.documents import VERSION, known, read_document

BUCKET = "gpuyard"
LOOPBACK = "127.0.0.1"
CLOUDS_FROM_BOXES = "http://clouds:8070"
"""The emulated clouds as a rented box reaches them: only those that give an instance a key of its own are of use."""
HIGH_PORTS = range(20_000, 32_000)  # below the range from which Linux takes ports for outgoing connections
_ATTEMPTS = 50
_FILE = "settings.json"


@dataclass(slots=True)
class Settings:
    """What stays the same while a state folder lives."""

    name: str = field(default_factory=lambda: secrets.token_hex(3))
    port: int = 0  # 0: not chosen yet
    boot_seconds: float = 3.0
    rate_limits: bool = False
    offers: int = 0  # how many machines more there are at Vast.ai than the catalogue has
    seed: int = 0  # which ones
    s3_port: int = 0
    vast_key: str = field(default_factory=lambda: "sandbox-vast-" + secrets.token_hex(24))
    vultr_key: str = field(default_factory=lambda: "sandbox-vultr-" + secrets.token_hex(24))
    lambda_key: str = field(default_factory=lambda: "sandbox-lambda-" + secrets.token_hex(24))
    runpod_key: str = field(default_factory=lambda: "sandbox-runpod-" + secrets.token_hex(24))
    control_key: str = field(default_factory=lambda: "sandbox-control-" + secrets.token_hex(24))
    s3_access_key: str = field(default_factory=lambda: "SANDBOX" + secrets.token_hex(6).upper())
    s3_secret_key: str = field(default_factory=lambda: secrets.token_hex(24))
    engine: str = ""  # what runs its containers: "podman" or "docker"; "": not chosen yet
    rust_mirror: str = ""  # the mirror's address from inside a box; "": there is none

    @property
    def network(self) -> str:
        """The name of the network that all of this sandbox's containers share."""
        return f"gpuyard-{self.name}"

    def instance_key(self, provider: str, rental_id: str) -> str:
        """Return the key that a cloud gives to one instance of its own: it may look at, stop and destroy that one."""
        account = {"vast": self.vast_key, "runpod": self.runpod_key}[provider]
        digest = hmac.new(account.encode(), f"{provider}/{rental_id}".encode(), hashlib.sha256).hexdigest()
        return f"sandbox-instance-{digest}"

    def save(self, state: Path) -> None:
        """Keep the settings in the state folder, readable by the owner only."""
        write_whole(state / _FILE, json.dumps({"version": VERSION, **asdict(self)}, indent=1), durable=True)

    @classmethod
    def load(cls, state: Path) -> Settings | None:
        """Return the settings kept in ``state``, ``None`` when no sandbox was ever started there."""
        file = state / _FILE
        document = read_document(file, "settings")
        try:
            return None if document is None else cls(**known(cls, document))
        except TypeError as error:
            raise UsageError(
                f"{file} is not a sandbox's settings file ({error}); remove the folder and start again."
            ) from None

    def sandbox_json(self, pid: int, base_paths: Mapping[str, str]) -> dict[str, object]:
        """Return the content of ``sandbox.json``: everything that a client of this sandbox needs.

        ``base_paths`` has, by cloud, what its clients are given below the server's address.
        """
        root = f"http://{LOOPBACK}:{self.port}"
        boxes = {"s3": "http://bucket:8333", "hub": "http://hub:8090"}
        boxes |= {"vast": CLOUDS_FROM_BOXES, "runpod": f"{CLOUDS_FROM_BOXES}/runpod/v2"}
        if self.rust_mirror:
            boxes["rust_mirror"] = self.rust_mirror
        return {
            "version": VERSION,
            "pid": pid,
            "name": self.name,
            "endpoints": {
                **{name: f"{root}{path}" for name, path in base_paths.items()},
                "s3": f"http://{LOOPBACK}:{self.s3_port}",
                "control": f"{root}/sandbox",
            },
            "from_boxes": boxes,
            "keys": {
                **{name: getattr(self, f"{name}_key") for name in base_paths},
                "control": self.control_key,
                "s3": {"access_key": self.s3_access_key, "secret_key": self.s3_secret_key},
            },
            "bucket": BUCKET,
        }


def port_is_free(address: str, port: int, *, as_root: bool = False) -> bool:
    """Return whether this process could listen there now; ``as_root``: or could if it had root's rights."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As every server does: a connection that lingers after a restart does not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except PermissionError:
            # The kernel asks for the right first, so it has not said whether the port is taken.
            return as_root and not _answers(address, port)
        except OSError:
            return False
    return True


def _answers(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def free_port() -> int:
    """Return a TCP port on loopback that nobody uses now, and that no outgoing connection gets meanwhile."""
    for port in random.sample(HIGH_PORTS, _ATTEMPTS):
        if port_is_free(LOOPBACK, port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
