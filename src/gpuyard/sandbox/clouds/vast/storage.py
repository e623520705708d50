"""What a Vast account holds beside instances, on the sandbox: stored variables and local volumes.

SSH keys are in :mod:`gpuyard.sandbox.clouds.vast.api`. Facts: docs/reference/vast.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpuyard.sandbox import catalogue, fields
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds.vast import query as conditions
from gpuyard.sandbox.failures import VastError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Holding, Json
from gpuyard.sandbox.web import read_json

_TEXT_MAX = 400
_VARIABLE = "variable"
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[a-zA-Z0-9_.-]+")
_VALUE_MAX = 4096
_MOST_VARIABLES = 200  # that there is a limit is documented, and not which
_VOLUME = "volume"
_VOLUME_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_FIRST_VOLUME = 40_000_000
_OFFER_STEP = 900  # added to the number of a machine's first ask
_SHARE = 0.5  # of a machine's disk, for volumes
_DEFAULT_GB = 15.0
_MOST_GB = 1e6
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
_HELD_FOR = 2.0  # boot times: how long an instance that was destroyed still holds its volume; really about 30 s
_COPIED = (
    *("host_id", "disk_bw", "disk_name", "driver_version", "inet_up", "inet_down", "reliability2", "verification"),
    *("geolocation", "end_date"),
)


class Variables:
    """Variables that are in the environment of each new instance; their values are never shown."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    @property
    def _there(self) -> dict[str, Holding]:
        return {one.label: one for one in self._cloud.world.held("vast", _VARIABLE)}

    @property
    def values(self) -> dict[str, str]:
        """The variables with their values, as an instance gets them."""
        return {name: str(one.item_record["value"]) for name, one in self._there.items()}

    async def all(self, request: Request) -> Response:
        """Answer the names."""
        return JSONResponse({"success": True, "secrets": dict.fromkeys(self._there, "*****")})

    async def create(self, request: Request) -> Response:
        """Answer a new variable."""
        key, value = _variable(await read_json(request))
        if key in self._there:
            raise VastError(400, "existing_key", f"error 400/2170: {key} exists already")
        if len(self._there) >= _MOST_VARIABLES:
            raise VastError(400, "max_secrets", f"error 400/2171: more than {_MOST_VARIABLES} variables")
        self._cloud.hold(Holding("vast", _VARIABLE, key, key, self._cloud.clock(), item_record={"value": value}))
        return JSONResponse({"success": True, "msg": ""})

    async def change(self, request: Request) -> Response:
        """Answer a variable with another value."""
        key, value = _variable(await read_json(request))
        self._existing(key).item_record["value"] = value
        self._cloud.save()
        return JSONResponse({"success": True, "msg": ""})

    async def delete(self, request: Request) -> Response:
        """Answer a deleted variable."""
        body = await read_json(request)
        fields.only(body, {"key"})
        one = self._existing(fields.text(body, "key", _TEXT_MAX).upper())
        one.item_record.clear()
        await self._cloud.release(one)
        return JSONResponse({"success": True, "msg": ""})

    def _existing(self, key: str) -> Holding:
        if key not in self._there:
            raise VastError(400, "nonexistent_key", f"error 400/2172: {fields.shown(key)} does not exist")
        return self._there[key]


def _variable(body: Json) -> tuple[str, str]:
    fields.only(body, {"key", "value"})
    key, value = fields.text(body, "key", _TEXT_MAX).upper(), fields.text(body, "value", _VALUE_MAX)
    if not key or not value:
        raise VastError(400, "missing_input", "error 400/2169: key and value are required")
    if not _VARIABLE_NAME.fullmatch(key):
        raise BadField("key is not a variable's name.")
    if not _VALUE.fullmatch(value):
        raise BadField("value has letters, digits, _, - and . alone.")
    return key, value


@dataclass(frozen=True, slots=True)
class Wanted:
    """The volume that a create call of an instance names: one that there is, or an offer of which one is made."""

    id: int
    path: str
    is_new: bool
    size_gb: float
    name: str


