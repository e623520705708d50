"""``sandbox.json``: how a client finds a running sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuyard.errors import UsageError

INFO_FILE = "sandbox.json"
REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """The content of ``sandbox.json``. The keys are throw-away keys of this sandbox only."""

    pid: int
    name: str
    endpoints: Mapping[str, str]  # vast, vultr, s3, control
    from_boxes: Mapping[str, str]  # the same servers, and more, as a rented box reaches them
    vast_key: str
    vultr_key: str
    control_key: str
    s3_access_key: str
    s3_secret_key: str
    bucket: str
    document: Mapping[str, Any]  # the whole file

    def exports(self) -> dict[str, str]:
        """Return the variables with which ``vastai``, ``vultr.cloud``, ``aws``, ``s5cmd`` and ``rclone`` talk to it."""
        return {
            "VAST_URL": self.endpoints["vast"],
            "VAST_API_KEY": self.vast_key,
            "VASTAI_NO_UPDATE_CHECK": "1",
            "VULTR_API_ENDPOINT": self.endpoints["vultr"],
            "VULTR_API_KEY": self.vultr_key,
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret_key,
            "AWS_ENDPOINT_URL": self.endpoints["s3"],
            "S3_ENDPOINT_URL": self.endpoints["s3"],
            "AWS_DEFAULT_REGION": REGION,
            "RCLONE_CONFIG_SANDBOX_TYPE": "s3",
            "RCLONE_CONFIG_SANDBOX_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_SANDBOX_ENDPOINT": self.endpoints["s3"],
            "RCLONE_CONFIG_SANDBOX_ACCESS_KEY_ID": self.s3_access_key,
            "RCLONE_CONFIG_SANDBOX_SECRET_ACCESS_KEY": self.s3_secret_key,
        }


def load(state: Path) -> SandboxInfo:
    """Return the sandbox that runs with this state folder; :class:`UsageError` when none does."""
    file = state / INFO_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        info = SandboxInfo(
            pid=int(data["pid"]),
            name=data["name"],
            endpoints=data["endpoints"],
            from_boxes=data["from_boxes"],
            vast_key=data["keys"]["vast"],
            vultr_key=data["keys"]["vultr"],
            control_key=data["keys"]["control"],
            s3_access_key=data["keys"]["s3"]["access_key"],
            s3_secret_key=data["keys"]["s3"]["secret_key"],
            bucket=data["bucket"],
            document=data,
        )
    except FileNotFoundError:
        raise UsageError(f"The sandbox is not running (state folder {state}): run `gpuyard sandbox up`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} cannot be read as a sandbox's file ({error}): run `gpuyard sandbox down`, then up."
        ) from None
    if not is_server(info.pid, state):
        raise UsageError(
            f"The sandbox in {state} ended without being shut down: run `gpuyard sandbox up` to go on with it."
        )
    return info


def is_server(pid: int, state: Path) -> bool:
    """Return whether process ``pid`` is this state folder's server, and not a stranger who got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"gpuyard.sandbox.server" in command and os.fsencode(state.resolve()) in command


def is_up(state: Path) -> bool:
    """Return whether a sandbox runs with this state folder."""
    try:
        load(state)
    except UsageError:
        return False
    return True
