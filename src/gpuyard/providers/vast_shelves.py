"""What a Vast.ai account holds beside instances: stored variables, SSH keys, local volumes.

Facts: ``docs/reference/vast.md``. The traps that shape this file:

* A stored variable's value never comes back, so nothing tells whether it is the wanted one: it is always written. Names
  come back in capitals. Nothing tells either whose a variable is.
* SSH keys have no names; they are called by the comment in the key. An account without keys answers 404.
* A local volume is a part of one machine's disk and cannot leave it. An instance there gets it when it is created, one
  at a time, and holds it for about 30 s after its own end. There is no single ``GET``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar
from urllib.parse import quote

from gpuyard.errors import (
    AmbiguousError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    ProviderError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Offer, PlannedCall, Progress
from gpuyard.providers.cloud_shelf import Call, CloudShelf, KeyShelf, key_name
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.providers.values import dicts, number, optional_number, text

_SECRETS, _KEYS, _VOLUMES = "/api/v0/secrets/", "/api/v0/ssh/", "/api/v0/volumes/"
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"[a-zA-Z0-9_.-]+")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_LONGEST_NAME = 64
_MOST_GB = 100_000
_MOUNT_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
_HOURS = 730.0
_MONTHS = 730.0 / 720.0  # of Vast's own


class Variables(CloudShelf):
    """Variables that Vast puts into the environment of each new instance."""

    kind: ClassVar[Kind] = Kind.VARIABLE
    title: ClassVar[str] = "stored variable"
    knows: ClassVar[frozenset[str]] = frozenset({"content"})

    def spelled(self, name: str) -> str:
        """Return the name in capitals."""
        return name.upper()

    def all(self) -> list[Resource]:
        """Return the variables, without values."""
        found = self._api.call("GET", _SECRETS).get("secrets")
        if not isinstance(found, dict):
            raise ProviderDownError("Vast.ai's answer about stored variables holds none.", provider="vast")
        return [self.resource(str(name), str(name), None) for name in found]

    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Store a value under a name; one that is there gets the new value."""
        spec = replace(spec, name=self.spelled(spec.name))
        call = self.order(spec)
        if not _VALUE.fullmatch(spec.content):
            raise UnsupportedError(
                f"The value of {spec.name} cannot be stored at Vast.ai, which takes letters, digits, _, - and . alone: "
                "let the workload name the variable instead, so that it reaches the machine over SSH.",
                provider="vast",
            )
        if call.method == "PUT":
            # Its name would be found after a lost answer, and not say which value it has.
            return self.made(self._api.call(call.method, call.path, body=call.body, repeatable=True), spec)
        return super().create(spec, progress=progress)

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that stores the value, by whether the name is there."""
        self.check(spec)
        if not _VARIABLE_NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} cannot be a variable's name: use letters, digits and _, no digit first.")
        if not spec.content:
            raise UsageError(f"The variable {spec.name} has no value that could be stored.")
        is_new = self.get(spec.name) is None
        return Call("POST" if is_new else "PUT", _SECRETS, {"key": spec.name, "value": spec.content})

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        """Return the one call of :meth:`create`, without the value."""
        order = self.order(replace(spec, name=self.spelled(spec.name)))
        return [order.planned(self._api, value="(the value)")]

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the variable."""
        return self.resource(spec.name, spec.name, None)

    def ending(self, resource_id: str) -> Call:
        """Return the call that deletes a variable."""
        return Call("DELETE", _SECRETS, {"key": resource_id})


class AccountKeys(KeyShelf):
    """The account's SSH keys, which reach every new instance."""

    def all(self) -> list[Resource]:
        """Return the keys."""
        try:
            answer = self._api.call("GET", _KEYS)
        except NotFoundError:
            return []  # "No SSH keys found for the user." is a 404
        rows = [row for row in self.rows(answer, "items", "ssh_keys", "keys") if not row.get("deleted_at")]
        return [self._row(row) for row in rows]

    def _row(self, row: Mapping[str, object], name: str = "") -> Resource:
        public_key = text(row.get("public_key")) or text(row.get("key"))
        return self.key(text(row.get("id")), public_key, name, created_at=optional_number(row.get("created_at")))

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that adds a key."""
        return Call("POST", _KEYS, {"ssh_key": self.public_key(spec)})

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the key of the answer."""
        row = answer.get("key")
        if not isinstance(row, dict) or not row.get("id"):
            raise AmbiguousError("Vast.ai took the SSH key and named none.", provider="vast")
        return self._row({"public_key": self.public_key(spec), **row}, key_name(spec))

    def ending(self, resource_id: str) -> Call:
        """Return the call that removes a key."""
        return Call("DELETE", f"{_KEYS}{quote(resource_id, safe='')}/")


