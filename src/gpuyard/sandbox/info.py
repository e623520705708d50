"""``sandbox.json``: how a client finds a running sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard.errors import UsageError
from gpuyard.sandbox.documents import MALFORMED, damaged, read_document

INFO_FILE = "sandbox.json"
REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """The content of ``sandbox.json``. The keys are throw-away keys of this sandbox only."""

    pid: int
    name: str
    endpoints: Mapping[str, str]  # by provider, and s3 and control
    from_boxes: Mapping[str, str]  # the same servers, and more, as a rented box reaches them
    keys: Mapping[str, str] = field(repr=False)  # by provider
    control_key: str = field(repr=False)
    s3_access_key: str = field(repr=False)
    s3_secret_key: str = field(repr=False)
    bucket: str
    document: Mapping[str, Any] = field(repr=False)  # the whole file

    @property
    def vast_key(self) -> str:
        """The key of the emulated Vast.ai account."""
        return self.keys["vast"]

    @property
    def vultr_key(self) -> str:
        """The key of the emulated Vultr account."""
        return self.keys["vultr"]

    def exports(self) -> dict[str, str]:
        """Return the variables with which ``vastai``, ``vultr.cloud``, ``aws``, ``s5cmd`` and ``rclone`` talk to it."""
        return {
            "VAST_URL": self.endpoints["vast"],
            "VAST_API_KEY": self.vast_key,
            "VASTAI_NO_UPDATE_CHECK": "1",
            "VULTR_API_ENDPOINT": self.endpoints["vultr"],
            "VULTR_API_KEY": self.vultr_key,
            # A sandbox of an older version has no such clouds.
            **{f"{name.upper()}_API_KEY": self.keys[name] for name in ("lambda", "runpod") if name in self.keys},
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


def read(state: Path) -> SandboxInfo | None:
    """Return the sandbox that runs with this state folder, ``None`` when none does.

    It runs when the server process that the file names lives. Raises :class:`UsageError` for a file that is damaged or
    of a newer version.
    """
    file = state / INFO_FILE
    document = read_document(file, "file")
    if document is None:
        return None
    try:
        keys = document["keys"]
        info = SandboxInfo(
            pid=int(document["pid"]),
            name=str(document["name"]),
            endpoints=dict(document["endpoints"]),
            from_boxes=dict(document["from_boxes"]),
            keys={name: key for name, key in keys.items() if isinstance(key, str) and name != "control"},
            control_key=str(keys["control"]),
            s3_access_key=str(keys["s3"]["access_key"]),
            s3_secret_key=str(keys["s3"]["secret_key"]),
            bucket=str(document["bucket"]),
            document=document,
        )
    except MALFORMED as error:
        raise damaged(file, "file", error) from None
    return info if is_server(info.pid, state) else None


def load(state: Path) -> SandboxInfo:
    """Return the sandbox that runs with this state folder; :class:`UsageError` when none does."""
    info = read(state)
    if info is not None:
        return info
    if (state / INFO_FILE).exists():
        raise UsageError(
            f"The sandbox in {state} ended without being shut down: run `gpuyard sandbox up` to go on with it."
        )
    raise UsageError(f"The sandbox is not running (state folder {state}): run `gpuyard sandbox up`.")


def is_server(pid: int, state: Path) -> bool:
    """Return whether process ``pid`` is this state folder's server, and not a stranger who got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"gpuyard.sandbox.server" in command and os.fsencode(state.resolve()) in command


def is_up(state: Path) -> bool:
    """Return whether a sandbox runs with this state folder."""
    return read(state) is not None
