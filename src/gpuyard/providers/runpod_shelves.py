"""What a RunPod account holds beside pods: network volumes and SSH keys.

Facts: ``docs/reference/runpod.md``. The traps that shape this file:

* A network volume belongs to a data centre, bills by its size whether used or not, and only grows. A pod gets it when
  it is created, and in ``SECURE`` only.
* The account's SSH keys are one list without ids, and a change replaces all of it. So a key is known by a digest of
  itself, and the list is read right before it is written. What somebody else writes in that moment is lost, and what
  they write right after it loses ours: nothing in the API prevents it, so the list is read once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

from gpuyard.errors import AmbiguousError, NotFoundError, ProviderDownError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Offer, PlannedCall, Progress
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.cloud_shelf import Call, CloudShelf, KeyShelf
from gpuyard.providers.http import Client
from gpuyard.providers.rental import Waits, end_surely
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.providers.values import dicts, epoch, optional_number, text

Pages = Callable[[str, str], list[dict[str, object]]]
"""Returns all rows of a list: its path, and the field that holds it."""
STANDARD = "STANDARD"
_LEAST_GB, _MOST_GB = 10, 4096
_USD_PER_GB_MONTH, _ABOVE_USD_PER_GB_MONTH, _ABOVE_GB = 0.07, 0.05, 1000.0
_PATH = "/network-volumes"


class NetworkVolumes(CloudShelf):
    """Network volumes, which several pods of a data centre share."""

    kind: ClassVar[Kind] = Kind.FILESYSTEM
    title: ClassVar[str] = "network volume"
    knows: ClassVar[frozenset[str]] = frozenset({"ref", "region", "size_gb"})
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"type": (STANDARD, "HIGH_PERFORMANCE")}
    at_create: ClassVar[bool] = True

    def __init__(self, cloud: Cloud, api: Client, waits: Waits, pages: Pages) -> None:
        super().__init__(cloud, api, waits)
        self._pages = pages

    def all(self) -> list[Resource]:
        """Return the volumes, each with the pods that have it."""
        rows = self._pages(_PATH, "networkVolumes")
        pods = self._pages("/pods", "pods") if rows else []
        return [self._volume(row, pods) for row in rows]

    def get(self, resource_id: str) -> Resource | None:
        """Return one volume, ``None`` when RunPod answers 404."""
        try:
            row = self._api.call("GET", _path(resource_id))
        except NotFoundError:
            return None
        if not row.get("id"):
            raise ProviderDownError(f"RunPod's answer about volume {resource_id} holds none.", provider="runpod")
        return self._volume(row, [])

    def _volume(self, row: Mapping[str, object], pods: list[dict[str, object]]) -> Resource:
        name, volume_id = text(row.get("name")), text(row.get("id"))
        kind, size = text(row.get("type")), optional_number(row.get("size"))
        return self.resource(
            volume_id,
            name,
            RunRef.from_label(name),
            region=text(row.get("dataCenter")) or text(row.get("dataCenterId")),
            size_gb=size,
            price_per_month_usd=None if size is None else _price_per_month(size, kind),
            attached_to=tuple(text(pod.get("id")) for pod in pods if volume_id in _volumes_of(pod)),
            created_at=epoch(row.get("createdAt")),
            detail={"type": kind} if kind else {},
            emulated=row.get("emulated"),
        )

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        """Return the price of a standard volume; of a faster one the documentation names none."""
        return None if spec.size_gb is None else _price_per_month(spec.size_gb, spec.options.get("type", STANDARD))

    def reaches(self, found: Resource, offer: Offer) -> bool:
        """Say whether a pod of ``offer`` is in the volume's data centre, and not on a host's machine."""
        return bool(offer.data_center) and super().reaches(found, offer)

    def quotes(self, spec: ResourceSpec, offers: Sequence[Offer]) -> list[tuple[Offer, float | None]]:
        """Return the offers in RunPod's own data centres, with the price of a volume there."""
        return super().quotes(spec, [offer for offer in offers if offer.data_center])

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that makes a volume in the data centre ``spec.region``."""
        self.check(spec)
        if not spec.region:
            raise UsageError("A RunPod network volume belongs to a data centre: name it as region, such as EU-RO-1.")
        body = {
            "name": spec.ref.label if spec.ref else spec.name,
            "size": self.whole_size(spec, _LEAST_GB, _MOST_GB),
            "dataCenter": spec.region,
            "type": spec.options.get("type", STANDARD),
        }
        return Call("POST", _PATH, body)

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the volume of the answer."""
        if not answer.get("id"):
            raise AmbiguousError("RunPod accepted the order and named no network volume.", provider="runpod")
        return self._volume(answer, [])

    def ending(self, resource_id: str) -> Call:
        """Return the call that deletes a volume, which RunPod refuses as long as a pod has it."""
        return Call("DELETE", _path(resource_id))

    def grow(self, resource_id: str, size_gb: float) -> None:
        """Make a volume larger; it can never be made smaller again."""
        volume = self.get(resource_id)
        if volume is None:
            raise NotFoundError(f"RunPod has no network volume {resource_id}.", provider="runpod")
        size = self.whole_size(ResourceSpec(volume.name, size_gb=size_gb), _LEAST_GB, _MOST_GB)
        if size < (volume.size_gb or 0):
            raise UsageError(
                f"size {size_gb:g} GB: the RunPod network volume {resource_id} has {volume.size_gb:g} GB, and it can "
                "only grow. Make a smaller one, and copy what is in it."
            )
        if size > (volume.size_gb or 0):
            self._api.call("PATCH", _path(resource_id), body={"size": size}, repeatable=True)


