"""Vultr's HTTP API v2 on the sandbox's rentals: catalogue, account, SSH keys, instances.

Facts, traps and error texts: docs/reference/vultr.md.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from gpuyard.sandbox import boxes, catalogue, fields, images
from gpuyard.sandbox.cloud import INSTANCE_LINE, Cloud
from gpuyard.sandbox.clouds.vultr.emulated import status_words
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Json, Phase, Rental, SshKey
from gpuyard.sandbox.web import BadBody, Rate, no_route, read_json

_PLAN_TYPES = ["all", "vc2", "vhf", "vhp", "voc", "voc-g", "voc-s", "voc-c", "voc-m", "vdc", "vx1", "vcg", "vdg", "vdm"]
_REQUESTS_PER_SECOND = 30
_PER_PAGE = 100
_PER_PAGE_MAX = 500
_SOURCES = ("os_id", "image_id", "app_id", "snapshot_id", "iso_id")
# What a create call and a change may say. Options beyond these are refused where they ask for something.
_CREATE = {
    *("region", "plan", "os_id", "sshkey_id", "user_data", "label", "hostname", "tags", "tag", "user_scheme"),
    "activation_email",  # without an effect: nobody gets a mail
}
_CHANGE = {"label", "tags", "tag", "user_data"}
_HARMLESS = {"backups": "disabled"}
_USER_SCHEMES = ("root", "limited")
_NO_SYSTEM = ("iso", "snapshot")  # entries of the list of systems that stand for something else to boot from
_TEXT_MAX = 255
_MESSAGE_MAX = 400
_SCRIPT_MAX = 100_000
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

Handler = Callable[[Request], Awaitable[Response]]


class VultrError(Exception):
    """A failure in Vultr's envelope."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": fields.shown(message, _MESSAGE_MAX), "status": status}


