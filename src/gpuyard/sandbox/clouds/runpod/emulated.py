"""RunPod, as the sandbox emulates it (docs/reference/runpod.md)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from gpuyard.sandbox.clouds.emulated import Boot, EmulatedCloud
from gpuyard.sandbox.model import Json, Phase, ProviderName, Rental

if TYPE_CHECKING:
    from gpuyard.sandbox.cloud import Cloud


class EmulatedRunPod(EmulatedCloud):
    """Containers (pods) with GPUs, in RunPod's own data centres or at hosts."""

    name: ClassVar[ProviderName] = "runpod"
    path: ClassVar[str] = "/runpod/v2"
    base_path: ClassVar[str] = "/runpod/v2"
    outcomes: ClassVar[tuple[str, ...]] = ("stopped", "gone")
    bills_gpus: ClassVar[bool] = True
    gives_own_keys: ClassVar[bool] = True
    creates: ClassVar[re.Pattern[str]] = re.compile(r"POST /(pods|network-volumes)$")
    destroys: ClassVar[re.Pattern[str]] = re.compile(r"DELETE /(pods|network-volumes)/[^/]+$")

    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API."""
        from gpuyard.sandbox.clouds.runpod.api import RunPodApi  # which needs the life of rentals, and that needs this

        return RunPodApi(cloud).router()

    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""
        return _problem(429, "Too Many Requests", "rate limit exceeded", {"Retry-After": "1"})

    def broken(self) -> Response:
        """Return its answer when it is out of order."""
        return _problem(500, "Internal Server Error", "internal error")

    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes."""
        return JSONResponse({"title": text, "status": status, "detail": text}, status)

    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a rental's box is given."""
        return Boot(_runpod_gpu(rental), {**_runpod_variables(rental), "RUNPOD_API_KEY": own_key})

    def state(self, rental: Rental, fraction: float) -> str:
        """Return a rental's state in RunPod's words."""
        return status_word(rental, fraction)

    def gpu_price(self, rental: Rental) -> float:
        """Return the price of its GPUs, by the kind of place."""
        return float(rental.item_record["price"][rental.request["cloud"].lower()] * rental.request["count"])


def _problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def status_word(rental: Rental, fraction: float) -> str:
    """Return what RunPod calls a pod's state."""
    if rental.phase is Phase.BOOTING:
        return "PROVISIONING" if fraction < 0.5 else "STARTING"
    words = {Phase.RUNNING: "RUNNING", Phase.FAILED: "ERROR", Phase.GONE: "TERMINATED"}
    return words.get(rental.phase, "EXITED")


def _runpod_variables(rental: Rental) -> dict[str, str]:
    ports = {f"RUNPOD_TCP_PORT_{inside}": str(outside) for inside, outside in rental.ports.items()}
    return {**rental.request["env"], **ports, "RUNPOD_POD_ID": rental.id, "RUNPOD_PUBLIC_IP": rental.address}


def _runpod_gpu(rental: Rental) -> Json:
    kind = rental.item_record
    return {
        "name": kind["id"],
        "count": rental.request["count"],
        "memory_mb": kind["memory"] * 1024,
        "driver": "565.57.01",
        "cuda": "12.7",
    }
