"""STAND-IN for a box that belongs to the user: a container with a real sshd that no emulated cloud knows."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yard import Yard

from gpuyard import config
from gpuyard.sandbox import boxes, engine, images
from gpuyard.sandbox.settings import port_is_free

GPU = {"name": "NVIDIA GeForce RTX 4090", "count": 1, "memory_mb": 24564, "driver": "550.54", "cuda": "12.4"}


@dataclass(frozen=True)
class OwnBox:
    """A box, and how its owner gets at it."""

    engine: engine.Engine
    container: str

    def run(self, command: str) -> str:
        """Run a shell command as root."""
        return self.engine.execute(self.container, "sh", "-c", command)

    def since(self) -> str:
        """When its first process began: another one after a restart."""
        return self.run("cut -d ' ' -f 22 /proc/1/stat; hostname")


def make(yard: Yard, name: str, image: str, user: str, aliases: Sequence[str] = ()) -> tuple[OwnBox, dict[str, object]]:
    """Start a box and return it with its variables for the inventory. Boxes reach it by ``aliases``."""
    settings = json.loads((yard.state / "settings.json").read_text())
    made = engine.find()
    public = config.ssh_key().public_text
    port = next(port for port in range(20700, 20900) if port_is_free("127.0.0.1", port))
    container = f"h-own-{os.getpid()}-{name}"
    network = f"gpuyard-{settings['name']}"
    spec = engine.ContainerSpec(
        name=container,
        image=image,
        labels={engine.LABEL: settings["name"]},  # `sandbox down` removes it, too
        network=network,
        hostname=name,
        aliases=aliases,
        ports=[engine.Port("127.0.0.1", port, 22)],
        mounts=[(Path("/etc/ssl/certs"), "/etc/ssl/certs")],
        systemd=image == images.VM_IMAGE,
    )
    made.create(spec)
    environment = {**boxes.pip_index(), **boxes.machine_environment(os.environ)}
    text = "".join(f'{key}="{value}"\n' for key, value in environment.items())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        images.add_file(archive, "root/key.pub", f"{public}\n".encode(), 0o644)
        images.add_file(archive, "etc/gpuyard-gpu.json", json.dumps(GPU).encode(), 0o644)
        images.add_file(archive, "etc/environment", text.encode(), 0o644)
    made.copy_in(container, buffer.getvalue())
    made.start(container)
    box = OwnBox(made, container)
    home = "/root" if user == "root" else f"/home/{user}"
    if user != "root":
        box.run(f"useradd -m -s /bin/bash {user} && echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}")
    box.run(f"install -d -m 700 -o {user} {home}/.ssh")
    box.run(f"install -m 600 -o {user} /root/key.pub {home}/.ssh/authorized_keys")
    variables = {
        "ansible_host": "127.0.0.1",
        "ansible_port": port,
        "ansible_user": user,
        "ansible_ssh_private_key_file": str(config.ssh_key().private_path),
    }
    return box, variables