class VultrApi:
    """The routes below ``/v2``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._rate = Rate(_REQUESTS_PER_SECOND, 1.0, cloud.clock)

    def router(self, more: Sequence[Route] = ()) -> Router:
        """Return the routes, with those that are made elsewhere."""
        r, instance, key = self.route, "/instances/{id}", "/ssh-keys/{id}"
        return Router(
            [
                r("/regions", "GET", self.regions, public=True),
                r("/regions/{id}/availability", "GET", self.availability, public=True),
                r("/plans", "GET", self.plans, public=True),
                r("/plans-metal", "GET", self.plans_metal, public=True),
                r("/os", "GET", self.systems, public=True),
                # The real API has no such routes, and says so.
                *(r(f"/{name}/{{id}}", "GET", self.missing, public=True) for name in ("regions", "plans", "os")),
                r("/account", "GET", self.account),
                r("/ssh-keys", "GET", self.keys),
                r("/ssh-keys", "POST", self.add_key),
                r(key, "GET", self.show_key),
                r(key, "PATCH", self.change_key),
                r(key, "DELETE", self.remove_key),
                r("/instances", "GET", self.instances),
                r("/instances", "POST", self.create),
                r("/instances/start", "POST", self.start_many),
                r("/instances/halt", "POST", self.halt_many),
                r("/instances/reboot", "POST", self.reboot_many),
                r(instance, "GET", self.show),
                r(instance, "PATCH", self.change),
                r(instance, "DELETE", self.delete),
                r(f"{instance}/user-data", "GET", self.user_data),
                r(f"{instance}/vpcs", "GET", self.vpcs),
                r(f"{instance}/start", "POST", self.start),
                r(f"{instance}/halt", "POST", self.halt),
                r(f"{instance}/reboot", "POST", self.reboot),
                r("/bare-metals", "GET", self.metals),
                r("/bare-metals", "POST", self.create_metal),
                r("/bare-metals/{id}", "GET", self.show_metal),
                r("/bare-metals/{id}", "DELETE", self.delete_metal),
                r("/bare-metals/{id}/reboot", "POST", self.reboot_metal),
                *more,
            ],
            redirect_slashes=False,
            default=no_route,
        )

    def route(self, path: str, method: str, handler: Handler, *, public: bool = False) -> Route:
        """Return a route behind what holds for all of them: the key, the limits, the faults, the errors' envelope."""

        async def guarded(request: Request) -> Response:
            return await self._guard(request, handler, public)

        return Route(path, guarded, methods=[method])

    async def _guard(self, request: Request, handler: Handler, public: bool) -> Response:
        cloud = self._cloud
        try:
            if cloud.settings.rate_limits and not self._rate.allows():
                raise VultrError(429, "Rate limit exceeded.")
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            known = scheme.lower() == "bearer" and key.strip() == cloud.settings.vultr_key
            if not public and not known:
                raise VultrError(401, "Invalid API token.")
            if request.method in ("POST", "PATCH", "PUT") and await request.body():
                content_type = request.headers.get("content-type", "").partition(";")[0].strip()
                if content_type != "application/json":
                    raise VultrError(400, "Content-Type must be application/json.")
            return await handler(request)
        except VultrError as error:
            return JSONResponse(error.body, error.status)
        except BadField as error:
            return JSONResponse(VultrError(400, str(error)).body, 400)
        except BadBody:
            return JSONResponse({"error": "Invalid JSON.", "status": 400}, 400)
        except EngineError as error:
            return JSONResponse(VultrError(503, str(error)).body, 503)

    async def missing(self, request: Request) -> Response:
        """Answer a route that the real API has not either."""
        raise VultrError(404, "Not found.")

    # -- catalogue -----------------------------------------------------------------------------------------------------

    async def regions(self, request: Request) -> Response:
        """Answer the regions. Their total is the page's size and one more until one page holds them all."""
        return page(request, "regions", catalogue.vultr_regions(), true_total=False)

    async def availability(self, request: Request) -> Response:
        """Answer what is in stock in a region."""
        region = request.path_params["id"]
        if all(known["id"] != region for known in catalogue.vultr_regions()):
            raise VultrError(404, "Not found.")
        plans = [plan["id"] for plan in _typed(request) if region in plan["locations"]]
        return JSONResponse({"available_plans": plans})

    async def plans(self, request: Request) -> Response:
        """Answer the plans of virtual machines, of one type where asked."""
        return page(request, "plans", _typed(request), filters=("type",))

    async def plans_metal(self, request: Request) -> Response:
        """Answer the bare-metal plans."""
        return page(request, "plans_metal", catalogue.vultr_metal())

    async def systems(self, request: Request) -> Response:
        """Answer the operating systems."""
        return page(request, "os", catalogue.vultr_os())

    async def account(self, request: Request) -> Response:
        """Answer the account: a negative balance is credit."""
        pending = sum(line["amount_usd"] for line in self._cloud.statement()["lines"] if line["provider"] == "vultr")
        account = {
            "name": "gpuyard sandbox",
            "email": "sandbox@localhost",
            "acls": ["manage_users", "subscriptions", "provisioning", "billing"],
            "balance": -100.0,
            "pending_charges": round(pending, 6),
            "last_payment_date": date(self._cloud.clock()),
            "last_payment_amount": -100.0,
        }
        return JSONResponse({"account": account})

    # -- SSH keys ------------------------------------------------------------------------------------------------------

    async def keys(self, request: Request) -> Response:
        """Answer the account's SSH keys."""
        return page(request, "ssh_keys", [_key_row(key) for key in self._cloud.world.keys["vultr"]])

    async def add_key(self, request: Request) -> Response:
        """Answer a new SSH key."""
        body = await read_json(request)
        fields.only(body, {"name", "ssh_key"})
        name = fields.text(body, "name", _TEXT_MAX)
        if not name:
            raise VultrError(400, "Invalid SSH key name.")
        key = SshKey(str(uuid.uuid4()), name, _public_key(body), self._cloud.clock())
        self._cloud.world.keys["vultr"].append(key)
        self._cloud.save()
        return JSONResponse({"ssh_key": _key_row(key)}, 201)

    def _key(self, key_id: str, status: int = 404, message: str = "Invalid SSH key ID.") -> SshKey:
        for key in self._cloud.world.keys["vultr"]:
            if key.id == key_id:
                return key
        raise VultrError(status, message)

    async def show_key(self, request: Request) -> Response:
        """Answer one SSH key."""
        return JSONResponse({"ssh_key": _key_row(self._key(request.path_params["id"]))})

    async def change_key(self, request: Request) -> Response:
        """Answer a changed SSH key."""
        key = self._key(request.path_params["id"])
        body = await read_json(request)
        fields.only(body, {"name", "ssh_key"})
        name = fields.text(body, "name", _TEXT_MAX) or key.name
        public = _public_key(body) if body.get("ssh_key") is not None else key.public
        key.name, key.public = name, public
        self._cloud.save()
        return Response(status_code=204)

    async def remove_key(self, request: Request) -> Response:
        """Answer a removed SSH key."""
        self._cloud.world.keys["vultr"].remove(self._key(request.path_params["id"]))
        self._cloud.save()
        return Response(status_code=204)

    # -- instances -----------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Answer a new instance."""
        rental = await self._create(request, catalogue.vultr_plans(), _CREATE)
        row = {**self.row(rental), "default_password": secrets.token_urlsafe(12)}
        return JSONResponse({"instance": row}, 202)

    async def create_metal(self, request: Request) -> Response:
        """Answer a new bare-metal machine."""
        rental = await self._create(request, catalogue.vultr_metal(), _CREATE)
        return JSONResponse({"bare_metal": self.metal_row(rental)}, 202)

    async def _create(self, request: Request, plans: list[Json], known_fields: set[str]) -> Rental:
        """Rent what a request says. Everything is checked before anything is rented."""
        cloud, body = self._cloud, await read_json(request)
        region = fields.text(body, "region", _TEXT_MAX)
        if all(known["id"] != region for known in catalogue.vultr_regions()):
            raise VultrError(400, "Invalid location chosen.")
        plan = next((known for known in plans if known["id"] == body.get("plan")), None)
        if plan is None:
            raise VultrError(400, "Invalid plan chosen.")
        sources = [name for name in _SOURCES if body.get(name)]
        if len(sources) != 1:
            raise VultrError(400, f"Exactly one of {', '.join(_SOURCES)} is required.")
        fields.only(body, known_fields, {} if is_metal_plan(plan) else _HARMLESS)
        system = next((known for known in catalogue.vultr_os() if known["id"] == body.get("os_id")), None)
        if system is None:
            raise VultrError(400, "Invalid OS.")
        if system["family"] in _NO_SYSTEM:
            raise BadField(f"The sandbox does not carry out os_id {system['id']} ({system['name']}).")
        keys = [self._key(key, 400) for key in fields.texts(body, "sshkey_id", _TEXT_MAX)]
        hostname = fields.text(body, "hostname", _TEXT_MAX)
        if hostname and not _HOSTNAME.fullmatch(hostname):
            raise BadField("hostname is not a host name of letters, digits and dashes.")
        label, tags, user_data = fields.text(body, "label", _TEXT_MAX), _tags(body), _user_data(body)
        user_scheme = fields.text(body, "user_scheme", _TEXT_MAX) or "root"
        if user_scheme not in _USER_SCHEMES:
            raise BadField(f"user_scheme is neither {' nor '.join(_USER_SCHEMES)}.")
        if region not in plan["locations"] or cloud.take_fault("vultr", "no-capacity"):
            raise VultrError(400, "Plan is not available in the selected region.")
        number = cloud.world.next_number()
        rental_id = str(uuid.uuid4())
        hourly, monthly = catalogue.vultr_price(plan, region)
        now = cloud.clock()
        rental = Rental(
            provider="vultr",
            id=rental_id,
            item=plan["id"],
            region=region,
            label=label,
            container=f"{cloud.settings.network}-vultr-{rental_id[:8]}",
            image=images.VM_IMAGE,
            address=boxes.choose_address(cloud.settings.name, number, boxes.SSH),
            ports={str(boxes.SSH): boxes.SSH},
            created_at=now,
            phase=Phase.BOOTING,
            phase_since=now,
            made=False,
            public_keys=[key.public for key in keys],
            tags=tags,
            item_record=plan,
            request={
                "os": system["name"],
                "os_id": system["id"],
                "hostname": hostname,
                "user_data": user_data,
                "user_scheme": user_scheme,
            },
        )
        rental.open_line(INSTANCE_LINE, hourly, now, monthly)
        cloud.rent(rental)
        return rental

    def _existing(self, rental_id: str, *, metal: bool = False) -> Rental:
        rental = self._cloud.world.find("vultr", rental_id)
        if rental is None or is_metal_plan(rental.item_record) is not metal:
            raise VultrError(404, "Bare metal server not found." if metal else "Instance not found.")
        return rental

    async def instances(self, request: Request) -> Response:
        """Answer one page of the instances, filtered where asked."""
        self._cloud.look()
        wanted = request.query_params
        rentals = self._cloud.world.living("vultr")
        rows = [self.row(rental) for rental in rentals if not is_metal_plan(rental.item_record)]
        for field in ("label", "main_ip", "region"):
            if field in wanted:
                rows = [row for row in rows if row[field] == wanted[field]]
        if "tag" in wanted:
            rows = [row for row in rows if wanted["tag"] in row["tags"]]
        return page(request, "instances", rows, filters=("label", "main_ip", "region", "tag"))

    async def show(self, request: Request) -> Response:
        """Answer one instance; 404 where it was deleted."""
        self._cloud.look()
        return JSONResponse({"instance": self.row(self._existing(request.path_params["id"]))})

    async def metals(self, request: Request) -> Response:
        """Answer one page of the bare-metal machines."""
        self._cloud.look()
        rentals = self._cloud.world.living("vultr")
        rows = [self.metal_row(rental) for rental in rentals if is_metal_plan(rental.item_record)]
        return page(request, "bare_metals", rows)

    async def show_metal(self, request: Request) -> Response:
        """Answer one bare-metal machine."""
        self._cloud.look()
        return JSONResponse({"bare_metal": self.metal_row(self._existing(request.path_params["id"], metal=True))})

    async def delete_metal(self, request: Request) -> Response:
        """Answer the end of a bare-metal machine."""
        await self._cloud.destroy(self._existing(request.path_params["id"], metal=True))
        return Response(status_code=204)

    async def reboot_metal(self, request: Request) -> Response:
        """Answer a reboot."""
        await self._cloud.start(self._existing(request.path_params["id"], metal=True), "reboot")
        return Response(status_code=204)

    async def user_data(self, request: Request) -> Response:
        """Answer what the instance was given to run at its first boot."""
        rental = self._existing(request.path_params["id"])
        return JSONResponse({"user_data": {"data": rental.request.get("user_data") or ""}})

    async def vpcs(self, request: Request) -> Response:
        """Answer the private networks that an instance is on: none, since they are not carried out."""
        self._existing(request.path_params["id"])
        return page(request, "vpcs", [])

    async def change(self, request: Request) -> Response:
        """Answer a changed label, tags or user data; the last is only kept, since it is for a machine's first boot."""
        rental = self._existing(request.path_params["id"])
        body = await read_json(request)
        fields.only(body, _CHANGE, self._kept(rental))
        label, tags, user_data = fields.text(body, "label", _TEXT_MAX), _tags(body), _user_data(body)
        if "label" in body:
            rental.label = label
        if "tags" in body or "tag" in body:
            rental.tags = tags
        if "user_data" in body:
            rental.request["user_data"] = user_data
        self._cloud.save()
        return JSONResponse({"instance": self.row(rental)}, 202)

    def _kept(self, rental: Rental) -> Json:
        """Return what a change may name, when it says what is there already."""
        row = self.row(rental)
        return {**_HARMLESS, **{name: row[name] for name in ("plan", "os_id", "user_scheme")}}

    async def delete(self, request: Request) -> Response:
        """Answer the end of an instance."""
        await self._cloud.destroy(self._existing(request.path_params["id"]))
        return Response(status_code=204)

    async def start(self, request: Request) -> Response:
        """Answer a start."""
        await self._start([self._existing(request.path_params["id"])])
        return Response(status_code=204)

    async def halt(self, request: Request) -> Response:
        """Answer a halt: the machine stops, the bill does not."""
        await self._cloud.stop(self._existing(request.path_params["id"]))
        return Response(status_code=204)

    async def reboot(self, request: Request) -> Response:
        """Answer a reboot."""
        await self._cloud.start(self._existing(request.path_params["id"]), "reboot")
        return Response(status_code=204)

    async def start_many(self, request: Request) -> Response:
        """Answer a start of several."""
        await self._start(await self._several(request))
        return Response(status_code=204)

    async def halt_many(self, request: Request) -> Response:
        """Answer a halt of several."""
        for rental in await self._several(request):
            await self._cloud.stop(rental)
        return Response(status_code=204)

    async def reboot_many(self, request: Request) -> Response:
        """Answer a reboot of several."""
        for rental in await self._several(request):
            await self._cloud.start(rental, "reboot")
        return Response(status_code=204)

    async def _start(self, rentals: list[Rental]) -> None:
        for rental in rentals:
            if rental.suspended:
                raise VultrError(400, "Server is suspended.")
            await self._cloud.start(rental)

    async def _several(self, request: Request) -> list[Rental]:
        body = await read_json(request)
        fields.only(body, {"instance_ids"})
        ids = fields.texts(body, "instance_ids", _TEXT_MAX)
        if not ids:
            raise VultrError(400, "instance_ids is required.")
        return [self._existing(item) for item in ids]

    def metal_row(self, rental: Rental) -> Json:
        """Return a bare-metal machine as Vultr shows it: with texts for sizes, and without its power and server."""
        plan = rental.item_record
        status, _, _, address_known = status_words(rental, self._cloud.boot_fraction(rental))
        return {
            "id": rental.id,
            "os": rental.request.get("os") or "",
            "ram": f"{plan['ram']} MB",
            "disk": f"{plan['disk_count']} x {plan['disk']} GB {plan['type']}",
            "main_ip": (rental.address if address_known else "") or "0.0.0.0",
            "cpu_count": plan["cpu_count"],
            "region": rental.region,
            "plan": plan["id"],
            "date_created": date(rental.created_at),
            # Until it runs, since nothing else would tell.
            "status": status if rental.phase is not Phase.BOOTING else "pending",
            "netmask_v4": "255.255.254.0" if address_known else "",
            "gateway_v4": "0.0.0.0",
            "v6_network": "",
            "v6_main_ip": "",
            "v6_network_size": 0,
            "mac_address": 0,
            "label": rental.label,
            "tag": rental.tags[0] if rental.tags else "",
            "tags": rental.tags,
            "os_id": rental.request.get("os_id") or 0,
            "app_id": 0,
            "image_id": "",
            "features": [],
            "user_scheme": rental.request.get("user_scheme") or "root",
            "emulated": True,
        }

    def row(self, rental: Rental) -> Json:
        """Return an instance as Vultr shows it."""
        plan = rental.item_record
        status, power, server, address_known = status_words(rental, self._cloud.boot_fraction(rental))
        return {
            "id": rental.id,
            "os": rental.request.get("os") or "",
            "ram": plan["ram"],
            "disk": plan["disk"],
            "main_ip": (rental.address if address_known else "") or "0.0.0.0",
            "vcpu_count": plan["vcpu_count"],
            "region": rental.region,
            "plan": plan["id"],
            "date_created": date(rental.created_at),
            "status": status,
            "allowed_bandwidth": plan["bandwidth"],
            "netmask_v4": "255.255.254.0" if address_known else "",
            "gateway_v4": "0.0.0.0",
            "power_status": power,
            "server_status": server,
            "v6_network": "",
            "v6_main_ip": "",
            "v6_network_size": 0,
            "label": rental.label,
            "internal_ip": "",
            "kvm": "",
            "hostname": boxes.hostname(rental),
            "tag": rental.tags[0] if rental.tags else "",
            "tags": rental.tags,
            "os_id": rental.request.get("os_id") or 0,
            "app_id": 0,
            "image_id": "",
            "snapshot_id": "",
            "firewall_group_id": "",
            "features": [],
            "user_scheme": rental.request.get("user_scheme") or "root",
            "vpc_only": False,
            "emulated": True,
        }