class Volumes:
    """Local volumes: a part of one machine's disk, which one instance there can have at a time."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    @property
    def _there(self) -> list[Holding]:
        return self._cloud.world.held("vast", _VOLUME)

    def free_gb(self, record: Json) -> float:
        """Return what a machine still has for volumes."""
        mine = [one for one in self._there if one.item_record["machine_id"] == record["machine_id"]]
        return max(0.0, float(record["disk_space"]) * _SHARE - sum(one.size_gb for one in mine))

    def shown_in(self, record: Json) -> Json:
        """Return what an offer of a machine shows of the volumes to be had there."""
        free = self.free_gb(record)
        if free < 1:
            return {}
        price = catalogue.storage_per_hour(record, free)
        return {"avail_vol_ask_id": _offer_id(record), "avail_vol_dph": price, "avail_vol_size": free}

    async def search(self, request: Request) -> Response:
        """Answer the offers of volumes."""
        query = await read_json(request)
        size = fields.number(query, "allocated_storage", 0, _MOST_GB) or 1.0
        records = [record for record in self._cloud.vast_records if self.free_gb(record) >= 1]
        try:
            rows = conditions.search([self._offer(record, size) for record in records], query)
        except (conditions.BadFilter, TypeError, ValueError) as error:
            raise VastError(400, "invalid_args", f"error 400/3413: {error}") from None
        return JSONResponse({"offers": rows})

    def _offer(self, record: Json, size_gb: float) -> Json:
        now = self._cloud.clock()
        row = catalogue.vast_offer(record, listing=0, rentable=True, bid=False, storage_gb=size_gb, now=now)
        ask = _offer_id(record)
        return {**row, "id": ask, "ask_contract_id": ask, "disk_space": self.free_gb(record), "resource_type": "volume"}

    async def all(self, request: Request) -> Response:
        """Answer the account's volumes; network volumes there are none."""
        kind = request.query_params.get("type") or "all_volume"
        if kind not in ("local_volume", "network_volume", "all_volume"):
            raise BadField("type is neither local_volume nor network_volume nor all_volume.")
        there = [] if kind == "network_volume" else self._there
        return JSONResponse({"success": True, "volumes": [self._row(one) for one in there]})

    async def create(self, request: Request) -> Response:
        """Answer a new volume."""
        body = await read_json(request)
        fields.only(body, {"id", "size", "name"})
        if type(body.get("id")) is not int:
            raise BadField("id is not the id of an offer.")
        name, size = _name(body), _size(body)
        volume = self.make(self.record_of(body["id"], size), size, name)
        return JSONResponse({"success": True, "volume_name": f"V.{volume.id}", "volume_id": int(volume.id)})

    def record_of(self, offer_id: int, size_gb: float) -> Json:
        """Return the machine behind an offer of volumes, where it has so much left."""
        for record in self._cloud.vast_records:
            if _offer_id(record) == offer_id:
                if size_gb > self.free_gb(record):
                    raise BadField(f"size {size_gb:g} is more than the {self.free_gb(record):g} GB that are left.")
                return record
        raise VastError(404, "no_such_ask", f"error 404/3907: no_such_ask Volume offer {offer_id} is not available")

    def make(self, record: Json, size_gb: float, name: str) -> Holding:
        """Make a volume on a machine."""
        volume = Holding(
            provider="vast",
            kind=_VOLUME,
            id=str(_FIRST_VOLUME + self._cloud.world.next_number()),
            label=name,
            created_at=self._cloud.clock(),
            region=record["geolocation"],
            size_gb=size_gb,
            item_record=record,
        )
        self._cloud.hold(volume, catalogue.storage_per_hour(record, size_gb))
        return volume

    async def delete(self, request: Request) -> Response:
        """Answer a deleted volume; its id may stand in the query, as the client sends it, or in the body."""
        body = await read_json(request)
        fields.only(body, {"id"})
        volume = self._existing(str(request.query_params.get("id") or body.get("id") or ""))
        if self._users(volume):
            raise VastError(400, "volume_in_use", f"error 400/3711: volume {volume.id} is in use by an instance")
        await self._cloud.release_storage(volume)
        return JSONResponse({"success": True, "msg": ""})

    def _existing(self, volume_id: str) -> Holding:
        for volume in self._there:
            if volume.id == volume_id:
                return volume
        shown = fields.shown(volume_id)
        raise VastError(404, "no_such_volume", f"error 404/3710: no_such_volume Volume {shown} not found")

    def _users(self, volume: Holding) -> list[str]:
        lag_s = _HELD_FOR * self._cloud.settings.boot_seconds
        return [rental.id for rental in self._cloud.world.users(volume, self._cloud.clock(), lag_s)]

    def check(self, wanted: Wanted | None, record: Json) -> None:
        """Refuse a volume that an instance on a machine cannot have."""
        if wanted is None:
            return
        if wanted.is_new:
            if self.record_of(wanted.id, wanted.size_gb)["machine_id"] != record["machine_id"]:
                raise BadField("volume_info: the volume's offer is of another machine.")
            return
        volume = self._existing(str(wanted.id))
        if volume.item_record["machine_id"] != record["machine_id"]:
            raise BadField(f"volume_info: volume {volume.id} is on another machine.")
        if self._users(volume):
            raise BadField(f"volume_info: volume {volume.id} is in use by another instance.")

    def mounts(self, wanted: Wanted | None, record: Json) -> dict[str, str]:
        """Return what an instance gets; a new volume is made."""
        if wanted is None:
            return {}
        volume_id = self.make(record, wanted.size_gb, wanted.name).id if wanted.is_new else str(wanted.id)
        return {volume_id: wanted.path}

    def shown_by(self, mounts: dict[str, str]) -> list[Json]:
        """Return what an instance shows of its volumes, in the list alone."""
        return [
            {"id": int(one.id), "label": one.label, "total_space": one.size_gb, "avail_space": one.size_gb}
            for one in self._cloud.world.holdings
            if one.id in mounts
        ]

    def _row(self, volume: Holding) -> Json:
        offer = self._offer(volume.item_record, volume.size_gb)
        users = self._users(volume)
        return {
            **{name: offer[name] for name in _COPIED},
            "id": int(volume.id),
            "label": volume.label or None,
            "status": "in-use" if users else "created",
            "machine_id": volume.item_record["machine_id"],
            "cluster_id": None,
            "type": "machine",
            "disk_space": volume.size_gb,
            "instances": [int(one) for one in users],
            "start_date": volume.created_at,
            "storage_total_cost": catalogue.storage_per_hour(volume.item_record, volume.size_gb),
            "emulated": True,
        }


def wanted_volume(body: Json) -> Wanted | None:
    """Return the volume that a create call of an instance names, ``None`` where it names none."""
    given = body.get("volume_info")
    if not given:
        return None
    if not isinstance(given, dict):
        raise BadField("volume_info is not an object.")
    fields.only(given, {"create_new", "volume_id", "size", "mount_path", "name"})
    if type(given.get("volume_id")) is not int:
        raise BadField("volume_info: volume_id is not the id of a volume or of an offer.")
    path = fields.text(given, "mount_path", _TEXT_MAX)
    if not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise BadField("volume_info: mount_path is not an absolute path.")
    is_new = given.get("create_new") is True
    return Wanted(given["volume_id"], path, is_new, _size(given) if is_new else 0.0, _name(given))


def _size(body: Json) -> float:
    return fields.number(body, "size", 1, _MOST_GB) or _DEFAULT_GB


def _name(body: Json) -> str:
    name = fields.text(body, "name", _TEXT_MAX)
    if name and not _VOLUME_NAME.fullmatch(name):
        raise VastError(422, "invalid_args", "volume name can only have letters, digits and _, at most 64 of them")
    return name


def _offer_id(record: Json) -> int:
    return catalogue.vast_ask_id(record, 0) + _OFFER_STEP
