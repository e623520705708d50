"""Vultr, as the sandbox emulates it (docs/reference/vultr.md)."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from gpuyard.sandbox.clouds.emulated import Boot, EmulatedCloud
from gpuyard.sandbox.model import Json, Phase, ProviderName, Rental

if TYPE_CHECKING:
    from gpuyard.sandbox.cloud import Cloud

_IP_AT, _READY_AT = 0.4, 0.8  # shares of the boot time, after the one create that was recorded


class EmulatedVultr(EmulatedCloud):
    """Virtual machines in data centres."""

    name: ClassVar[ProviderName] = "vultr"
    path: ClassVar[str] = "/v2"
    base_path: ClassVar[str] = "/v2"
    outcomes: ClassVar[tuple[str, ...]] = ("gone", "suspended")
    creates: ClassVar[re.Pattern[str]] = re.compile(r"POST /(instances|bare-metals|blocks|snapshots)$")
    destroys: ClassVar[re.Pattern[str]] = re.compile(r"DELETE /(instances|bare-metals|blocks|snapshots)/[^/]+$")

    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API."""
        from gpuyard.sandbox.clouds.vultr.api import VultrApi  # which needs the life of rentals, and that needs this
        from gpuyard.sandbox.clouds.vultr.holdings import VultrHoldings

        vultr = VultrApi(cloud)
        return vultr.router(VultrHoldings(cloud).routes(vultr.route))

    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""
        return self.refusal(429, "Rate limit exceeded.")

    def broken(self) -> Response:
        """Return its answer when it is out of order."""
        return self.refusal(503, "Service unavailable.")

    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes."""
        return JSONResponse({"error": text, "status": status}, status)

    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a rental's box is given."""
        user_data = base64.b64decode(rental.request.get("user_data") or "")
        return Boot(_vultr_gpu(rental.item_record), user_data=user_data)

    def state(self, rental: Rental, fraction: float) -> str:
        """Return a rental's three states in Vultr's words."""
        return "/".join(status_words(rental, fraction)[:3])


def status_words(rental: Rental, fraction: float) -> tuple[str, str, str, bool]:
    """Return ``status``, ``power_status``, ``server_status`` and whether the address is known.

    The triple is not monotonic while booting: ``running`` comes first, then ``stopped``, then ``running`` again.
    """
    if rental.suspended:
        return "suspended", "stopped", "ok", True
    if rental.phase is Phase.RUNNING:
        return "active", "running", "ok", True
    if rental.phase in (Phase.STOPPED, Phase.EXITED):
        return "active", "stopped", "ok", True
    if rental.phase is Phase.FAILED:
        return "active", "stopped", "locked", True
    if rental.boot != "rent":
        return (
            "active",
            "stopped" if fraction < _IP_AT else "running",
            "ok" if fraction < _IP_AT else "installingbooting",
            True,
        )
    if fraction < _IP_AT:
        return "pending", "running", "none", False
    if fraction < _READY_AT:
        return "active", "stopped", "locked", True
    return "active", "running", "installingbooting", True


def _vultr_gpu(plan: Json) -> Json:
    if not plan["gpu_count"]:
        return {"name": "none", "count": 0, "memory_mb": 0, "driver": "0", "cuda": "0"}
    # A share of a GPU shows as one GPU with the share's memory.
    count = 1 if isinstance(plan["gpu_count"], str) else int(plan["gpu_count"])
    return {
        "name": plan["gpu_type"].replace("_", " "),
        "count": count,
        "memory_mb": int(plan["gpu_vram_gb"] * 1024 / count),
        "driver": "550.90.07",
        "cuda": "12.4",
    }