def is_metal_plan(plan: Json) -> bool:
    """Return whether a plan is one of bare metal."""
    return str(plan["id"]).startswith("vbm-")


def _typed(request: Request) -> list[Json]:
    kind = request.query_params.get("type") or "all"
    if kind not in _PLAN_TYPES:
        raise VultrError(400, f"Invalid type, must be one of: {', '.join(_PLAN_TYPES)}")
    return [plan for plan in catalogue.vultr_plans() if kind in ("all", plan["type"])]


def page(
    request: Request, name: str, rows: list[Json], *, filters: tuple[str, ...] = (), true_total: bool = True
) -> Response:
    """Answer one page; both links are always there and empty at the ends.

    ``filters`` are the parameters that have been applied to the rows; any other one is refused.
    """
    fields.only(dict(request.query_params), {"per_page", "cursor", *filters})
    try:
        size = int(request.query_params.get("per_page") or _PER_PAGE)
    except ValueError:
        size = 0
    if not 1 <= size <= _PER_PAGE_MAX:
        # The text is the real one.
        raise VultrError(400, f"per_page must be an number between 1 and {_PER_PAGE_MAX}")
    start = _start(request.query_params.get("cursor") or "", rows, size)
    page = rows[start : start + size]
    more = start + size < len(rows)
    links = {
        "next": _cursor("next", page[-1]) if more else "",
        "prev": _cursor("prev", page[0]) if start and page else "",
    }
    total = len(rows) if true_total or not more else size + 1
    return JSONResponse({name: page, "meta": {"total": total, "links": links}})