class Volumes(CloudShelf):
    """Local volumes, each on one machine."""

    kind: ClassVar[Kind] = Kind.VOLUME
    title: ClassVar[str] = "local volume"
    knows: ClassVar[frozenset[str]] = frozenset({"ref", "region", "size_gb"})
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"machine": ()}
    at_create: ClassVar[bool] = True

    def beside(self, spec: ResourceSpec, offer: Offer) -> ResourceSpec:
        """Return ``spec`` for the machine of ``offer``, since a volume leaves no machine."""
        return replace(spec, region="", options={**spec.options, "machine": offer.machine_id})

    def reaches(self, found: Resource, offer: Offer) -> bool:
        """Say whether a volume is on the machine of ``offer``."""
        return found.detail.get("machine") == offer.machine_id

    def quotes(self, spec: ResourceSpec, offers: Sequence[Offer]) -> list[tuple[Offer, float | None]]:
        """Return the offers that say that there is room for the volume on their machines, and at which price."""
        size = self._size(spec)
        return [
            (offer, None if offer.volume_usd_per_gb_month is None else offer.volume_usd_per_gb_month * size)
            for offer in offers
            if offer.volume_gb is not None and offer.volume_gb >= size
        ]

    def check_path(self, path: str) -> None:
        """Refuse a path that Vast cannot mount to."""
        if not _MOUNT_PATH.fullmatch(path):
            raise UsageError(f"A Vast.ai local volume cannot lie at {path!r}: choose an absolute path, such as /data.")

    def spelled(self, name: str) -> str:
        """Return the name with underscores, since dashes are not allowed."""
        return name.replace("-", "_")

    def all(self) -> list[Resource]:
        """Return the local volumes."""
        answer = self._api.call("GET", _VOLUMES, params={"owner": "me", "type": "local_volume"})
        return [self._volume(row) for row in self.rows(answer, "volumes")]

    def _volume(self, row: Mapping[str, object]) -> Resource:
        name, by_hour = text(row.get("label")), optional_number(row.get("storage_total_cost"))
        instances = row.get("instances")
        return self.resource(
            text(row.get("id")),
            name,
            RunRef.from_name(name),
            region=text(row.get("geolocation")),
            size_gb=optional_number(row.get("disk_space")),
            price_per_month_usd=None if by_hour is None else by_hour * _HOURS,
            attached_to=tuple(map(text, instances)) if isinstance(instances, list) else (),
            status_text=text(row.get("status")),
            created_at=optional_number(row.get("start_date")),
            detail={"machine": text(row.get("machine_id"))},
            emulated=row.get("emulated"),
        )

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        """Return the price of the cheapest volume that fits now."""
        size = self._size(spec)
        return number(self._offer(spec, size).get("storage_cost")) * size * _MONTHS

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that makes a volume on the machine that is named, else on the cheapest that fits."""
        size = self._size(spec)
        if not spec.ref and not _VOLUME_NAME.fullmatch(spec.name):
            raise UsageError(
                f"{spec.name!r} cannot be the name of a Vast.ai local volume: use 1 to {_LONGEST_NAME} letters, digits "
                "and underscores."
            )
        name = spec.ref.name(_LONGEST_NAME, "_") if spec.ref else spec.name
        return Call("PUT", _VOLUMES, {"id": int(number(self._offer(spec, size)["id"])), "size": size, "name": name})

    def _size(self, spec: ResourceSpec) -> int:
        self.check(spec)
        if not (spec.options.get("machine") or "0").isdigit():
            raise UsageError(f"machine={spec.options['machine']!r} is not the number of a machine at Vast.ai.")
        return self.whole_size(spec, 1, _MOST_GB)

    def _offer(self, spec: ResourceSpec, size: int) -> Mapping[str, object]:
        """Return the cheapest offer of a volume that fits."""
        machine = spec.options.get("machine")
        body: dict[str, object] = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "disk_space": {"gte": size},
            **({"machine_id": {"eq": int(machine)}} if machine else {}),
            "order": [["storage_cost", "asc"]],
            "allocated_storage": size,
        }
        # A search by POST changes nothing, so it may be repeated.
        offers = dicts(self._api.call("POST", f"{_VOLUMES}search/", body=body, repeatable=True).get("offers"))
        # What the server filters is looked at again: not every condition is honoured.
        fits = [
            row
            for row in offers
            if number(row.get("disk_space")) >= size
            and machine in (None, text(row.get("machine_id")))
            and _is_in(text(row.get("geolocation")), spec.region)
        ]
        if not fits:
            where = f"on machine {machine}" if machine else f"in {spec.region}" if spec.region else "now"
            raise NoCapacityError(f"Vast.ai offers no local volume of {size} GB {where}.", provider="vast")
        return min(fits, key=lambda row: number(row.get("storage_cost")))

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the volume of the answer, which says no more than its id; the list says the rest, if it has it."""
        volume_id = text(answer.get("volume_id")) or text(answer.get("volume_name")).removeprefix("V.")
        if not volume_id.isdigit():
            raise AmbiguousError("Vast.ai accepted the order and named no local volume.", provider="vast")
        name = spec.ref.name(_LONGEST_NAME, "_") if spec.ref else spec.name
        with suppress(ProviderError):  # it is made, whatever the list says
            if (listed := self.get(volume_id)) is not None:
                return listed
        return self.resource(volume_id, name, spec.ref, size_gb=self._size(spec))

    def ending(self, resource_id: str) -> Call:
        """Return the call that deletes a volume; Vast refuses it while an instance has it, and for some time after."""
        return Call("DELETE", _VOLUMES, params={"id": resource_id})

    def volume_info(self, mounts: tuple[tuple[str, str], ...], machine: str) -> dict[str, object]:
        """Return what a create on ``machine`` says to get a volume.

        Raises :class:`NoCapacityError` when it is on another machine: another offer may be of the right one.
        """
        if not mounts:
            return {}
        (volume_id, path), *others = mounts
        if others:
            raise UsageError(f"Vast.ai gives an instance one volume at most, not {len(mounts)}: leave the others out.")
        self.check_path(path)
        volume = self.get(volume_id)
        if volume is None:
            raise NotFoundError(f"Vast.ai has no local volume {volume_id}.", provider="vast")
        if volume.detail["machine"] != machine:
            raise NoCapacityError(
                f"The Vast.ai local volume {volume_id} is on machine {volume.detail['machine']}, and no instance of "
                f"machine {machine} can have it.",
                provider="vast",
            )
        return {"volume_info": {"create_new": False, "volume_id": int(volume_id), "mount_path": path}}


def _is_in(place: str, region: str) -> bool:
    """Return whether a place such as ``Oslo, NO`` is, or ends with, the region."""
    place, region = place.lower(), region.lower()
    return not region or place == region or place.endswith(f", {region}")
