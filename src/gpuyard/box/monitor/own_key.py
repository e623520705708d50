"""The key that some clouds give to an instance of its own, with which it can end its own rental.

* Vast: ``CONTAINER_API_KEY`` and ``CONTAINER_ID`` in the container's environment; the key may start, stop and destroy
  that instance alone (docs/reference/vast.md).
* RunPod: ``RUNPOD_API_KEY`` and ``RUNPOD_POD_ID``, likewise (docs/reference/runpod.md).

Both are in the environment of the container's first process; a login over SSH does not have them. The account's own key
is never on a machine.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard.box.monitor.notify import NoRedirect
from gpuyard.errors import GpuyardError

FIRST_PROCESS = Path("/proc/1/environ")
_LIMIT_S = 20.0


@dataclass(frozen=True)
class _Cloud:
    """How an instance of a cloud ends itself: the variables of its key and its id, and the address to delete."""

    key: str
    id: str
    base: str
    path: str


CLOUDS = {
    "vast": _Cloud("CONTAINER_API_KEY", "CONTAINER_ID", "https://console.vast.ai", "/api/v0/instances/{id}/"),
    "runpod": _Cloud("RUNPOD_API_KEY", "RUNPOD_POD_ID", "https://api.runpod.io/v2", "/pods/{id}"),
}
"""The clouds whose instances have a key of their own."""


class NotEndedError(GpuyardError):
    """The cloud did not take the end of the rental. The text holds no key."""


@dataclass(frozen=True)
class OwnKey:
    """The way of this machine to end its own rental."""

    provider: str
    address: str
    key: str = field(repr=False)

    def end(self) -> None:
        """Ask the cloud to destroy this machine; raises :class:`NotEndedError` when it does not say that it does."""
        # Some servers in front of such APIs refuse Python's own name.
        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": "gpuyard"}
        request = urllib.request.Request(self.address, headers=headers, method="DELETE")
        try:
            urllib.request.build_opener(NoRedirect).open(request, timeout=_LIMIT_S).close()
        except urllib.error.HTTPError as error:
            raise NotEndedError(f"{self.provider} answered {error.code} to the end of this rental.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise NotEndedError(f"{self.provider} could not be reached: {type(reason).__name__}.") from None


def find(instance: Mapping[str, Any], api: str = "", *, environment: Mapping[str, str] | None = None) -> OwnKey | None:
    """Return the key of the machine that ``instance`` describes, ``None`` where its cloud gives none.

    ``api`` is where the cloud is, by default its real address. A key that is for another instance is not taken.
    """
    cloud = CLOUDS.get(str(instance.get("provider")))
    if cloud is None:
        return None
    variables = _environment() if environment is None else environment
    key, own_id = variables.get(cloud.key, ""), variables.get(cloud.id, "")
    if not key or not own_id or own_id != str(instance.get("id")):
        return None
    return OwnKey(str(instance["provider"]), f"{(api or cloud.base).rstrip('/')}{cloud.path.format(id=own_id)}", key)


def _environment() -> dict[str, str]:
    try:
        words = FIRST_PROCESS.read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (word.decode(errors="replace").partition("=") for word in words)
    return {**os.environ, **{name: value for name, separator, value in pairs if separator}}
