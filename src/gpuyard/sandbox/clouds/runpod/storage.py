"""What a RunPod account holds beside pods, on the sandbox: network volumes and SSH keys (docs/reference/runpod.md)."""

from __future__ import annotations

import re
import secrets
import string
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpuyard.sandbox import catalogue, fields
from gpuyard.sandbox.bill import HOURS_PER_MONTH
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.failures import RunPodError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Holding, Json, SshKey
from gpuyard.sandbox.web import LostAnswer, read_json

_TEXT_MAX = 255
_LEAST_GB, _MOST_GB = 10, 4096
_TYPES = ("STANDARD", "HIGH_PERFORMANCE")
_USD_PER_GB_MONTH, _ABOVE_USD_PER_GB_MONTH, _ABOVE_GB = 0.07, 0.05, 1000
_ID = string.ascii_lowercase + string.digits
_KIND = "filesystem"
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,200}")


def page(request: Request, name: str, rows: list[Json]) -> Response:
    """Answer a list, in pages where a limit is asked for."""
    limit = int(fields.number(dict(request.query_params), "limit", 1, 1000) or len(rows) or 1)
    cursor = request.query_params.get("cursor") or ""
    ids = [row["id"] for row in rows]
    start = ids.index(cursor) + 1 if cursor in ids else 0
    shown = rows[start : start + limit]
    more = start + limit < len(rows)
    pagination = {"nextCursor": shown[-1]["id"] if more else None, "hasNextPage": more}
    return JSONResponse({name: shown, "pagination": pagination})


class AccountKeys:
    """The account's SSH keys: one list, which every change replaces."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    @property
    def public(self) -> list[str]:
        """The keys as they came."""
        return [key.public for key in self._cloud.world.keys["runpod"]]

    async def keys(self, request: Request) -> Response:
        """Answer the account's keys."""
        return JSONResponse({"keys": self.public})

    async def replace(self, request: Request) -> Response:
        """Replace the whole list of the account's keys."""
        body = await read_json(request)
        fields.only(body, {"keys"})
        given = body.get("keys")
        if not isinstance(given, list):
            raise BadField("keys is not a list")
        now = self._cloud.clock()
        self._cloud.world.keys["runpod"] = [SshKey("", "", fields.public_key(key), now) for key in given]
        self._cloud.save()
        if self._cloud.take_fault("runpod", "lost-answer"):
            return LostAnswer()
        return JSONResponse({"keys": self.public})


class NetworkVolumes:
    """Storage of a data centre, which pods get when they are created; it bills by its size, used or not."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def existing(self, volume_id: str) -> Holding:
        """Return a volume that is there, else answer 404."""
        for volume in self._cloud.world.held("runpod", _KIND):
            if volume.id == volume_id:
                return volume
        raise RunPodError(404, "Not Found", "resource not found")

    def mounts(self, body: Json, cloud_type: str) -> dict[str, str]:
        """Return the volume that a pod is created with, and where it gets it. The pod's own disk is no volume."""
        wanted = body.get("mounts") or {}
        if not isinstance(wanted, dict):
            raise BadField("mounts is not an object")
        fields.only(wanted, {"network"})
        network = wanted.get("network") or []
        if not isinstance(network, list) or len(network) > 1:
            raise BadField("mounts.network is a list of one volume at most")
        found = {}
        for mount in network:
            if not isinstance(mount, dict):
                raise BadField("each of mounts.network is an object")
            fields.only(mount, {"volumeId", "path"})
            path, volume_id = fields.text(mount, "path", _TEXT_MAX), fields.text(mount, "volumeId", _TEXT_MAX)
            if not _PATH.fullmatch(path):
                raise BadField("path of mounts.network is an absolute path")
            if cloud_type != "SECURE":
                raise RunPodError(400, "Bad Request", "network volumes are supported on secure cloud only")
            if volume_id not in [volume.id for volume in self._cloud.world.held("runpod", _KIND)]:
                raise RunPodError(400, "Bad Request", "network volume not found")
            found[volume_id] = path
        return found

    async def all(self, request: Request) -> Response:
        """Answer the account's volumes."""
        return page(request, "networkVolumes", [_row(one) for one in self._cloud.world.held("runpod", _KIND)])

    async def show(self, request: Request) -> Response:
        """Answer one volume."""
        return JSONResponse(_row(self.existing(request.path_params["id"])))

    async def create(self, request: Request) -> Response:
        """Answer a new volume."""
        cloud, body = self._cloud, await read_json(request)
        fields.only(body, {"name", "size", "dataCenter", "type"})
        name, place = fields.text(body, "name", _TEXT_MAX), fields.text(body, "dataCenter", _TEXT_MAX)
        if not name or not place:
            raise BadField(f"{'dataCenter' if name else 'name'} is required")
        size = _size(body)
        if size is None:
            raise BadField("size is required")
        kind = fields.text(body, "type", _TEXT_MAX) or _TYPES[0]
        if kind not in _TYPES:
            raise BadField(f"type is neither {' nor '.join(_TYPES)}")
        if place not in _data_centres():
            raise RunPodError(400, "Bad Request", f"data center {fields.shown(place)} does not support network volumes")
        volume = Holding(
            provider="runpod",
            kind=_KIND,
            id="".join(secrets.choice(_ID) for _ in range(10)),
            label=name,
            created_at=cloud.clock(),
            region=place,
            size_gb=size,
            item_record={"type": kind},
        )
        cloud.hold(volume, _price_per_hour(size))
        if cloud.take_fault("runpod", "lost-answer"):
            return LostAnswer()
        return JSONResponse(_row(volume), 201)

    async def change(self, request: Request) -> Response:
        """Answer a volume with another name, or a larger one."""
        volume, body = self.existing(request.path_params["id"]), await read_json(request)
        fields.only(body, {"name", "size"})
        name, size = fields.text(body, "name", _TEXT_MAX), _size(body)
        if size is not None and size < volume.size_gb:
            raise RunPodError(400, "Bad Request", "the size of a network volume can only be increased")
        volume.label = name or volume.label
        if size is not None and size > volume.size_gb:
            volume.size_gb = size
            self._cloud.reprice(volume, _price_per_hour(size))
        self._cloud.save()
        return JSONResponse(_row(volume))

    async def delete(self, request: Request) -> Response:
        """Delete a volume that no pod has; how the real API refuses one that a pod has is not documented."""
        volume = self.existing(request.path_params["id"])
        if self._cloud.world.users(volume, self._cloud.clock()):
            raise RunPodError(409, "Conflict", "network volume is in use by a pod")
        await self._cloud.release_storage(volume)
        return Response(status_code=204)


def _size(body: Json) -> float | None:
    size = fields.number(body, "size", _LEAST_GB, _MOST_GB)
    if size is not None and size != int(size):
        raise BadField("size is not a whole number")
    return size


def _data_centres() -> set[str]:
    return {place for kind in catalogue.runpod_gpus() for place in kind["where"].get("SECURE", [])}


def _price_per_hour(size_gb: float) -> float:
    month = min(size_gb, _ABOVE_GB) * _USD_PER_GB_MONTH + max(0.0, size_gb - _ABOVE_GB) * _ABOVE_USD_PER_GB_MONTH
    return month / HOURS_PER_MONTH


def _row(volume: Holding) -> Json:
    return {
        "id": volume.id,
        "name": volume.label,
        "size": int(volume.size_gb),
        "dataCenter": volume.region,
        "type": volume.item_record["type"],
        "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.created_at)),
        "emulated": True,
    }