def _cursor(direction: str, row: Json) -> str:
    return base64.b64encode(f"{direction}__{row['id']}".encode()).decode()


def _start(cursor: str, rows: list[Json], size: int) -> int:
    """Return where the page of a cursor begins: behind the row that ``next`` names, or as far before ``prev``'s."""
    if not cursor:
        return 0
    try:
        direction, _, name = base64.b64decode(cursor, validate=True).decode().partition("__")
    except ValueError:
        direction, name = "", ""
    ids = [str(row["id"]) for row in rows]
    if direction not in ("next", "prev") or name not in ids:
        raise VultrError(400, "invalid cursor")
    return ids.index(name) + 1 if direction == "next" else max(0, ids.index(name) - size)


def _tags(body: Json) -> list[str]:
    """Return the tags; the old field ``tag`` holds one."""
    return fields.texts({"tags": body.get("tags") or ([body["tag"]] if body.get("tag") else None)}, "tags", _TEXT_MAX)


def _user_data(body: Json) -> str:
    """Return the user data as it came, which has to be a script: nothing in a box reads cloud-init's other forms."""
    encoded = fields.text(body, "user_data", _SCRIPT_MAX, lines=True)
    try:
        script = base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        raise VultrError(400, "Script must be base64 encoded") from None
    if script and not script.startswith(b"#!"):
        raise BadField("The sandbox does not carry out user_data, unless it is a script that begins with #!.")
    return encoded


def _public_key(body: Json) -> str:
    try:
        return fields.public_key(body.get("ssh_key"))
    except BadField:
        raise VultrError(400, "Invalid SSH key.") from None


def _key_row(key: SshKey) -> Json:
    return {"id": key.id, "name": key.name, "ssh_key": key.public, "date_created": date(key.created_at)}


def date(seconds: float) -> str:
    """Return a time as Vultr writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))
