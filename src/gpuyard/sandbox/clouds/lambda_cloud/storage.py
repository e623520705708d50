"""What a Lambda account holds beside instances, on the sandbox: file systems, SSH keys (docs/reference/lambda.md)."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpuyard.sandbox import catalogue, fields
from gpuyard.sandbox.bill import HOURS_PER_MONTH
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.failures import LambdaError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Holding, Json, Rental, SshKey
from gpuyard.sandbox.web import read_json

_KIND = "filesystem"
_TEXT_MAX = 255
_KEY_NAME_MAX = 64
_NAME = re.compile(r"[a-zA-Z]+[0-9a-zA-Z-]*")
_NAME_MAX = 60
_MOUNT_POINT = re.compile(r"/(home|data|lambda/nfs)(/[A-Za-z0-9._-]+)+")
_MOUNT_POINT_MAX = 256
_USD_PER_GB_MONTH = 0.20
_EMPTY_BYTES = 4096  # an empty one has its root folder
_HELD_FOR = 2.0  # boot times: how long an instance that was terminated still holds its file systems


def missing(what: str) -> LambdaError:
    """Return the failure of a call that names something that is not there."""
    return LambdaError(404, "global/object-does-not-exist", f"The specified {what} was not found.")


class SshKeys:
    """The account's SSH keys, which a launch names."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    @property
    def _keys(self) -> list[SshKey]:
        return self._cloud.world.keys["lambda"]

    def named(self, name: str) -> SshKey:
        """Return the key of this name, else answer 404."""
        for key in self._keys:
            if key.name == name:
                return key
        raise missing("SSH key")

    async def all(self, request: Request) -> Response:
        """Answer the account's SSH keys."""
        return JSONResponse({"data": [_key_row(key) for key in self._keys]})

    async def add(self, request: Request) -> Response:
        """Answer a new SSH key; one that was made for the caller comes with its private half, this once."""
        body = await read_json(request)
        fields.only(body, {"name", "public_key"})
        name = fields.text(body, "name", _KEY_NAME_MAX)
        if not name:
            raise BadField("name is required.")
        if any(key.name == name for key in self._keys):
            raise LambdaError(409, "global/duplicate", f"An SSH key named {name} exists already.")
        private, public = "", body.get("public_key")
        if not public:
            private, public = await asyncio.to_thread(_key_pair)
        key = SshKey(uuid.uuid4().hex, name, fields.public_key(public), self._cloud.clock())
        self._keys.append(key)
        self._cloud.save()
        return JSONResponse({"data": {**_key_row(key), **({"private_key": private} if private else {})}})

    async def remove(self, request: Request) -> Response:
        """Answer a removed SSH key."""
        key = next((key for key in self._keys if key.id == request.path_params["id"]), None)
        if key is None:
            raise missing("SSH key")
        self._keys.remove(key)
        self._cloud.save()
        return JSONResponse({"data": {}})