class AccountKeys(KeyShelf):
    """The account's SSH keys, one list that a ``PUT`` replaces."""

    def all(self) -> list[Resource]:
        """Return the keys; the id of one is a digest of it."""
        return [self.key(_key_id(key), key) for key in self._keys()]

    def _keys(self) -> list[str]:
        found = self._api.call("GET", "/account/ssh-keys").get("keys")
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            # What is not understood would be lost with the next change.
            raise ProviderDownError("RunPod's answer about the account's SSH keys holds no list.", provider="runpod")
        return found

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that writes the present list with one key more."""
        return _replace([*self._keys(), self.public_key(spec)])

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the new key, if the list has it after all."""
        made = self.key(_key_id(spec.content), self.public_key(spec))
        if self.get(made.id) is None:
            raise AmbiguousError(
                f"RunPod took the SSH key {made.name} and does not list it: somebody else has changed the keys at the "
                "same moment.",
                provider="runpod",
            )
        return made

    def ending(self, resource_id: str) -> Call:
        """Return the call that writes the present list without one key."""
        return _replace([key for key in self._keys() if _key_id(key) != resource_id])

    def destroy(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """Write the list without the key, and come back when it is not in it any more."""

        def send() -> None:
            # The list is read anew each time, and never sent twice: it may have changed in between.
            if self.get(resource_id) is not None:
                call = self.ending(resource_id)
                self._api.call(call.method, call.path, body=call.body, repeatable=False)

        with self._changing:
            end_surely(self._cloud, self, resource_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        """Return the call of :meth:`destroy`, none where the account does not have the key."""
        return [] if self.get(resource_id) is None else super().plan_destroy(resource_id)


def _key_id(public_key: str) -> str:
    """Return an id of a key that its comment does not change."""
    return hashlib.sha256(" ".join(public_key.split()[:2]).encode()).hexdigest()[:32]


def _replace(keys: list[str]) -> Call:
    return Call("PUT", "/account/ssh-keys", {"keys": keys})


def _path(volume_id: str) -> str:
    return f"{_PATH}/{quote(volume_id, safe='')}"


def _volumes_of(pod: Mapping[str, object]) -> list[str]:
    mounts = pod.get("mounts")
    return [text(mount.get("volumeId")) for mount in dicts(mounts.get("network") if isinstance(mounts, dict) else None)]


def _price_per_month(size_gb: float, kind: str) -> float | None:
    if kind not in ("", STANDARD):
        return None
    above = max(0.0, size_gb - _ABOVE_GB)
    return (size_gb - above) * _USD_PER_GB_MONTH + above * _ABOVE_USD_PER_GB_MONTH
