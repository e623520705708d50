"""What a Lambda account holds beside instances: file systems and SSH keys.

Facts: ``docs/reference/lambda.md``. The traps that shape this file:

* A file system has no size: it grows, and costs by what is in it. An instance gets it at its launch only, in the
  same region, and one that was terminated still holds it for a while.
* Its name has letters, digits and dashes alone, and is the only place for the run.
* The list is at one of two paths, by version, and there is none for a single file system or key.
* Where a new key is not sent along, Lambda makes one and answers its private half. A public one is always sent, and of
  the answer only id and name are read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

from gpuyard.errors import AmbiguousError, NoCapacityError, NotFoundError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.cloud_shelf import Call, CloudShelf, KeyShelf, key_name
from gpuyard.providers.http import Client
from gpuyard.providers.rental import Waits
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.providers.values import epoch, optional_number, strings, text

_NAME = re.compile(r"[a-zA-Z]+[0-9a-zA-Z-]*")
_LONGEST_NAME = 60
_LONGEST_KEY_NAME = 64
_MOUNT_POINT = re.compile(r"/(home|data|lambda/nfs)/[^\x00-\x1f\x7f]+")
_LONGEST_MOUNT_POINT = 256
_USD_PER_GB_MONTH = 0.20  # of Lambda's price list; the API does not say
_LISTS = ("/file-systems", "/filesystems")


class FileSystems(CloudShelf):
    """File systems, which several instances of a region share."""

    kind: ClassVar[Kind] = Kind.FILESYSTEM
    title: ClassVar[str] = "file system"
    # A size is no more than what is expected to be in it: there is room for any.
    knows: ClassVar[frozenset[str]] = frozenset({"ref", "region", "size_gb"})
    at_create: ClassVar[bool] = True
    elastic: ClassVar[bool] = True

    def __init__(
        self, cloud: Cloud, api: Client, waits: Waits, instances: Callable[[], list[dict[str, object]]]
    ) -> None:
        super().__init__(cloud, api, waits)
        self._instances = instances

    def all(self) -> list[Resource]:
        """Return the file systems, each with the instances that have it."""
        rows = self._rows()
        instances = self._instances() if any(row.get("is_in_use") for row in rows) else []
        return [self._file_system(row, instances) for row in rows]

    def get(self, resource_id: str) -> Resource | None:
        """Return one out of the list, since nothing else says whether it exists."""
        return next((self._file_system(row, []) for row in self._rows() if row.get("id") == resource_id), None)

    def _rows(self) -> list[dict[str, object]]:
        try:
            answer = self._api.call("GET", _LISTS[0])
        except NotFoundError:
            answer = self._api.call("GET", _LISTS[1])  # newer versions
        return self.rows(answer, "data")

    def _file_system(self, row: Mapping[str, object], instances: Sequence[Mapping[str, object]]) -> Resource:
        name, region, used = text(row.get("name")), row.get("region"), optional_number(row.get("bytes_used"))
        size = None if used is None else used / 1e9
        return self.resource(
            text(row.get("id")),
            name,
            RunRef.from_name(name),
            region=text(region.get("name") if isinstance(region, dict) else region),
            size_gb=size,
            price_per_month_usd=None if size is None else size * _USD_PER_GB_MONTH,
            attached_to=tuple(
                text(instance.get("id")) for instance in instances if name in strings(instance.get("file_system_names"))
            ),
            status_text="in use" if row.get("is_in_use") else "",
            created_at=epoch(row.get("created")),
            detail={"mount_point": text(row.get("mount_point"))},
            emulated=row.get("emulated"),
        )

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        """Return what a file system costs with ``size_gb`` in it."""
        return None if spec.size_gb is None else spec.size_gb * _USD_PER_GB_MONTH

    def spelled(self, name: str) -> str:
        """Return the name with dashes, since underscores are not allowed."""
        return name.replace("_", "-")

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that makes a file system in ``spec.region``."""
        self.check(spec)
        if not spec.region:
            raise UsageError("A Lambda file system belongs to a region: name one, such as us-east-1.")
        if not spec.ref and not (_NAME.fullmatch(spec.name) and len(spec.name) <= _LONGEST_NAME):
            raise UsageError(
                f"{spec.name!r} cannot be the name of a Lambda file system: use 1 to {_LONGEST_NAME} letters, digits "
                "and dashes, beginning with a letter."
            )
        name = self._run_name(spec.ref, spec.known_ids) if spec.ref else spec.name
        return Call("POST", "/filesystems", {"name": name, "region": spec.region})

    def _run_name(self, ref: RunRef, known_ids: Collection[str]) -> str:
        """Return the name of a run's next file system: a name is there once, so a second one gets a number."""
        taken = {text(row.get("name")) for row in self._rows()} if known_ids else set()
        name = ref.name(_LONGEST_NAME)
        names = itertools.chain([name], (f"{name}-X{number}" for number in itertools.count(2)))
        free = next(candidate for candidate in names if candidate not in taken)
        if len(free) > _LONGEST_NAME:
            raise UsageError(f"run={ref.run} has file systems already, and the name of one more, {free}, is too long.")
        return free

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the file system of the answer."""
        row = answer.get("data")
        if not isinstance(row, dict) or not row.get("id"):
            raise AmbiguousError("Lambda accepted the order and named no file system.", provider="lambda")
        return self._file_system(row, [])

    def ending(self, resource_id: str) -> Call:
        """Return the call that deletes one, which Lambda refuses while, and for a while after, an instance has it."""
        return Call("DELETE", f"/filesystems/{quote(resource_id, safe='')}")

    def check_path(self, path: str) -> None:
        """Refuse a path where Lambda mounts nothing."""
        if not (_MOUNT_POINT.fullmatch(path) and len(path) <= _LONGEST_MOUNT_POINT):
            raise UsageError(
                f"A Lambda file system cannot lie at {path}: choose a path below /lambda/nfs, /home or /data."
            )

    def launch_fields(self, mounts: Sequence[tuple[str, str]], region: str) -> dict[str, object]:
        """Return what a launch in ``region`` says to get file systems; one without a path lies where Lambda puts it.

        Raises :class:`NoCapacityError` when one is in another region: another offer may be in the right one.
        """
        if not mounts:
            return {}
        for _, path in mounts:
            if path:
                self.check_path(path)
        there = {text(row.get("id")): self._file_system(row, []) for row in self._rows()}
        for one, _ in mounts:
            if one not in there:
                raise NotFoundError(f"Lambda has no file system {one}.", provider="lambda")
            if there[one].region != region:
                raise NoCapacityError(
                    f"The Lambda file system {there[one].name} is in {there[one].region}, and instances of {region} "
                    "cannot have it.",
                    provider="lambda",
                )
        names = [there[one].name for one, path in mounts if not path]
        placed = [{"file_system_id": one, "mount_point": path} for one, path in mounts if path]
        return {
            **({"file_system_names": names} if names else {}),
            **({"file_system_mounts": placed} if placed else {}),
        }


class AccountKeys(KeyShelf):
    """The account's SSH keys, which a launch names."""

    def all(self) -> list[Resource]:
        """Return the keys."""
        return [
            self.key(text(row.get("id")), text(row.get("public_key")), text(row.get("name")))
            for row in self.rows(self._api.call("GET", "/ssh-keys"), "data")
        ]

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that adds a key, always with its public half."""
        public_key, name = self.public_key(spec), key_name(spec)
        if len(name) > _LONGEST_KEY_NAME:
            raise UsageError(f"{name!r} is too long for a Lambda SSH key's name: it has {_LONGEST_KEY_NAME} at most.")
        return Call("POST", "/ssh-keys", {"name": name, "public_key": public_key})

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the key of the answer."""
        row = answer.get("data")
        if not isinstance(row, dict) or not row.get("id"):
            raise AmbiguousError("Lambda took the SSH key and named none.", provider="lambda")
        return self.key(text(row["id"]), self.public_key(spec), key_name(spec))

    def ending(self, resource_id: str) -> Call:
        """Return the call that removes a key."""
        return Call("DELETE", f"/ssh-keys/{quote(resource_id, safe='')}")
