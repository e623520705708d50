"""Vast.ai, as the sandbox emulates it (docs/reference/vast.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from gpuyard.sandbox.clouds.emulated import Boot, EmulatedCloud
from gpuyard.sandbox.clouds.vast.environment import vast_environment
from gpuyard.sandbox.model import Json, Phase, ProviderName, Rental, World

if TYPE_CHECKING:
    from gpuyard.sandbox.cloud import Cloud


class EmulatedVast(EmulatedCloud):
    """Hosts' machines, rented at their price or for a bid."""

    name: ClassVar[ProviderName] = "vast"
    path: ClassVar[str] = "/api"
    base_path: ClassVar[str] = ""
    outcomes: ClassVar[tuple[str, ...]] = ("stopped", "outbid")
    bills_gpus: ClassVar[bool] = True
    gives_own_keys: ClassVar[bool] = True
    creates: ClassVar[re.Pattern[str]] = re.compile(r"PUT /v0/(asks/\d+|volumes)/?$")
    destroys: ClassVar[re.Pattern[str]] = re.compile(r"DELETE /v0/(instances(/\d+)?|volumes)/?$")
    reads: ClassVar[re.Pattern[str]] = re.compile(r"GET |POST /v0/bundles$|PUT /v0/search/asks$")

    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API."""
        from gpuyard.sandbox.clouds.vast.api import VastApi  # which needs the life of rentals, and that needs this

        return VastApi(cloud).router()

    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""
        return PlainTextResponse("API requests too frequent", 429)

    def broken(self) -> Response:
        """Return its answer when it is out of order."""
        return PlainTextResponse("<html><body>502 Bad Gateway</body></html>", 502, media_type="text/html")

    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes."""
        known = {"error": "not_emulated"} if status == 501 else {}
        return JSONResponse({"success": False, **known, "msg": text}, status)

    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a rental's box is given."""
        variables, _ = vast_environment(rental.request.get("env"))
        # What the create call says comes before what the account has stored.
        given = _vast_variables(rental, {**rental.request.get("account_env", {}), **variables})
        given["CONTAINER_API_KEY"] = own_key
        return Boot(_vast_gpu(rental.item_record), given, str(rental.request.get("onstart") or ""))

    def state(self, rental: Rental, fraction: float) -> str:
        """Return a rental's state in Vast's words."""
        return actual_status(rental, fraction) or "scheduling"

    def gpu_price(self, rental: Rental) -> float:
        """Return the bid where there is one, else the offer's price."""
        return float(rental.bid if rental.bid is not None else rental.item_record["dph_base"])

    def ended(self, rental: Rental, world: World) -> None:
        """Bring the machine back to the market as a new ask: old ask ids stay dead."""
        world.listings[rental.item] = world.listings.get(rental.item, 0) + 1


def actual_status(rental: Rental, fraction: float) -> str | None:
    """Return the container's state in Vast's words; ``fraction`` says how far a boot is (docs/reference/vast.md).

    After a start the old ``exited`` stays for the first half: a poller must not take it for a crash.
    """
    if rental.phase is Phase.BOOTING:
        if rental.boot == "rent":
            return None if fraction < 0.25 else "created" if fraction < 0.5 else "loading"
        return "exited" if fraction < 0.5 else "loading"
    words = {Phase.RUNNING: "running", Phase.EXITED: "exited", Phase.STOPPED: "exited", Phase.FAILED: "created"}
    return words[rental.phase]


def _vast_variables(rental: Rental, variables: Mapping[str, str]) -> dict[str, str]:
    ports = {f"VAST_TCP_PORT_{inside}": str(outside) for inside, outside in rental.ports.items()}
    return {
        **variables,
        **ports,
        "CONTAINER_ID": rental.id,
        "VAST_CONTAINERLABEL": f"C.{rental.id}",
        "PUBLIC_IPADDR": rental.address,
        "GPU_COUNT": str(rental.item_record["num_gpus"]),
        "DATA_DIRECTORY": "/workspace",
    }


def _vast_gpu(record: Json) -> Json:
    return {
        "name": record["gpu_name"],
        "count": record["num_gpus"],
        "memory_mb": record["gpu_ram"],
        "driver": record["driver_version"],
        "cuda": str(record["cuda_max_good"]),
        "compute_cap": f"{record['compute_cap'] / 100:.1f}",
    }
