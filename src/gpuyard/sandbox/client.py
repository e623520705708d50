"""What the rest of gpuyard uses of the sandbox: is it up, where is it, and its control API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.sandbox import lifecycle
from gpuyard.sandbox.info import SandboxInfo, is_up, load

__all__ = ["Control", "SandboxInfo", "ensure_up", "is_up", "load"]

_TIMEOUT_S = 60.0


def ensure_up(state: Path, *, progress: Progress) -> SandboxInfo:
    """Return the running sandbox, started when it was not; the very first time its box images are built, in minutes."""
    return load(state) if is_up(state) else lifecycle.up(state, progress)


class Control:
    """The control API of a running sandbox."""

    def __init__(self, info: SandboxInfo) -> None:
        self._url = info.endpoints["control"]
        self._headers = {"Authorization": f"Bearer {info.control_key}"}

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = requests.request(
                method, f"{self._url}{path}", json=body, headers=self._headers, timeout=_TIMEOUT_S
            )
            data = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise GpuyardError(f"The sandbox does not answer at {self._url}: {error.__class__.__name__}.") from None
        if not answer.ok:
            detail = data.get("detail") if isinstance(data, dict) else None
            raise UsageError(detail if isinstance(detail, str) else f"The sandbox refused: {detail}")
        return dict(data)

    def status(self) -> dict[str, Any]:
        """Return ``name``, ``now`` (seconds since 1970), ``instances``, ``bill`` and ``faults``."""
        return self._call("GET", "/status")

    def preempt(self, *, instance: str = "", run: str = "", notice_s: float = 0, outcome: str = "") -> dict[str, Any]:
        """Take machines away; returns which."""
        body = {"instance": instance, "run": run, "notice_s": notice_s, "outcome": outcome}
        return self._call("POST", "/preempt", body)

    def fault(self, kind: str, provider: str, count: int | None = None, **parameters: Any) -> dict[str, Any]:
        """Let something go wrong; ``parameters`` are those of :class:`gpuyard.sandbox.scenario.FaultRequest`."""
        return self._call("POST", "/faults", {"kind": kind, "provider": provider, "count": count, **parameters})

    def stop_bucket(self, for_s: float) -> None:
        """Let the bucket be gone for so many seconds, with what it holds kept."""
        self._call("POST", "/bucket/stop", {"for_s": for_s})

    def advance(self, seconds: float) -> float:
        """Set the clouds' clock forward by so many seconds, and return what it shows then, in seconds since 1970."""
        return float(self._call("POST", "/clock", {"advance_s": seconds})["now"])

    def reset(self) -> None:
        """Make the clouds as they were at first: nothing rented, no keys, no faults, no bill, the clock right."""
        self._call("POST", "/reset")

    def clear_faults(self) -> None:
        """Forget all faults."""
        self._call("DELETE", "/faults")
