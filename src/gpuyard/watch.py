"""What goes on on a rented machine: asked over SSH, in one connection, without Ansible.

The questions are answered by ``gpuyard.stages`` on the box; its machine-readable answers pass through here unchanged.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpuyard import rent
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Instance

BOX_PYTHON = "/opt/gpuyard/venv/bin/python"
# ssh itself exits with 255; anything else is the command's own status.
_SSH_FAILED = 255


def command(instance: Instance, private_key: Path, words: list[str]) -> list[str]:
    """Return the command line that runs ``python -m gpuyard.stages <words>`` on the machine."""
    remote = shlex.join([BOX_PYTHON, "-m", "gpuyard.stages", *words])
    target = f"{instance.ssh_user}@{instance.ssh_host}"
    return ["ssh", *rent.ssh_args(instance, private_key), target, remote]


def status(instance: Instance, private_key: Path, *, timeout_s: float = 15) -> Mapping[str, Any] | None:
    """Return ``status --json`` of the machine's stages, ``None`` when the machine or its runner does not answer."""
    try:
        answer = subprocess.run(
            command(instance, private_key, ["status", "--json"]),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        found = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lines(instance: Instance, private_key: Path, words: list[str]) -> Iterator[str]:
    """Yield the lines that ``python -m gpuyard.stages <words>`` prints, as they come.

    Raises :class:`gpuyard.errors.GpuyardError` with the machine's own last words when the command fails or the connection
    is lost.
    """
    process = subprocess.Popen(
        command(instance, private_key, words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None and process.stderr is not None  # both were asked for above
    try:
        for line in process.stdout:
            yield line.rstrip("\n")
        complaint = process.stderr.read().strip().splitlines()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code == _SSH_FAILED:
        reason = complaint[-1] if complaint else "no reason given"
        raise GpuyardError(f"The connection to {instance.provider} instance {instance.id} is lost: {reason}")
    if code:
        raise GpuyardError(complaint[-1] if complaint else f"The machine's stage runner ended with status {code}.")


def progress(instance: Instance, private_key: Path) -> Iterator[Mapping[str, Any]]:
    """Yield what the stages do, one record a change, until the run ends (``gpuyard.stages progress --follow``)."""
    for line in lines(instance, private_key, ["progress", "--follow"]):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a login banner, say
        if isinstance(record, dict):
            yield record
