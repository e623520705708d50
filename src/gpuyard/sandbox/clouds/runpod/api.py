"""RunPod's REST API v2 on the sandbox's rentals: the calls that gpuyard makes.

Facts, traps and error texts: docs/reference/runpod.md.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import string
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from gpuyard.sandbox import boxes, catalogue, fields, images
from gpuyard.sandbox.bill import HOURS_PER_MONTH
from gpuyard.sandbox.cloud import DISK_LINE, Cloud
from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.clouds.runpod.emulated import status_word
from gpuyard.sandbox.clouds.runpod.storage import AccountKeys, NetworkVolumes, page
from gpuyard.sandbox.clouds.vast.environment import vast_environment
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.failures import RunPodError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Json, Phase, Rental
from gpuyard.sandbox.web import BadBody, Rate, no_route, read_json

_CALLS_PER_MINUTE = 60
_TEXT_MAX = 255
_LOG_LINES, _MOST_LOG_LINES = 100, 5000
_STREAM_LOOK_S = 0.5
_IMAGE_MAX = 512
_DISK_USD_PER_GB_MONTH = 0.10
_MOST_DISK_GB = 2000
_ID = string.ascii_lowercase + string.digits
_SSH_PORT = "22/tcp"
_PORT = re.compile(r"(\d{1,5})/(tcp|http)")
_CLOUDS = ("SECURE", "COMMUNITY")
_CREATE = {"name", "image", "gpu", "cloud", "dataCenterIds", "disk", "ports", "env", "startSsh", "mounts"}
_GPU = {"id", "count", "minRamPerGpu", "minVcpuCountPerGpu", "minCudaVersion"}
_NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)

Handler = Callable[[Request], Awaitable[Response]]


class RunPodApi:
    """The routes below ``/runpod/v2``; Vultr's own are below ``/v2``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._rate = Rate(_CALLS_PER_MINUTE, 60.0, cloud.clock)
        self._keys = AccountKeys(cloud)
        self._volumes = NetworkVolumes(cloud)

    def router(self) -> Router:
        """Return the routes."""
        r = self._route
        return Router(
            [
                r("/catalog/gpus", "GET", self.gpus),
                r("/pods", "GET", self.pods),
                r("/pods", "POST", self.create),
                r("/pods/{id}", "GET", self.show),
                r("/pods/{id}", "DELETE", self.delete),
                r("/pods/{id}/action", "POST", self.act),
                r("/pods/{id}/logs", "GET", self.logs),
                r("/account/ssh-keys", "GET", self._keys.keys),
                r("/account/ssh-keys", "PUT", self._keys.replace),
                r("/network-volumes", "GET", self._volumes.all),
                r("/network-volumes", "POST", self._volumes.create),
                r("/network-volumes/{id}", "GET", self._volumes.show),
                r("/network-volumes/{id}", "PATCH", self._volumes.change),
                r("/network-volumes/{id}", "DELETE", self._volumes.delete),
            ],
            redirect_slashes=False,
            default=no_route,
        )

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def guarded(request: Request) -> Response:
            return await self._guard(request, handler)

        return Route(path, guarded, methods=[method])

    async def _guard(self, request: Request, handler: Handler) -> Response:
        cloud = self._cloud
        headers: dict[str, str] = {}
        try:
            if cloud.settings.rate_limits and not self._rate.allows():
                headers = {"Retry-After": "1"}
                raise RunPodError(429, "Too Many Requests", "rate limit exceeded")
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            self._authenticate(request, key.strip() if scheme.lower() == "bearer" else "")
            answer = await handler(request)
            answer.headers["RateLimit-Policy"] = f'"minute";q={_CALLS_PER_MINUTE};w=60'
            return answer
        except RunPodError as error:
            return _problem(error, headers)
        except (BadField, BadBody) as error:
            wrong = str(error) or "the body is not a JSON object"
            return _problem(RunPodError(422, "Unprocessable Entity", "validation failed", (wrong,)))
        except EngineError as error:
            return _problem(RunPodError(503, "Service Unavailable", str(error)))

    def _authenticate(self, request: Request, key: str) -> None:
        if key == self._cloud.settings.runpod_key:
            return
        owner = self._cloud.owner("runpod", key)
        if owner is None:
            raise RunPodError(401, "Unauthorized", "invalid or missing API key")
        if request.path_params.get("id") != owner.id or "/pods/" not in request.url.path:
            raise RunPodError(403, "Forbidden", "this key is for its own pod only")

    # -- catalogue -----------------------------------------------------------------------------------------------------

    async def gpus(self, request: Request) -> Response:
        """Answer the GPU types; with ``include=AVAILABILITY`` also where there are ``count`` of them now."""
        wanted = request.query_params
        cloud, count = wanted.get("cloud", _CLOUDS[0]), fields.number(dict(wanted), "count", 1, 64) or 1
        if cloud not in _CLOUDS:
            raise BadField(f"cloud is neither {' nor '.join(_CLOUDS)}")
        if (wanted.get("include") is None) != (wanted.get("product") is None):
            raise BadField("product and include come only together")
        rows = []
        for kind in catalogue.runpod_gpus():
            row = {name: value for name, value in kind.items() if name not in ("where", "vcpus", "ram_gb")}
            if wanted.get("include") == "AVAILABILITY":
                there = [place for place in kind["where"].get(cloud, []) if kind["maxCount"][cloud.lower()] >= count]
                row["dataCenters"] = [{"id": place, "name": place, "availability": "LOW"} for place in there]
                row["availability"] = "LOW" if there else "NONE"
            rows.append(row)
        return JSONResponse({"gpus": rows})

    # -- pods ----------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Answer a new pod. Everything is checked before anything is rented."""
        cloud, body = self._cloud, await read_json(request)
        fields.only(body, _CREATE)
        name, image = fields.text(body, "name", _TEXT_MAX), fields.text(body, "image", _IMAGE_MAX)
        if not name or not image:
            raise BadField(f"{'image' if name else 'name'} is required")
        place = fields.text(body, "cloud", _TEXT_MAX) or _CLOUDS[0]
        kind, count = _gpu(body)
        disk = fields.number(body, "disk", 1, _MOST_DISK_GB)
        if disk is None:
            # The specification calls it optional.
            detail = "You must either provide a template id or pod configuration parameters"
            raise RunPodError(400, "Bad Request", detail)
        ports, (environment, _) = _ports(body), vast_environment(body.get("env"))
        centres = fields.texts(body, "dataCenterIds", _TEXT_MAX)
        there = [one for one in kind["where"].get(place, []) if not centres or one in centres]
        mounts = self._volumes.mounts(body, place)
        if mounts:
            there = [one for one in there if one == self._volumes.existing(next(iter(mounts))).region]
        if not there or kind["maxCount"][place.lower()] < count or cloud.take_fault("runpod", "no-capacity"):
            raise RunPodError(400, "Bad Request", _NO_CAPACITY)
        keys = [environment["PUBLIC_KEY"]] if environment.get("PUBLIC_KEY") else []
        if not keys and body.get("startSsh"):
            keys = self._keys.public
        now = cloud.clock()
        rental_id = "".join(secrets.choice(_ID) for _ in range(14))
        outside = boxes.choose_high_ports(len(ports))
        rental = Rental(
            provider="runpod",
            id=rental_id,
            item=kind["id"],
            region=there[0],
            label=environment.get("GPUYARD_LABEL") or name,
            container=f"{cloud.settings.network}-runpod-{rental_id}",
            image=image if boxes.is_here(image) else images.ML_IMAGE,
            address=boxes.choose_address(cloud.settings.name, cloud.world.next_number(), *outside),
            ports=dict(zip(map(str, ports), outside, strict=True)),
            created_at=now,
            phase=Phase.BOOTING,
            phase_since=now,
            made=False,
            public_keys=[key for key in keys if key],
            disk_gb=disk,
            item_record=kind,
            request={"name": name, "image": image, "env": environment, "count": count, "cloud": place},
            mounts=mounts,
        )
        rental.open_line(DISK_LINE, disk * _DISK_USD_PER_GB_MONTH / HOURS_PER_MONTH, now)
        cloud.rent(rental)
        return JSONResponse(self.row(rental), 201)

    async def pods(self, request: Request) -> Response:
        """Answer the pods, in pages where a limit is asked for."""
        self._cloud.look()
        rows = [self.row(rental) for rental in self._cloud.world.living("runpod")]
        return page(request, "pods", rows)

    def _existing(self, rental_id: str) -> Rental:
        rental = self._cloud.world.find("runpod", rental_id)
        if rental is None:
            raise RunPodError(404, "Not Found", "resource not found")
        return rental

    async def show(self, request: Request) -> Response:
        """Answer one pod."""
        self._cloud.look()
        return JSONResponse(self.row(self._existing(request.path_params["id"])))

    async def delete(self, request: Request) -> Response:
        """End a pod."""
        await self._cloud.destroy(self._existing(request.path_params["id"]))
        return Response(status_code=204)

    async def act(self, request: Request) -> Response:
        """Start, stop, restart or end a pod, where its state allows that."""
        rental = self._existing(request.path_params["id"])
        body = await read_json(request)
        fields.only(body, {"action"})
        action = fields.text(body, "action", _TEXT_MAX)
        if action not in _actions(rental):
            raise RunPodError(409, "Conflict", f"the action {fields.shown(action)} is not allowed in this status")
        if action == "terminate":
            await self._cloud.destroy(rental)
            return Response(status_code=204)
        if action == "stop":
            await self._cloud.stop(rental)
        else:
            await self._cloud.start(rental, "start" if action == "start" else "reboot")
        return JSONResponse(self.row(rental))

    async def logs(self, request: Request) -> Response:
        """Stream a pod's log as server-sent events; the stream stays open when all is said."""
        rental, params = self._existing(request.path_params["id"]), request.query_params
        source, tail = params.get("source") or "container", params.get("tail") or str(_LOG_LINES)
        if source not in ("container", "system") or not tail.isdigit() or not 0 < int(tail) <= _MOST_LOG_LINES:
            raise BadField(f"source is container or system, and tail 1 to {_MOST_LOG_LINES}")
        lines = []
        if source == "container":
            lines = await asyncio.to_thread(self._cloud.engine.logs, rental.container, int(tail))

        async def stream() -> AsyncIterator[str]:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._cloud.clock()))
            for line in lines:
                yield f"data: {json.dumps({'source': source, 'line': line, 'ts': moment})}\n\n"
            while not await request.is_disconnected():
                await asyncio.sleep(_STREAM_LOOK_S)

        return StreamingResponse(stream(), media_type="text/event-stream")

    def row(self, rental: Rental) -> Json:
        """Return a pod as RunPod shows it. Its direct address is there only while it runs."""
        running = rental.phase is Phase.RUNNING
        port = rental.ports.get(str(boxes.SSH))
        direct = {"host": rental.address, "port": port, "username": "root"} if running and port else None
        ports = [
            {"private": int(inside), "public": outside, "type": "tcp", "ip": rental.address}
            for inside, outside in rental.ports.items()
        ]
        return {
            "id": rental.id,
            "name": rental.request["name"],
            "status": status_word(rental, self._cloud.boot_fraction(rental)),
            "actions": _actions(rental),
            "image": rental.request["image"],
            "disk": rental.disk_gb,
            "mounts": {"network": [{"volumeId": one, "path": path} for one, path in rental.mounts.items()]}
            if rental.mounts
            else {},
            "ports": [f"{inside}/tcp" for inside in rental.ports],
            "env": rental.request["env"],
            "gpu": {"id": rental.item, "count": rental.request["count"]},
            "cloud": rental.request["cloud"],
            "dataCenterId": rental.region,
            "ssh": {
                "proxy": {"host": "ssh.runpod.io", "port": 22, "username": f"{rental.id}-64411a2b"},
                "direct": direct,
            },
            "cost": round(EMULATED["runpod"].gpu_price(rental), 4) if running else 0,
            "locked": False,
            "runtime": {"uptime": round(self._cloud.clock() - rental.phase_since), "ports": ports} if running else None,
            "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(rental.created_at)),
            "emulated": True,
        }


