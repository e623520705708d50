"""A sandbox of a test's own: four emulated clouds, a bucket, and boxes with an SSH server, in a folder of its own.

The fixtures of :mod:`gpuyard.testing.pytest_plugin` are this kit. A program that is no pytest can use it too::

    with kit.running(Path("/tmp/clouds")) as sandbox:
        box = sandbox.rent("vast")
        box.run("nvidia-smi")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from gpuyard import config, market, ssh
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Instance, Query
from gpuyard.renting import destroy, machine
from gpuyard.sandbox import boxes, engine, lifecycle, services
from gpuyard.sandbox.client import Control
from gpuyard.sandbox.info import REGION, SandboxInfo

WORKLOAD = "kit"
"""What the label of a rented box names as its workload."""
_LONGEST_S = 600.0
_BOX_S = 300.0
# What leads to a real account, or changes what Ansible and gpuyard do.
_LEFT_OUT = ("GPUYARD_", "ANSIBLE_", "VAST", "VULTR", "LAMBDA_", "RUNPOD_", "AWS_", "CLOUD_", "RCLONE_CONFIG_")


@dataclass(frozen=True, slots=True)
class Box:
    """A rented box: a Linux container with an SSH server, which stands for the machine of an offer."""

    instance: Instance
    variables: Mapping[str, str | int]
    """What Ansible needs to reach it, as host variables."""
    command: tuple[str, ...]
    """The words of ``ssh`` that reach it; what is to run there comes after them."""

    @property
    def name(self) -> str:
        """The name of its run, by which the clouds know it."""
        return self.instance.ref.run if self.instance.ref else self.instance.id

    def run(self, script: str) -> str:
        """Run a shell script in the box, and return its output. One that fails is :class:`GpuyardError` with its words.

        It has ten minutes.
        """
        done = subprocess.run(
            [*self.command, script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST_S
        )
        if done.returncode:
            raise GpuyardError(f"{self.name}: `{script}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Kit:
    """A running sandbox in ``folder``, which holds its state, its keys, and nothing of the user's own."""

    folder: Path
    info: SandboxInfo

    @property
    def state(self) -> Path:
        """The sandbox's state folder, for ``--state`` and ``sandbox_state``."""
        return self.folder / "sandbox"

    @property
    def urls(self) -> Mapping[str, str]:
        """Where each cloud listens, by its name, and ``s3`` for the bucket."""
        return self.info.endpoints

    @property
    def keys(self) -> Mapping[str, str]:
        """The throw-away API key of each cloud, by its name."""
        return self.info.keys

    @property
    def environment(self) -> dict[str, str]:
        """The environment for programs: published clients, Ansible and gpuyard all meet this sandbox, and no account.

        It is this process's own one without the keys and settings that lead elsewhere.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
        # What lies beside this Python, ansible-playbook for one, comes first.
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        ours = {"GPUYARD_HOME": str(self.folder), "GPUYARD_SANDBOX": "1", "ANSIBLE_NOCOLOR": "1", "PATH": path}
        return kept | self.info.exports() | ours

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.info.bucket

    def s3(self) -> Any:
        """Return a client of boto3 for the bucket."""
        return boto3.client(
            "s3",
            endpoint_url=self.urls["s3"],
            aws_access_key_id=self.info.s3_access_key,
            aws_secret_access_key=self.info.s3_secret_key,
            region_name=REGION,
        )

    @property
    def control(self) -> Control:
        """What goes wrong on command, and the clock: ``fault``, ``preempt``, ``clear_faults``, ``advance``."""
        return Control(self.info)

    def reset(self) -> None:
        """Make it as it was at first: nothing rented, no faults, no bill, the clock right, an empty bucket."""
        self.control.reset()
        client = self.s3()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            if found := page.get("Contents"):
                client.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": one["Key"]} for one in found]})

    def rented(self) -> list[dict[str, Any]]:
        """Return what is rented, by whomever, as ``gpuyard sandbox status --json`` shows it."""
        found: list[dict[str, Any]] = self.control.status()["instances"]
        return found

    def bill(self) -> dict[str, Any]:
        """Return ``total_usd``, the ``lines``, and under ``billable`` what costs more with every second."""
        found: dict[str, Any] = self.control.status()["bill"]
        return found

    def rent(self, provider: str = "vast", *, run: str = "box-0", **conditions: Any) -> Box:
        """Rent the cheapest machine that fits, and return it when it answers over SSH.

        ``conditions`` are those of :class:`gpuyard.providers.base.Query`: ``gpu_count``, ``disk_gb``, … . A run that
        has a machine keeps it. Raises :class:`GpuyardError` in one sentence when nothing can be had.
        """
        query = Query(**conditions)
        with _home(self.folder):
            clouds = config.connect(provider, sandbox=True, sandbox_state=self.state)
            key = config.ssh_key()
            order = machine.Order(
                run=run,
                workload=WORKLOAD,
                offers=lambda: market.choose(market.collect(clouds, query).offers, query),
                key=key,
                disk_gb=query.disk_gb,
                timeout_s=_BOX_S,
            )
            instance = machine.present(clouds, order).instance
            assert instance is not None  # it was waited for
            return Box(instance, ssh.ansible_vars(instance, key), ("ssh", *ssh.ssh_args(instance, key)))

    def give_back(self, box: Box) -> None:
        """End the rental of a box, confirmed."""
        with _home(self.folder):
            clouds = config.connect(box.instance.provider, sandbox=True, sandbox_state=self.state)
            destroy.destroy_all(clouds, [box.instance])

    def inventory(self, *rented: Box, group: str = "boxes") -> Path:
        """Write an inventory of the boxes, each by its name in one group, and return its path."""
        hosts = {box.name: dict(box.variables) | {"ansible_python_interpreter": "/usr/bin/python3"} for box in rented}
        file = self.folder / f"{group}.json"
        file.write_text(json.dumps({group: {"hosts": hosts}}), encoding="utf-8")
        return file

    def play(self, playbook: str | Path, *words: str, inventory: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``ansible-playbook`` with further ``words``, and return how it ended with all that it printed.

        It has ten minutes.
        """
        return subprocess.run(
            ["ansible-playbook", "-i", str(inventory), *words, str(playbook)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LONGEST_S,
        )


def missing() -> str:
    """Return in one sentence what this machine lacks for a sandbox, ``""`` when it has all."""
    try:
        services.check_installed()
        boxes.check_rights(engine.find(), "0")
    except GpuyardError as error:
        return str(error)
    return ""


@contextmanager
def running(folder: Path, *, boot_seconds: float = 1.0) -> Iterator[Kit]:
    """Start a sandbox in ``folder``, and end it with everything that it runs, however the block ends.

    ``boot_seconds`` is how long a machine boots.
    """
    try:
        yield start(folder, boot_seconds=boot_seconds)
    finally:
        end(folder)


def start(folder: Path, *, boot_seconds: float = 1.0) -> Kit:
    """Start a sandbox in ``folder``, unless it runs; :func:`end` ends it.

    The very first one on a machine builds the box images, in minutes. What happens goes to standard output.
    """
    with _home(folder):
        return Kit(folder, lifecycle.up(folder / "sandbox", print, lifecycle.Options(boot_seconds=boot_seconds)))


def end(folder: Path) -> None:
    """End the sandbox in ``folder`` with everything that it runs. No sandbox: nothing to do."""
    with _home(folder):
        lifecycle.down(folder / "sandbox", print)


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Keep the user's own keys and known hosts out of it."""
    before = os.environ.get("GPUYARD_HOME")
    os.environ["GPUYARD_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("GPUYARD_HOME", None)
        else:
            os.environ["GPUYARD_HOME"] = before
