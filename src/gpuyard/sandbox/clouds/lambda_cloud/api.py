"""Lambda's HTTP API v1 on the sandbox's rentals: the calls that gpuyard makes, and some of published clients.

Facts, traps and error codes: docs/reference/lambda.md.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from gpuyard.sandbox import boxes, catalogue, fields, images
from gpuyard.sandbox.cloud import INSTANCE_LINE, Cloud
from gpuyard.sandbox.clouds.lambda_cloud.emulated import status_word
from gpuyard.sandbox.clouds.lambda_cloud.storage import FileSystems, SshKeys, missing
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.failures import LambdaError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Json, Phase, Rental
from gpuyard.sandbox.web import BadBody, Rate, Spacing, no_route, read_json

_REQUESTS_PER_SECOND = 1
_LAUNCH_EVERY_S = 12.0
_NAME_MAX = 64
_TEXT_MAX = 255
_USER_DATA_MAX = 1_000_000
_TAG_KEY = re.compile(r"[a-z][a-z0-9-:]{1,54}")
_TAG_VALUE_MAX = 128
_IP_AT = 0.4  # share of the boot time after which the address is known
_STILL_ANSWERED_S = 5.0  # how long a terminated instance still answers, though it is listed no more
# What a launch may say. `quantity` is sent by published clients and has to be 1.
_LAUNCH = {
    "region_name",
    "instance_type_name",
    "ssh_key_names",
    "name",
    "user_data",
    "tags",
    "quantity",
    "file_system_names",
    "file_system_mounts",
}

Handler = Callable[[Request], Awaitable[Response]]


class LambdaApi:
    """The routes below ``/lambda/api/v1``; Vast's own are below ``/api``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._rate = Rate(_REQUESTS_PER_SECOND, 1.0, cloud.clock)
        self._launches = Spacing(cloud.clock)
        self._keys = SshKeys(cloud)
        self._file_systems = FileSystems(cloud)

    def router(self) -> Router:
        """Return the routes."""
        r = self._route
        return Router(
            [
                r("/instance-types", "GET", self.types),
                r("/regions", "GET", self.regions),
                r("/images", "GET", self.systems),
                r("/ssh-keys", "GET", self._keys.all),
                r("/ssh-keys", "POST", self._keys.add),
                r("/ssh-keys/{id}", "DELETE", self._keys.remove),
                r("/file-systems", "GET", self._file_systems.all),
                r("/filesystems", "GET", self._file_systems.all),
                r("/filesystems", "POST", self._file_systems.create),
                r("/filesystems/{id}", "DELETE", self._file_systems.delete),
                r("/instances", "GET", self.instances),
                r("/instances/{id}", "GET", self.show),
                r("/instances/{id}", "POST", self.rename),
                r("/instance-operations/launch", "POST", self.launch),
                r("/instance-operations/terminate", "POST", self.terminate),
                r("/instance-operations/restart", "POST", self.restart),
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
        try:
            if cloud.settings.rate_limits and not self._rate.allows():
                raise LambdaError(429, "global/too-many-requests", "Too many requests.")
            self._check_key(request)
            return await handler(request)
        except LambdaError as error:
            return JSONResponse(error.body, error.status)
        except (BadField, BadBody) as error:
            message = str(error) or "The body is not a JSON object."
            return JSONResponse(LambdaError(400, "global/invalid-parameters", message).body, 400)
        except EngineError as error:
            return JSONResponse(LambdaError(503, "provider/internal-unavailable", str(error)).body, 503)

    def _check_key(self, request: Request) -> None:
        """Refuse a request without the account's key, which may also come as the user name of Basic."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = given.strip()
        if scheme.lower() == "basic":
            key = fields.basic_user(key)
        if not key:
            raise LambdaError(401, "global/invalid-api-key", "No API key was provided.")
        if key != self._cloud.settings.lambda_key:
            raise LambdaError(401, "global/invalid-api-key", "API key was invalid, expired, or deleted.")

    # -- catalogue -----------------------------------------------------------------------------------------------------

    async def types(self, request: Request) -> Response:
        """Answer the instance types by name, each with the regions that say they have capacity."""
        regions = {region["name"]: region for region in catalogue.lambda_regions()}
        data = {
            kind["name"]: {
                "instance_type": _type(kind),
                "regions_with_capacity_available": [regions[name] for name in kind["regions"]],
            }
            for kind in catalogue.lambda_types()
        }
        return JSONResponse({"data": data})

    async def regions(self, request: Request) -> Response:
        """Answer the regions."""
        return JSONResponse({"data": catalogue.lambda_regions()})

    async def systems(self, request: Request) -> Response:
        """Answer the images: Lambda's own, one a region."""
        rows = [
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, region["name"])),
                "name": "lambda-stack-22-04",
                "description": "Lambda Stack 22.04",
                "family": "lambda-stack-22-04",
                "version": "22.4.5",
                "architecture": "x86_64",
                "region": region,
                "created_time": "2026-01-15T00:00:00Z",
                "updated_time": "2026-01-15T00:00:00Z",
            }
            for region in catalogue.lambda_regions()
        ]
        return JSONResponse({"data": rows})

    # -- instances -----------------------------------------------------------------------------------------------------

    async def launch(self, request: Request) -> Response:
        """Answer a new instance's id. Everything is checked before anything is rented."""
        cloud, body = self._cloud, await read_json(request)
        if cloud.settings.rate_limits and not self._launches.allows("launch", _LAUNCH_EVERY_S):
            raise LambdaError(429, "global/too-many-requests", "Only one launch in 12 seconds.")
        fields.only(body, _LAUNCH)
        if fields.number(body, "quantity", 0, 1_000) not in (None, 1):
            raise BadField("Requested too many instances.")
        regions = {region["name"]: region for region in catalogue.lambda_regions()}
        region = fields.text(body, "region_name", _TEXT_MAX)
        if region not in regions:
            raise BadField("region_name is not a region.")
        wanted = body.get("instance_type_name")
        kind = next((known for known in catalogue.lambda_types() if known["name"] == wanted), None)
        if kind is None:
            raise missing("instance type")
        names = fields.texts(body, "ssh_key_names", _TEXT_MAX)
        if len(names) != 1:
            raise BadField("Exactly one SSH key must be named in ssh_key_names.")
        key = self._keys.named(names[0])
        mounts = self._file_systems.mounts(body, region)
        name, tags, user_data = fields.text(body, "name", _NAME_MAX), _tags(body), _user_data(body)
        if region not in kind["regions"] or cloud.take_fault("lambda", "no-capacity"):
            raise LambdaError(
                400,
                "instance-operations/launch/insufficient-capacity",
                "Not enough capacity to fulfill launch request.",
                "Choose an instance type with more availability, or try again later.",
            )
        rental_id, now = uuid.uuid4().hex, cloud.clock()
        rental = Rental(
            provider="lambda",
            id=rental_id,
            item=kind["name"],
            region=region,
            label=name,
            container=f"{cloud.settings.network}-lambda-{rental_id[:8]}",
            image=images.VM_IMAGE,
            address=boxes.choose_address(cloud.settings.name, cloud.world.next_number(), boxes.SSH),
            ports={str(boxes.SSH): boxes.SSH},
            created_at=now,
            phase=Phase.BOOTING,
            phase_since=now,
            made=False,
            public_keys=[key.public],
            mounts=mounts,
            tags=tags,
            item_record=kind,
            request={"user_data": user_data, "key_name": key.name, "region": regions[region]},
        )
        rental.open_line(INSTANCE_LINE, kind["price_cents_per_hour"] / 100, now)
        cloud.rent(rental)
        return JSONResponse({"data": {"instance_ids": [rental_id]}})

    async def instances(self, request: Request) -> Response:
        """Answer all instances that have not ended, in one page."""
        self._cloud.look()
        return JSONResponse({"data": [self.row(rental) for rental in self._cloud.world.living("lambda")]})

    async def show(self, request: Request) -> Response:
        """Answer one instance; one that was terminated still answers for some seconds."""
        self._cloud.look()
        return JSONResponse({"data": self.row(self._existing(request.path_params["id"], ended=True))})

    async def rename(self, request: Request) -> Response:
        """Answer an instance with another name."""
        rental = self._existing(request.path_params["id"])
        body = await read_json(request)
        fields.only(body, {"name"})
        rental.label = fields.text(body, "name", _NAME_MAX)
        self._cloud.save()
        return JSONResponse({"data": self.row(rental)})

    async def terminate(self, request: Request) -> Response:
        """Answer the instances whose end has begun."""
        rentals = await self._several(request)
        for rental in rentals:
            await self._cloud.destroy(rental)
        return JSONResponse({"data": {"terminated_instances": [self.row(rental) for rental in rentals]}})

    async def restart(self, request: Request) -> Response:
        """Answer the instances that boot once more."""
        rentals = await self._several(request)
        for rental in rentals:
            await self._cloud.start(rental, "reboot")
        return JSONResponse({"data": {"restarted_instances": [self.row(rental) for rental in rentals]}})

    async def _several(self, request: Request) -> list[Rental]:
        body = await read_json(request)
        fields.only(body, {"instance_ids"})
        ids = fields.texts(body, "instance_ids", _TEXT_MAX)
        if not ids:
            raise BadField("instance_ids is required.")
        return [self._existing(item) for item in ids]

    def _existing(self, rental_id: str, *, ended: bool = False) -> Rental:
        rental = self._cloud.world.find("lambda", rental_id)
        if rental is None and ended:
            just_now = self._cloud.clock() - _STILL_ANSWERED_S
            rental = next(
                (
                    one
                    for one in self._cloud.world.rentals
                    if one.provider == "lambda" and one.id == rental_id and (one.ended_at or 0.0) > just_now
                ),
                None,
            )
        if rental is None:
            raise missing("instance")
        return rental

    def row(self, rental: Rental) -> Json:
        """Return an instance as Lambda shows it. Fields of which nothing is known are left out."""
        fraction = self._cloud.boot_fraction(rental)
        status = status_word(rental)
        known = rental.address and (rental.phase is not Phase.BOOTING or fraction >= _IP_AT)
        available: Json = {"available": rental.phase is Phase.RUNNING}
        if rental.phase is not Phase.RUNNING:
            available |= {"reason_code": "vm-has-not-launched", "reason_description": "The machine has not launched."}
        return {
            "id": rental.id,
            "name": rental.label,
            **({"ip": rental.address, "private_ip": "10.19.0.2"} if known else {}),
            "status": status,
            "ssh_key_names": [rental.request["key_name"]],
            **self._file_systems.shown(rental),
            "region": rental.request["region"],
            "instance_type": _type(rental.item_record),
            "hostname": boxes.hostname(rental),
            "is_reserved": False,
            "tags": [{"key": key, "value": value} for key, _, value in (tag.partition("=") for tag in rental.tags)],
            "actions": dict.fromkeys(("migrate", "rebuild", "restart", "cold_reboot", "terminate"), available),
            "emulated": True,
        }


def _type(kind: Json) -> Json:
    return {name: value for name, value in kind.items() if name != "regions"}


def _tags(body: Json) -> list[str]:
    """Return the tags as ``key=value``."""
    given = body.get("tags") or []
    if not isinstance(given, list):
        raise BadField("tags is not a list.")
    found = []
    for tag in given:
        if not isinstance(tag, dict) or set(tag) != {"key", "value"}:
            raise BadField("each of tags needs a key and a value.")
        key, value = fields.text(tag, "key", _TEXT_MAX), fields.text(tag, "value", _TAG_VALUE_MAX)
        if not _TAG_KEY.fullmatch(key) or key.startswith("lambda-ai-"):
            raise BadField(
                "the key of a tag has lower-case letters, digits, dashes and colons, and begins with a letter."
            )
        found.append(f"{key}={value}")
    return found


def _user_data(body: Json) -> str:
    """Return the user data, plain text, which has to be a script: nothing in a box reads cloud-init's other forms."""
    script = fields.text(body, "user_data", _USER_DATA_MAX, lines=True)
    if script and not script.startswith("#!"):
        raise BadField("The sandbox does not carry out user_data, unless it is a script that begins with #!.")
    return script
