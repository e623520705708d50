"""Lambda, as the sandbox emulates it (docs/reference/lambda.md)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from gpuyard.sandbox.clouds.emulated import Boot, EmulatedCloud
from gpuyard.sandbox.model import Json, Phase, ProviderName, Rental

if TYPE_CHECKING:
    from gpuyard.sandbox.cloud import Cloud


class EmulatedLambda(EmulatedCloud):
    """Virtual machines in data centres, launched with one SSH key of the account."""

    name: ClassVar[ProviderName] = "lambda"
    path: ClassVar[str] = "/lambda/api/v1"
    base_path: ClassVar[str] = "/lambda/api/v1"
    outcomes: ClassVar[tuple[str, ...]] = ("gone",)
    creates: ClassVar[re.Pattern[str]] = re.compile(r"POST /(instance-operations/launch|filesystems)$")
    destroys: ClassVar[re.Pattern[str]] = re.compile(
        r"(POST /instance-operations/terminate|DELETE /filesystems/[^/]+)$"
    )

    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API."""
        from gpuyard.sandbox.clouds.lambda_cloud.api import LambdaApi  # which needs the life of rentals, and that this

        return LambdaApi(cloud).router()

    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""
        return _error(429, "global/too-many-requests", "Too many requests.")

    def broken(self) -> Response:
        """Return its answer when it is out of order."""
        return _error(500, "global/internal-error", "An internal error occurred.")

    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes."""
        return _error(status, "global/object-does-not-exist" if status == 404 else "sandbox/not-emulated", text)

    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a rental's box is given."""
        return Boot(_lambda_gpu(rental.item_record), user_data=str(rental.request.get("user_data") or "").encode())

    def state(self, rental: Rental, fraction: float) -> str:
        """Return a rental's state in Lambda's words."""
        return status_word(rental)


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def status_word(rental: Rental) -> str:
    """Return what Lambda calls an instance's state."""
    words = {Phase.BOOTING: "booting", Phase.RUNNING: "active", Phase.GONE: "terminated"}
    return words.get(rental.phase, "unhealthy")


def _lambda_gpu(kind: Json) -> Json:
    model, _, rest = kind["gpu_description"].partition(" (")
    return {
        "name": f"NVIDIA {model}",
        "count": kind["specs"]["gpus"],
        "memory_mb": int(rest.split()[0]) * 1024 if rest else 0,
        "driver": "570.148.08",
        "cuda": "12.8",
    }
