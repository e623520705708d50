"""Where gpuyard keeps its files on the controller.

Nothing here is needed to find a rented machine again: these are caches, logs, keys and known hosts. The truth is the
provider's own list, the bucket, and the journal on the box.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpuyard.errors import UsageError

_NOT_FOR_FILES = ("dev", "proc", "sys")


def home() -> Path:
    """Return the controller's state folder: ``$GPUYARD_HOME``, else ``~/.gpuyard``."""
    return Path(os.environ.get("GPUYARD_HOME") or "~/.gpuyard").expanduser()


def cache() -> Path:
    """Return the folder for what can be fetched or built again (box images): ``$XDG_CACHE_HOME/gpuyard``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpuyard"


def sandbox_state() -> Path:
    """Return the sandbox's state folder: ``$GPUYARD_SANDBOX_STATE``, else ``<home>/sandbox``."""
    chosen = os.environ.get("GPUYARD_SANDBOX_STATE")
    return Path(chosen).expanduser() if chosen else home() / "sandbox"


def check_state_folder(state: Path) -> None:
    """Raise :class:`UsageError` when ``state`` neither is a folder nor can become one that the sandbox can use."""
    nearest = next(place for place in (state, *state.parents) if os.path.lexists(place))
    if state.resolve().parts[1:2] and state.resolve().parts[1] in _NOT_FOR_FILES:
        reason = "it would lie in a file system of the kernel's"
    elif not nearest.is_dir():
        reason = "it is a file" if nearest == state else f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"you may not write in {nearest}"
    else:
        return
    raise UsageError(
        f"The sandbox's state folder cannot be {state}: {reason}. Name another one (--state, sandbox_state)."
    )


def known_hosts() -> Path:
    """Return the file with one pinned SSH host key an instance, filed under its ``HostKeyAlias``."""
    return home() / "known_hosts"


def ensure_private(folder: Path) -> Path:
    """Create ``folder`` (mode 0700) when it is missing, and return it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