def _actions(rental: Rental) -> list[str]:
    if rental.phase is Phase.RUNNING:
        return ["stop", "restart", "terminate"]
    return ["start", "terminate"] if rental.phase in (Phase.STOPPED, Phase.EXITED) else ["terminate"]


def _gpu(body: Json) -> tuple[Json, int]:
    """Return the catalogue's record of the GPU that is wanted, and how many."""
    wanted = body.get("gpu")
    if not isinstance(wanted, dict):
        raise BadField("gpu is required")
    fields.only(wanted, _GPU)
    kind = next((known for known in catalogue.runpod_gpus() if known["id"] == wanted.get("id")), None)
    if kind is None:
        raise BadField("gpu.id is not in the catalogue")
    count = int(fields.number(wanted, "count", 1, 64) or 1)
    least = {"minRamPerGpu": kind["ram_gb"], "minVcpuCountPerGpu": kind["vcpus"]}
    if any((fields.number(wanted, name, 0, 10_000) or 0) > most for name, most in least.items()):
        raise RunPodError(400, "Bad Request", _NO_CAPACITY)
    return kind, count


def _ports(body: Json) -> list[int]:
    found = []
    for given in fields.texts(body, "ports", _TEXT_MAX):
        port = _PORT.fullmatch(given)
        if port is None or not 1 <= int(port[1]) <= 65_535:
            raise BadField(f"each of ports is like {_SSH_PORT} or 8888/http")
        if port[2] == "tcp" and int(port[1]) not in found:
            found.append(int(port[1]))
    if boxes.SSH not in found:
        raise BadField(f"The sandbox does not carry out a pod without {_SSH_PORT}")
    return found


def _problem(error: RunPodError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(error.body, error.status, headers=headers, media_type="application/problem+json")
