"""The sandbox's own API below ``/sandbox``: status, bill, faults. Behind ``gpuyard sandbox …``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpuyard.sandbox import boxes
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.fields import shown
from gpuyard.sandbox.model import Holding, Json, Phase, Rental
from gpuyard.sandbox.scenario import FaultRequest, wrong
from gpuyard.sandbox.web import BadBody, read_json

Handler = Callable[[Request], Awaitable[Json]]


class Preemption(BaseModel):
    """A machine to be taken away, named by its id or by the run that its label or tags name."""

    instance: str = ""
    run: str = ""
    notice_s: float = Field(default=0, ge=0, le=3600)
    outcome: str = ""


class BucketStop(BaseModel):
    """For how long the bucket is to be gone, in seconds."""

    for_s: float = Field(gt=0, le=86_400)


class ClockRequest(BaseModel):
    """How far the clouds' clock is to be set forward, in seconds."""

    advance_s: float = Field(ge=0, le=366 * 86_400)


def instance_row(cloud: Cloud, rental: Rental) -> Json:
    """Return what ``gpuyard sandbox status`` shows of a rental."""
    emulated = EMULATED[rental.provider]
    billing = [line.price_per_hour_usd for line in rental.lines if line.end is None]
    return {
        "provider": rental.provider,
        "id": rental.id,
        "label": rental.label,
        "tags": rental.tags,
        "state": "preempted" if rental.preempted else rental.phase.value,
        "provider_state": emulated.state(rental, cloud.boot_fraction(rental)),
        "container": rental.container,
        "ssh_user": rental.user,
        "ssh_host": rental.address,
        "ssh_port": rental.ports[str(boxes.SSH)],
        "item": rental.item,
        "region": rental.region,
        "gpu_name": rental.item_record.get("gpu_name")
        or rental.item_record.get("gpu_type")
        or rental.item_record.get("gpu_description")
        or "",
        "price_per_hour_usd": emulated.gpu_price(rental) if rental.provider == "vast" else sum(billing),
        "billing_per_hour_usd": sum(billing),
        "created_at": rental.created_at,
    }


def holding_row(holding: Holding) -> Json:
    """Return what ``gpuyard sandbox status`` shows of a volume, a file system or a stored variable."""
    row = {
        name: getattr(holding, name) for name in ("provider", "kind", "id", "label", "region", "size_gb", "created_at")
    }
    return {**row, "billing_per_hour_usd": sum(line.price_per_hour_usd for line in holding.lines if line.end is None)}


def belongs_to(rental: Rental, run: str) -> bool:
    """Return whether a rental's label or tags name the run."""
    return (
        run in (rental.label, *rental.label.split("/")[1:2]) or {f"run:{run}", f"run={run}"} & {*rental.tags} != set()
    )


async def _body[Body: BaseModel](request: Request, model: type[Body]) -> Body:
    """Return the request's body as a ``model``; what is wrong with it is the answer 422."""
    try:
        return model.model_validate(await read_json(request))
    except BadBody:
        raise HTTPException(422, "The body is not a JSON object.") from None
    except ValidationError as error:
        raise HTTPException(422, shown(wrong(error), 300)) from None


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what it is registered for
    return JSONResponse({"detail": error.detail}, error.status_code)


def app(cloud: Cloud) -> Starlette:
    """Return the control application."""

    def route(method: str, path: str, handler: Handler) -> Route:
        async def guarded(request: Request) -> Response:
            await request.body()  # one that is too large is refused whoever sends it
            if request.headers.get("authorization", "") != f"Bearer {cloud.settings.control_key}":
                raise HTTPException(401, "The control key of this sandbox is in its sandbox.json.")
            return JSONResponse(await handler(request))

        return Route(path, guarded, methods=[method])

    async def status(_: Request) -> Json:
        """Return name, instances, holdings and bill."""
        cloud.look()
        living = [rental for rental in cloud.world.rentals if rental.phase is not Phase.GONE]
        return {
            "name": cloud.settings.name,
            "now": cloud.clock(),
            "instances": [instance_row(cloud, rental) for rental in living],
            "holdings": [holding_row(holding) for holding in cloud.world.holdings if holding.ended_at is None],
            "bill": cloud.statement(),
            "faults": [{"kind": f.kind, "provider": f.provider, "remaining": f.remaining} for f in cloud.world.faults],
        }

    async def preempt(request: Request) -> Json:
        """Take machines away; with notice the answer comes before the end of the notice."""
        wanted = await _body(request, Preemption)
        living = [rental for rental in cloud.world.rentals if rental.phase is not Phase.GONE and not rental.preempted]
        if wanted.instance:
            hit = [rental for rental in living if rental.id == wanted.instance]
        else:
            hit = [rental for rental in living if wanted.run and belongs_to(rental, wanted.run)]
        if not hit:
            name = shown(f"instance {wanted.instance}" if wanted.instance else f"run {wanted.run}")
            raise HTTPException(404, f"The sandbox has no {name} that could be preempted.")
        for rental in hit:
            if wanted.outcome and wanted.outcome not in EMULATED[rental.provider].outcomes:
                choices = " or ".join(EMULATED[rental.provider].outcomes)
                raise HTTPException(
                    422, f"A preemption at {rental.provider} can end as {choices}, not as {shown(wanted.outcome)}."
                )
        for rental in hit:
            outcome = wanted.outcome or EMULATED[rental.provider].outcomes[0]
            if wanted.notice_s:
                cloud.preempt_later(rental, notice_s=wanted.notice_s, outcome=outcome)
            else:
                await cloud.preempt(rental, notice_s=0, outcome=outcome)
        return {"preempted": [{"provider": rental.provider, "id": rental.id} for rental in hit]}

    async def add_fault(request: Request) -> Json:
        """Let something go wrong the next times."""
        wanted = await _body(request, FaultRequest)
        if wanted.kind == "slow-disk":
            try:
                await asyncio.to_thread(boxes.disk, cloud.engine)
            except EngineError as error:
                raise HTTPException(422, str(error)) from None
        fault = wanted.fault(cloud.clock())
        cloud.add_fault(fault)
        return {"kind": fault.kind, "provider": fault.provider, "remaining": fault.remaining}

    async def stop_bucket(request: Request) -> Json:
        """Let the bucket be gone for a while; the answer comes when it is."""
        await cloud.stop_bucket((await _body(request, BucketStop)).for_s)
        return {}

    async def clear(_: Request) -> Json:
        """Forget all faults and give re-let machines back."""
        await cloud.clear_faults()
        return {}

    async def advance(request: Request) -> Json:
        """Set the clouds' clock forward, and return what it shows then."""
        cloud.advance((await _body(request, ClockRequest)).advance_s)
        return {"now": cloud.clock()}

    async def reset(_: Request) -> Json:
        """Make the clouds as they were at first."""
        await cloud.reset()
        return {}

    routes = [
        route("GET", "/status", status),
        route("POST", "/clock", advance),
        route("POST", "/reset", reset),
        route("POST", "/preempt", preempt),
        route("POST", "/bucket/stop", stop_bucket),
        route("POST", "/faults", add_fault),
        route("DELETE", "/faults", clear),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
