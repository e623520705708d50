"""Vast.ai's HTTP API on the sandbox's rentals: the calls that gpuyard and the published ``vastai`` client make.

Facts, traps and error texts: docs/reference/vast.md.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from gpuyard.sandbox import boxes, catalogue, fields, images
from gpuyard.sandbox.cloud import DISK_LINE, Cloud
from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.clouds.vast import query as conditions
from gpuyard.sandbox.clouds.vast.emulated import actual_status
from gpuyard.sandbox.clouds.vast.environment import vast_environment
from gpuyard.sandbox.clouds.vast.storage import Variables, Volumes, Wanted, wanted_volume
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.failures import VastError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Json, Phase, Rental, SshKey
from gpuyard.sandbox.web import BadBody, Rate, Spacing, no_route, read_json

_USER_ID = 770_001
_FIRST_INSTANCE = 20_000_000
_CREDIT_USD = 100.0
_PAGE = 25
_LABEL_MAX = 256
_ONSTART_MAX_BYTES = 4096
_LEAST_DISK_GB, _DEFAULT_DISK_GB = 8.0, 10.0
_LEAST_BID_USD, _MOST_BID_USD = 0.001, 128.0
_MOST_BID_PER_GPU_USD = 32.0  # where a bid is changed
_LOG_LINES = 1000
_MOST_STORAGE_GB = 1e6
_TEXT_MAX = 400
# What a create call may say. Options beyond these are refused where they ask for something.
_CREATE = {
    *("image", "env", "disk", "price", "label", "onstart", "runtype", "target_state", "cancel_unavail"),
    *("image_login", "volume_info"),
    # Without an effect here: who asks, locales (a box has UTF-8), force.
    *("client_id", "python_utf8", "lang_utf8", "force"),
}
_RUNTYPES = {"ssh", "ssh_proxy", "ssh_direct", "ssh_direc"}
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]*")
_COPIED = (
    *("gpu_name", "num_gpus", "gpu_ram", "cpu_name", "cpu_cores", "cpu_cores_effective", "cpu_ram", "cuda_max_good"),
    *("driver_version", "storage_cost", "min_bid", "inet_up", "inet_down", "inet_up_cost", "inet_down_cost", "dlperf"),
    *("geolocation", "verification", "direct_port_count"),
)  # an instance shows these as its offer did
_COMPUTED = {"dph_total", "num_gpus"}  # the list cannot filter or sort by what it computes
_QUEUED = "Required resources are currently unavailable, state change queued."
# Least seconds between two calls of a kind.
_SPACING = {
    "create": 4.5,
    "destroy": 3.0,
    "show": 2.0,
    "list": 1.0,
    "manage": 1.0,
    "bid": 5.5,
    "ssh": 1.0,
    "volumes": 5.5,
    "read secrets": 5.0,
    "write secrets": 3.0,
}
_SEARCHES_PER_MINUTE = 10

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Order:
    """What a create call asks for, checked as far as it does not depend on the ask."""

    image: str
    disk_gb: float
    label: str
    ports: list[int]
    onstart: str
    bid: float | None
    started: bool
    cancel_unavailable: bool
    volume: Wanted | None
    request: Json  # what the instance shows of it later


class VastApi:
    """The routes below ``/api``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._spacing = Spacing(cloud.clock)
        self._searches = Rate(_SEARCHES_PER_MINUTE, 60.0, cloud.clock)
        self._variables = Variables(cloud)
        self._volumes = Volumes(cloud)
        self._logs: dict[str, list[str]] = {}  # by the name of the file that was asked for
        self._fresh_logs: set[str] = set()  # those that nobody has looked for yet

    def router(self) -> Router:
        """Return the routes, without trailing slashes."""
        r, instance = self._route, "/v0/instances/{id:id}"
        return Router(
            [
                r("/v0/bundles", "POST", self.search, "search", public=True),
                r("/v0/search/asks", "PUT", self.search_new, "search", public=True),
                r("/v0/gpu_names/unique", "GET", self.gpu_names, public=True),
                r("/v0/gpu_types", "GET", self.gpu_types, public=True),
                r("/v0/asks/bulk", "POST", self.create_many, "create"),
                r("/v0/asks/{id:id}", "PUT", self.create, "create"),
                r("/v0/instances/filters", "GET", self.filters),
                r("/v1/instances/filters", "GET", self.filters),
                r("/v0/instances/reboot/{id:id}", "PUT", self.reboot, "manage"),
                r("/v0/instances/bid_price/{id:id}", "PUT", self.change_bid, "bid"),
                r("/v0/instances/request_logs/{id:id}", "PUT", self.request_logs, "manage"),
                r("/logs/{id:id}/{name}", "GET", self.log_file, public=True),
                r(instance, "GET", self.show, "show"),
                r(instance, "PUT", self.manage, "manage"),
                r(instance, "DELETE", self.destroy, "destroy"),
                r(f"{instance}/ssh", "GET", self.instance_keys, "ssh"),
                r(f"{instance}/ssh", "POST", self.attach_key, "ssh"),
                r(f"{instance}/ssh/{{key:id}}", "DELETE", self.detach_key, "ssh"),
                r("/v0/instances", "GET", self.list_v0, "list"),
                r("/v0/instances", "PUT", self.manage_many, "manage"),
                r("/v0/instances", "DELETE", self.destroy_many, "destroy"),
                r("/v1/instances", "GET", self.list_v1, "list"),
                r("/v0/ssh", "GET", self.keys, "ssh"),
                r("/v0/ssh", "POST", self.add_key, "ssh"),
                r("/v0/ssh/{key:id}", "PUT", self.change_key, "ssh"),
                r("/v0/ssh/{key:id}", "DELETE", self.remove_key, "ssh"),
                r("/v0/secrets", "GET", self._variables.all, "read secrets"),
                r("/v0/secrets", "POST", self._variables.create, "write secrets"),
                r("/v0/secrets", "PUT", self._variables.change, "write secrets"),
                r("/v0/secrets", "DELETE", self._variables.delete, "write secrets"),
                r("/v0/volumes/search", "POST", self._volumes.search, "volumes", public=True),
                r("/v0/volumes", "GET", self._volumes.all, "volumes"),
                r("/v0/volumes", "PUT", self._volumes.create, "volumes"),
                r("/v0/volumes", "DELETE", self._volumes.delete, "volumes"),
                r("/v0/users/current", "GET", self.user),
            ],
            redirect_slashes=False,
            default=no_route,
        )

    def _route(self, path: str, method: str, handler: Handler, kind: str = "", *, public: bool = False) -> Route:
        async def guarded(request: Request) -> Response:
            return await self._guard(request, handler, kind, public)

        return Route(path, guarded, methods=[method])

    async def _guard(self, request: Request, handler: Handler, kind: str, public: bool) -> Response:
        cloud = self._cloud
        try:
            if not public:
                self._authenticate(request)  # first: a stranger's call does not count against this account
            if cloud.settings.rate_limits and kind == "search" and not self._searches.allows():
                return PlainTextResponse("API requests too frequent", 429)
            if cloud.settings.rate_limits and kind in _SPACING and not self._spacing.allows(kind, _SPACING[kind]):
                return PlainTextResponse(f"API requests too frequent: endpoint threshold={_SPACING[kind]}", 429)
            return await handler(request)
        except VastError as error:
            return JSONResponse(error.body, error.status)
        except BadField as error:
            return JSONResponse(VastError(400, "invalid_args", f"error 400/3467: {error}").body, 400)
        except BadBody:
            return JSONResponse({"success": False, "error": "invalid_args", "msg": "invalid json"}, 400)
        except EngineError as error:
            return JSONResponse(VastError(503, "server_error", str(error)).body, 503)

    def _authenticate(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else request.query_params.get("api_key", "")
        if not given:
            raise VastError(403, "auth_error", "This action requires login.")
        if given == self._cloud.settings.vast_key:
            return
        owner = self._cloud.owner("vast", given)
        if owner is None:
            raise VastError(404, "auth_error", "Invalid user key")
        # The key of an instance: for that instance alone, and for what an instance may do with itself.
        if request.url.path.rstrip("/") != f"/api/v0/instances/{owner.id}":
            raise VastError(403, "auth_error", "This key is for its own instance only.")

    # -- offers --------------------------------------------------------------------------------------------------------

    async def search(self, request: Request) -> Response:
        """Answer ``POST /bundles/``."""
        return self._search(await read_json(request))

    async def search_new(self, request: Request) -> Response:
        """Answer ``PUT /search/asks/``, which wraps the same query."""
        body = await read_json(request)
        fields.only(body, {"q", "select_cols"})
        if body.get("select_cols") not in (None, ["*"]):
            raise BadField('select_cols: the sandbox does not carry out anything but ["*"].')
        query = body.get("q")
        if query is not None and not isinstance(query, dict):
            raise BadField("q is not an object.")
        return self._search(query or {})

    def _search(self, query: Json) -> Response:
        kind = query.get("type") or "on-demand"
        if kind not in ("on-demand", "ondemand", "bid", "interruptible", "reserved"):
            raise VastError(400, "invalid_args", f"error 400/3412: invalid type {kind}")
        storage = fields.number(query, "allocated_storage", 0, _MOST_STORAGE_GB) or catalogue.DEFAULT_STORAGE_GB
        try:
            offers = [
                self._offer(record, kind in ("bid", "interruptible"), storage) for record in self._cloud.vast_records
            ]
            return JSONResponse({"offers": conditions.search(offers, query)})
        except (conditions.BadFilter, TypeError, ValueError) as error:
            raise VastError(400, "invalid_args", f"error 400/3413: {error}") from None

    def _offer(self, record: Json, bid: bool, storage_gb: float) -> Json:
        machine = str(record["machine_id"])
        offer = catalogue.vast_offer(
            record,
            listing=self._cloud.world.listings.get(machine, 0),
            rentable=not self._cloud.machine_taken(machine),
            bid=bid,
            storage_gb=storage_gb,
            now=self._cloud.clock(),
        )
        return offer | self._volumes.shown_in(record)

    async def gpu_names(self, request: Request) -> Response:
        """Answer the client's list of GPU names."""
        return JSONResponse({"gpu_names": sorted({record["gpu_name"] for record in self._cloud.vast_records})})

    async def gpu_types(self, request: Request) -> Response:
        """Answer the client's list of GPU types."""
        names = sorted({record["gpu_name"] for record in self._cloud.vast_records})
        return JSONResponse({"gpu_types": [{"name": name, "gpu_name": name} for name in names]})

    # -- renting -------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Answer ``PUT /asks/{id}/``."""
        order = _order(await read_json(request))
        ask = request.path_params["id"]
        contract = self._rent(ask, self._fitting(ask, order), order)
        return JSONResponse({"success": True, "new_contract": contract})

    async def create_many(self, request: Request) -> Response:
        """Answer ``POST /asks/bulk/``: every ask is checked before the first is rented.

        What is refused all the same, as a bid that is too low, comes with ``new_contracts``, the instances that there
        are now: none is rented without a word.
        """
        body = await read_json(request)
        asks = body.pop("ids", None)
        if not isinstance(asks, list) or not asks or not all(type(ask) is int for ask in asks):
            raise BadField("ids is not a list of ask ids.")
        if len(set(asks)) != len(asks):
            raise BadField("ids names an ask twice.")
        order = _order(body)
        if order.volume and len(asks) > 1:
            raise BadField("volume_info: one instance has a volume at a time.")
        records = [self._fitting(ask, order) for ask in asks]
        contracts: list[int] = []
        for ask, record in zip(asks, records, strict=True):
            try:
                contracts.append(self._rent(ask, record, order))
            except VastError as error:
                if "new_contract" in error.body:
                    contracts.append(int(str(error.body["new_contract"])))
                error.body["new_contracts"] = contracts
                raise
            except EngineError as error:  # no address is free any more
                raise VastError(503, "server_error", str(error), new_contracts=contracts) from None
        return JSONResponse({"success": True, "new_contracts": contracts})

    def _fitting(self, ask: int, order: _Order) -> Json:
        """Return the machine behind an ask when the order fits it."""
        record = self._rentable(ask)
        if not _LEAST_DISK_GB <= order.disk_gb <= record["disk_space"]:
            raise BadField(f"disk {order.disk_gb:g} is not between {_LEAST_DISK_GB:g} and {record['disk_space']}.")
        self._volumes.check(order.volume, record)
        return record

    def _rent(self, ask: int, record: Json, order: _Order) -> int:
        """Rent an ask and return the contract's number."""
        cloud, world = self._cloud, self._cloud.world
        if cloud.take_fault("vast", "no-capacity"):
            raise _gone(ask)
        outbid = order.bid is not None and order.bid < record["min_bid"]
        if outbid and order.cancel_unavailable:
            raise VastError(400, "invalid_price", f"error 400/3480: bid {order.bid:g} is below {record['min_bid']:g}")
        number = world.next_number()
        contract = _FIRST_INSTANCE + number
        inside = [boxes.SSH, *order.ports]
        outside = boxes.choose_high_ports(len(inside))
        rental = Rental(
            provider="vast",
            id=str(contract),
            item=str(record["machine_id"]),
            region=record["geolocation"],
            label=order.label,
            container=f"{cloud.settings.network}-vast-{contract}",
            image=order.image if boxes.is_here(order.image) else images.ML_IMAGE,
            address=boxes.choose_address(cloud.settings.name, number, *outside),
            ports={str(port): high for port, high in zip(inside, outside, strict=True)},
            created_at=cloud.clock(),
            phase=Phase.BOOTING,
            phase_since=cloud.clock(),
            made=False,
            public_keys=[key.public for key in world.keys["vast"]],
            disk_gb=order.disk_gb,
            bid=order.bid,
            item_record=record,
            request={**order.request, "account_env": self._variables.values},
            mounts=self._volumes.mounts(order.volume, record),
        )
        rental.open_line(DISK_LINE, catalogue.storage_per_hour(record, order.disk_gb), rental.created_at)
        cloud.rent(rental, started=not outbid and order.started)
        if outbid:
            # The trap: an error, and yet a stopped instance that bills its disk.
            message = f"error 400/3480: bid {order.bid:g} is below {record['min_bid']:g}, instance created stopped"
            raise VastError(400, "invalid_price", message, new_contract=contract)
        return contract

    def _rentable(self, ask: int) -> Json:
        for record in self._cloud.vast_records:
            machine = str(record["machine_id"])
            listing = self._cloud.world.listings.get(machine, 0)
            if catalogue.vast_ask_id(record, listing) == ask and not self._cloud.machine_taken(machine):
                return record
        raise _gone(ask)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def show(self, request: Request) -> Response:
        """Answer ``GET /instances/{id}/``: ``null`` where it was destroyed, 404 where it never was."""
        self._cloud.look()
        rental_id = str(request.path_params["id"])
        rental = self._cloud.world.find("vast", rental_id)
        if rental is not None:
            row = self.row(rental)
            del row["volume_info"]  # only the list has it
            return JSONResponse({"instances": row})
        if any(old.provider == "vast" and old.id == rental_id for old in self._cloud.world.rentals):
            return JSONResponse({"instances": None})
        raise VastError(404, "no_such_instance", f"error 404/3603: no_such_instance Instance {rental_id} not found")

    async def list_v0(self, request: Request) -> Response:
        """Answer the old list, which is gone for migrated accounts."""
        raise VastError(410, "deprecated_endpoint", "This endpoint is deprecated, use /api/v1/instances/")

    async def list_v1(self, request: Request) -> Response:
        """Answer one page of the list, at most 25 rows, with a token for the next."""
        self._cloud.look()
        params = request.query_params
        known = {"select_filters", "order_by", "limit", "after_token", "select_cols", "owner", "api_key"}
        fields.only(dict(params), known)
        filters = _json_param(params.get("select_filters"), dict)
        order = _json_param(params.get("order_by"), list) or [{"col": "id", "dir": "asc"}]
        columns = _json_param(params.get("select_cols"), list)
        if not all(isinstance(name, str) for name in columns):
            raise VastError(400, "invalid_request", "select_cols is not a list of names")
        try:
            limit = int(params.get("limit", _PAGE))
        except ValueError:
            raise VastError(400, "invalid_request", "limit is not a number") from None
        limit = 5 if limit <= 0 else min(limit, _PAGE)
        rows = [self.row(rental) for rental in self._cloud.world.living("vast")]
        total = len(rows)
        try:
            for field, condition in filters.items():
                if field in _COMPUTED or (rows and field not in rows[0]):
                    raise VastError(400, "invalid_request", f"cannot filter by {field}")
                rows = [row for row in rows if conditions.matches(row.get(field), condition, field=field)]
            keys = [(str(key["col"]), str(key.get("dir", "asc"))) for key in order]
        except (conditions.BadFilter, KeyError, TypeError, AttributeError) as error:
            raise VastError(400, "invalid_request", str(error)) from None
        rows.sort(key=lambda row: int(row["id"]))
        for field, direction in reversed(keys):
            rows.sort(key=lambda row, name=field: conditions.sort_key(row.get(name)), reverse=direction == "desc")  # type: ignore[misc]
        found = len(rows)
        labels = Counter(row["label"] or "" for row in rows)
        token = params.get("after_token")
        if token:
            rows = rows[_position(token, rows) :]
        page = rows[:limit]
        more = len(rows) > limit
        if columns and columns != ["*"]:
            page = [{name: row.get(name) for name in {"id", *columns}} for row in page]
        return JSONResponse(
            {
                "success": True,
                "instances_found": found,
                "total_instances": total,
                "label_counts": dict(labels),
                "next_token": _token(page[-1]["id"]) if more else None,
                "instances": page,
            }
        )

    async def filters(self, request: Request) -> Response:
        """Answer the distinct values by which the client lets its user filter."""
        names = ("actual_status", "verification", "gpu_name")
        rows = [self.row(rental) for rental in self._cloud.world.living("vast")]
        combinations = {tuple(row[name] for name in names) for row in rows}
        return JSONResponse(
            {"success": True, "filters": [dict(zip(names, values, strict=True)) for values in combinations]}
        )

    def row(self, rental: Rental) -> Json:
        """Return an instance as Vast shows it."""
        record, now = rental.item_record, self._cloud.clock()
        status = actual_status(rental, self._cloud.boot_fraction(rental))
        runtype = rental.request.get("runtype") or "ssh_proxy"
        running = rental.phase is Phase.RUNNING
        direct = record["direct_port_count"] > 0 and "direc" in runtype
        ports = {f"{inside}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(out)}] for inside, out in rental.ports.items()}
        if not direct:
            ports.clear()
        # A container that ended by itself is "exited", but its contract goes on.
        state = "running" if rental.phase in (Phase.RUNNING, Phase.BOOTING, Phase.EXITED) else "stopped"
        environment = rental.request.get("env")
        gpu, disk = EMULATED["vast"].gpu_price(rental), catalogue.storage_per_hour(record, rental.disk_gb)
        row: Json = {
            "id": int(rental.id),
            "machine_id": record["machine_id"],
            "host_id": 60_000 + record["machine_id"] % 1000,
            "label": rental.label or None,
            "image_uuid": rental.request.get("image") or rental.image,
            "image_args": [],
            "image_runtype": runtype,
            "onstart": rental.request.get("onstart"),
            "extra_env": [
                [name, value] for name, value in (environment if isinstance(environment, dict) else {}).items()
            ],
            "actual_status": status,
            "intended_status": rental.intended,
            "cur_state": state,
            "next_state": rental.intended if rental.relet else state,
            "status_msg": rental.status_text
            or (f"success, running {rental.request.get('image')}" if running else None),
            "ssh_host": rental.address if status is not None else None,
            "ssh_port": rental.ports[str(boxes.SSH)] if status is not None else None,
            "ssh_idx": "1",
            # The real field may carry a newline; a client has to strip it.
            "public_ipaddr": f"{rental.address}\n",
            "direct_port_start": -1,
            "direct_port_end": -1,
            "machine_dir_ssh_port": rental.ports[str(boxes.SSH)],
            "local_ipaddrs": f"{rental.address} \n",
            "jupyter_token": "",
            "gpu_util": 0.0 if running else None,
            "gpu_temp": 30.0 if running else None,
            "cpu_util": 0.0,
            "mem_usage": 0.5 if running else None,
            "mem_limit": record["cpu_ram"] * record["cpu_cores_effective"] / record["cpu_cores"] / 1000,
            "vmem_usage": 0.0,
            "disk_space": rental.disk_gb,
            "disk_usage": 0.6 if running else None,
            "disk_util": -1,
            "uptime_mins": (now - rental.phase_since) / 60 if running else None,
            "dph_base": gpu,
            "dph_total": gpu + disk,
            "is_bid": rental.bid is not None,
            "storage_total_cost": disk,
            "start_date": rental.created_at,
            "end_date": rental.created_at + record["days_listed"] * 86400,
            "duration": now - rental.created_at,
            "client_run_time": 1.1,
            "host_run_time": record["days_listed"] * 86400,
            "credit_balance": None,
            "time_remaining": "",
            "reliability2": record["reliability"],
            "gpu_total_ram": record["gpu_ram"] * record["num_gpus"],
            "volume_info": self._volumes.shown_by(rental.mounts),
            "template_id": None,
            "template_name": None,
            "template_hash_id": None,
            "is_vm": False,
            "emulated": True,
        }
        row.update({name: record[name] for name in _COPIED})
        if running:
            row["ports"] = ports
        return row

    # -- managing ------------------------------------------------------------------------------------------------------

    def _existing(self, request: Request) -> Rental:
        rental_id = str(request.path_params["id"])
        rental = self._cloud.world.find("vast", rental_id)
        if rental is None:
            raise VastError(404, "no_such_instance", f"error 404/3603: no_such_instance Instance {rental_id} not found")
        return rental

    async def manage(self, request: Request) -> Response:
        """Answer start, stop and label."""
        body = await read_json(request)
        rental = self._existing(request)
        _check_change(body)
        return await self._manage(rental, body)

    async def manage_many(self, request: Request) -> Response:
        """Answer start and stop of several."""
        body = await read_json(request)
        rentals = self._several(body.pop("ids", None))
        _check_change(body)
        for rental in rentals:
            await self._manage(rental, body)
        return JSONResponse({"success": True, "msg": ""})

    async def _manage(self, rental: Rental, body: Json) -> Response:
        if "label" in body:
            rental.label = _label(body)
            self._cloud.save()
        state = body.get("state")
        if state == "running":
            if rental.relet:
                rental.intended = "running"
                self._cloud.save()
                return JSONResponse({"success": False, "msg": _QUEUED})
            await self._cloud.start(rental)
        elif state == "stopped":
            await self._cloud.stop(rental)
        return JSONResponse({"success": True, "msg": ""})

    async def reboot(self, request: Request) -> Response:
        """Answer a reboot, which keeps the GPU."""
        await self._cloud.start(self._existing(request), "reboot")
        return JSONResponse({"success": True, "msg": ""})

    async def change_bid(self, request: Request) -> Response:
        """Answer another bid: one above the others' brings an instance back, one below them stops it."""
        rental, body = self._existing(request), await read_json(request)
        fields.only(body, {"client_id", "price"})
        if rental.bid is None:
            raise VastError(400, "invalid_args", "error 400/3486: the instance is on demand")
        most = _MOST_BID_PER_GPU_USD * max(1, int(rental.item_record["num_gpus"]))
        price = fields.number(body, "price", _LEAST_BID_USD, most)
        if price is None:
            raise VastError(400, "invalid_price", "error 400/3480: price is required")
        await self._cloud.rebid(rental, price)
        return JSONResponse({"success": True, "msg": ""})

    async def request_logs(self, request: Request) -> Response:
        """Answer where the log of an instance will be, which is not there yet when it is first looked for."""
        rental, body = self._existing(request), await read_json(request)
        fields.only(body, {"tail", "filter", "daemon_logs"})
        tail = str(body.get("tail") or _LOG_LINES)
        if not tail.isdigit():
            raise BadField("tail is a number of lines.")
        name = uuid.uuid4().hex
        self._logs[name] = await asyncio.to_thread(self._cloud.engine.logs, rental.container, int(tail))
        self._fresh_logs.add(name)
        address = f"{request.url.scheme}://{request.url.netloc}/api/logs/{rental.id}/{name}"
        return JSONResponse({"success": True, "result_url": address, "msg": ""})

    async def log_file(self, request: Request) -> Response:
        """Answer a log that was asked for; the first look finds nothing yet."""
        name = request.path_params["name"]
        if name not in self._logs or name in self._fresh_logs:
            self._fresh_logs.discard(name)
            return PlainTextResponse("NoSuchKey", 404)
        return PlainTextResponse("\n".join(self._logs[name]))

    async def destroy(self, request: Request) -> Response:
        """Answer ``DELETE /instances/{id}/``."""
        await self._cloud.destroy(self._existing(request))
        return JSONResponse({"success": True, "msg": ""})

    async def destroy_many(self, request: Request) -> Response:
        """Answer ``DELETE /instances/``."""
        body = await read_json(request)
        fields.only(body, {"instance_ids"})
        for rental in self._several(body.get("instance_ids")):
            await self._cloud.destroy(rental)
        return JSONResponse({"success": True, "msg": ""})

    def _several(self, ids: object) -> list[Rental]:
        if not isinstance(ids, list) or not ids or not all(type(item) in (int, str) for item in ids):
            raise BadField("a list of instance ids is required.")
        found = [self._cloud.world.find("vast", str(item)) for item in ids]
        if None in found:
            raise VastError(404, "no_such_instance", "error 404/3603: no_such_instance")
        return [rental for rental in found if rental is not None]

    # -- keys and account ----------------------------------------------------------------------------------------------

    async def keys(self, request: Request) -> Response:
        """Answer the account's SSH keys; with none the real API answers 404."""
        keys = self._cloud.world.keys["vast"]
        if not keys:
            return JSONResponse({"success": False, "msg": "No SSH keys found for the user."}, 404)
        return JSONResponse([_key_row(key) for key in keys])

    async def add_key(self, request: Request) -> Response:
        """Answer a new account key: it opens instances rented from now on."""
        cloud = self._cloud
        public = _public_key(await read_json(request))
        key = next((known for known in cloud.world.keys["vast"] if known.public == public), None)
        if key is None:
            key = SshKey(str(900_000 + cloud.world.next_number()), "", public, cloud.clock())
            cloud.world.keys["vast"].append(key)
            cloud.save()
        return JSONResponse({"success": True, "key": _key_row(key)})

    def _account_key(self, request: Request) -> SshKey:
        key_id = str(request.path_params["key"])
        for key in self._cloud.world.keys["vast"]:
            if key.id == key_id:
                return key
        raise VastError(400, "no_ssh_key", "SSH key not found")

    async def change_key(self, request: Request) -> Response:
        """Answer a changed account key."""
        key = self._account_key(request)
        key.public = _public_key(await read_json(request))
        self._cloud.save()
        return JSONResponse({"success": True, "key": _key_row(key)})

    async def remove_key(self, request: Request) -> Response:
        """Answer a removed account key."""
        self._cloud.world.keys["vast"].remove(self._account_key(request))
        self._cloud.save()
        return JSONResponse({"success": True})

    async def instance_keys(self, request: Request) -> Response:
        """Answer an instance's keys, a list inside a string."""
        rental = self._existing(request)
        rows = [{"id": index + 1, "public_key": key} for index, key in enumerate(rental.public_keys)]
        return JSONResponse({"success": True, "ssh_keys": json.dumps(rows)})

    async def attach_key(self, request: Request) -> Response:
        """Answer a key added to one instance; it works at once."""
        rental = self._existing(request)
        public = _public_key(await read_json(request))
        if public not in rental.public_keys:
            rental.public_keys.append(public)
            await self._cloud.write_keys(rental)
        return JSONResponse({"success": True, "msg": "SSH key added to instance."})

    async def detach_key(self, request: Request) -> Response:
        """Answer a key taken from one instance; it stops working at once."""
        rental = self._existing(request)
        index = request.path_params["key"] - 1
        if not 0 <= index < len(rental.public_keys):
            raise VastError(400, "no_ssh_key", "SSH key not found")
        del rental.public_keys[index]
        await self._cloud.write_keys(rental)
        return JSONResponse({"success": True, "msg": "SSH key removed from instance."})

    async def user(self, request: Request) -> Response:
        """Answer the account: credit falls with the bill."""
        spent = sum(line["amount_usd"] for line in self._cloud.statement()["lines"] if line["provider"] == "vast")
        keys = self._cloud.world.keys["vast"]
        return JSONResponse(
            {
                "id": _USER_ID,
                "email": "sandbox@localhost",
                "username": "sandbox",
                "fullname": "gpuyard sandbox",
                "credit": round(_CREDIT_USD - spent, 6),
                "balance": 0.0,
                "balance_threshold": 0.0,
                "balance_threshold_enabled": False,
                "billing_creditonly": True,
                "can_pay": True,
                "has_billing": True,
                "has_payout": False,
                "email_verified": True,
                "got_signup_credit": False,
                "ssh_key": keys[0].public if keys else None,
                "emulated": True,
            }
        )


def _gone(ask: int) -> VastError:
    message = f"error 410/3907: no_such_ask  Instance type {ask} is not available"
    return VastError(410, "no_such_ask", message, ask_id=ask)


def _label(body: Json) -> str:
    label = fields.text(body, "label", fields.MOST_BYTES)
    if len(label) > _LABEL_MAX:
        raise VastError(400, "label_too_long", f"error 400/3470: label longer than {_LABEL_MAX} characters")
    return label


def _check_change(body: Json) -> None:
    """Refuse a change that cannot be carried out, before any part of it is."""
    fields.only(body, {"state", "label", "client_id"})
    _label(body)
    if body.get("state") not in (None, "running", "stopped"):
        raise BadField("state is neither running nor stopped.")


def _order(body: Json) -> _Order:
    """Return what a create call asks for; everything that is not as it has to be is refused."""
    fields.only(body, _CREATE, {"user": "root"})
    image = fields.text(body, "image", _TEXT_MAX)
    if not _IMAGE.fullmatch(image):
        raise BadField("image is not the name of an image." if image else "image is required.")
    disk = fields.number(body, "disk", 0, _MOST_STORAGE_GB)
    _, ports = vast_environment(body.get("env"))
    onstart = fields.text(body, "onstart", fields.MOST_BYTES, lines=True)
    if len(onstart.encode()) > _ONSTART_MAX_BYTES:
        raise BadField(f"onstart is longer than {_ONSTART_MAX_BYTES} bytes.")
    runtype = fields.text(body, "runtype", _TEXT_MAX)
    if not set(runtype.split()) <= _RUNTYPES:
        raise BadField(f"runtype: the sandbox does not carry out {fields.shown(runtype)!r}, only those with SSH alone.")
    target = fields.text(body, "target_state", _TEXT_MAX) or "running"
    if target not in ("running", "stopped"):
        raise BadField("target_state is neither running nor stopped.")
    try:
        bid = fields.number(body, "price", _LEAST_BID_USD, _MOST_BID_USD)
    except BadField as error:
        raise VastError(400, "invalid_price", f"error 400/3480: {error}") from None
    return _Order(
        image=image,
        disk_gb=_DEFAULT_DISK_GB if disk is None else disk,
        label=_label(body),
        ports=ports,
        onstart=onstart,
        bid=bid,
        started=target == "running",
        cancel_unavailable=bool(body.get("cancel_unavail")),
        volume=wanted_volume(body),
        request={
            "image": image,
            "image_login": fields.text(body, "image_login", _TEXT_MAX),
            "onstart": onstart or None,
            "runtype": runtype,
            "env": body.get("env"),
        },
    )


def _public_key(body: Json) -> str:
    fields.only(body, {"ssh_key", "id"})
    return fields.public_key(body.get("ssh_key"))


def _key_row(key: SshKey) -> Json:
    return {
        "id": int(key.id),
        "user_id": _USER_ID,
        "key": key.public,
        "public_key": key.public,
        "created_at": key.created_at,
        "deleted_at": None,
    }


def _json_param[T](text: str | None, kind: type[T]) -> T:
    if not text:
        return kind()
    try:
        value = fields.parse(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise VastError(400, "invalid_request", f"not a JSON {kind.__name__}: {fields.shown(text)}")
    return value


def _token(rental_id: int) -> str:
    return base64.urlsafe_b64encode(json.dumps({"after": rental_id}).encode()).decode()


def _position(token: str, rows: list[Json]) -> int:
    """Return where the page after ``token`` begins; the row that it names may be gone in the meantime."""
    try:
        after = int(fields.parse(base64.urlsafe_b64decode(token))["after"])
    except (ValueError, KeyError, TypeError):
        raise VastError(400, "invalid_token", "after_token is not valid") from None
    for index, row in enumerate(rows):
        if row["id"] == after:
            return index + 1
    return next((index for index, row in enumerate(rows) if row["id"] > after), len(rows))