class FileSystems:
    """Storage of a region, which instances get at their launch; it costs by what is in it."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    @property
    def _there(self) -> list[Holding]:
        return self._cloud.world.held("lambda", _KIND)

    def _in_use(self, one: Holding) -> bool:
        lag_s = _HELD_FOR * self._cloud.settings.boot_seconds
        return bool(self._cloud.world.users(one, self._cloud.clock(), lag_s))

    def mounts(self, body: Json, region: str) -> dict[str, str]:
        """Return the file systems that a launch names, and where the instance gets each."""
        by_name, by_id = ({getattr(one, field): one for one in self._there} for field in ("label", "id"))
        found: dict[str, str] = {}
        for name in fields.texts(body, "file_system_names", _NAME_MAX):
            if name not in by_name:
                raise missing("filesystem")
            found[by_name[name].id] = _own_mount_point(by_name[name])
        given = body.get("file_system_mounts") or []
        if not isinstance(given, list) or not all(isinstance(mount, dict) for mount in given):
            raise BadField("file_system_mounts is not a list of objects.")
        for mount in given:
            fields.only(mount, {"file_system_id", "mount_point"})
            one = fields.text(mount, "file_system_id", _TEXT_MAX)
            point = fields.text(mount, "mount_point", _MOUNT_POINT_MAX)
            if one not in by_id:
                raise missing("filesystem")
            if not _MOUNT_POINT.fullmatch(point) or ".." in point.split("/"):
                raise BadField("mount_point is below none of /home, /lambda/nfs and /data.")
            found[one] = point
        if len(set(found.values())) < len(found):
            raise BadField("two file systems have one mount point.")
        if any(by_id[one].region != region for one in found):
            code = "instance-operations/launch/file-system-in-wrong-region"
            raise LambdaError(400, code, "The specified filesystem is in another region than the instance.")
        return found

    def shown(self, rental: Rental) -> Json:
        """Return what an instance shows of its file systems: no ``file_system_mounts`` where it has none."""
        names = {one.id: one.label for one in self._cloud.world.holdings}
        shown: Json = {"file_system_names": [names[one] for one in rental.mounts]}
        if rental.mounts:
            mounts = [{"file_system_id": one, "mount_point": point} for one, point in rental.mounts.items()]
            shown["file_system_mounts"] = mounts
        return shown

    async def all(self, request: Request) -> Response:
        """Answer the account's file systems, at either of the two paths of different versions."""
        return JSONResponse({"data": [self._row(one) for one in self._there]})

    async def create(self, request: Request) -> Response:
        """Answer a new file system."""
        cloud, body = self._cloud, await read_json(request)
        fields.only(body, {"name", "region"})
        name, region = fields.text(body, "name", _NAME_MAX), fields.text(body, "region", _TEXT_MAX)
        if not _NAME.fullmatch(name):
            raise BadField("name has letters, digits and dashes, and begins with a letter.")
        if region not in {known["name"] for known in catalogue.lambda_regions()}:
            raise BadField("region is not a region.")
        if any(one.label == name for one in self._there):
            raise LambdaError(409, "global/duplicate", f"A filesystem named {name} exists already.")
        one = Holding("lambda", _KIND, uuid.uuid4().hex, name, cloud.clock(), region, _EMPTY_BYTES / 1e9)
        cloud.hold(one, one.size_gb * _USD_PER_GB_MONTH / HOURS_PER_MONTH)
        return JSONResponse({"data": self._row(one)})

    async def delete(self, request: Request) -> Response:
        """Answer a deleted file system; one that an instance has is refused, also for a while after its end."""
        one = next((one for one in self._there if one.id == request.path_params["id"]), None)
        if one is None:
            raise missing("filesystem")
        if self._in_use(one):
            message = "The filesystem is in use by at least one instance."
            raise LambdaError(400, "filesystems/filesystem-in-use", message, "Terminate the instances that use it.")
        await self._cloud.release_storage(one)
        return JSONResponse({"data": {"deleted_ids": [one.id]}})

    def _row(self, one: Holding) -> Json:
        regions = {region["name"]: region for region in catalogue.lambda_regions()}
        return {
            "id": one.id,
            "name": one.label,
            "mount_point": _own_mount_point(one),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.created_at)),
            "created_by": {"id": "5a9d0000000000000000000000000001", "email": "sandbox@localhost", "status": "active"},
            "is_in_use": self._in_use(one),
            "region": regions[one.region],
            "bytes_used": round(one.size_gb * 1e9),
            "emulated": True,
        }


def _own_mount_point(one: Holding) -> str:
    return f"/lambda/nfs/{one.label}"


def _key_row(key: SshKey) -> Json:
    return {"id": key.id, "name": key.name, "public_key": key.public}


def _key_pair() -> tuple[str, str]:
    """Return a new private key and its public half."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)], check=True)
        return file.read_text(encoding="utf-8"), file.with_suffix(".pub").read_text(encoding="utf-8").strip()
