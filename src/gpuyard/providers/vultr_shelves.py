"""What a Vultr account holds beside instances: block storage, snapshots of instances, SSH keys and firewall groups.

Facts: ``docs/reference/vultr.md``. None of them has tags: the one text that each has (a label, a description, a name)
holds the whole label of a run, ``gpuyard/<run>/<workload>``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote

from gpuyard.errors import (
    AmbiguousError,
    InvalidRequestError,
    NotFoundError,
    ProviderDownError,
    ProviderError,
    ThrottledError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Offer, PlannedCall, Progress
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.cloud_shelf import Call, CloudShelf, KeyShelf, key_name
from gpuyard.providers.http import Client
from gpuyard.providers.rental import Waits, end_surely
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.providers.values import epoch, number, optional_number, strings, text

METAL = "vbm-"
"""How the plans of bare metal begin, whose machines have routes of their own."""
Pages = Callable[[str, str], list[dict[str, object]]]
"""Returns all rows of a list: its path, and the field that holds it."""
_ACTIVE_WITHIN_S = 300.0
_MOVED_WITHIN_S = 60.0
_TOLD_EVERY_S = 30.0
_SNAPSHOT_USD_PER_GB_MONTH = 0.05
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class _Tier:
    usd_per_gb_month: float
    least_gb: int
    most_gb: int


_TIERS = {"high_perf": _Tier(0.10, 10, 10_000), "storage_opt": _Tier(0.025, 40, 40_000)}
"""By ``block_type``: NVMe, and hard disks. The prices are those that Vultr publishes; its API names none beforehand."""
_SSH_RULES: tuple[dict[str, object], ...] = tuple(
    {"ip_type": ip_type, "protocol": "tcp", "subnet": subnet, "subnet_size": 0, "port": "22", "notes": "SSH"}
    for ip_type, subnet in (("v4", "0.0.0.0"), ("v6", "::"))
)


class VultrShelf(CloudShelf):
    """What is the same for all of them: a path with rows, of which one text holds the label, and a 404 at the end."""

    path: ClassVar[str]
    row_name: ClassVar[str]  # the name around one row in an answer; with an "s" around several
    label_name: ClassVar[str]  # the field that holds the label
    needs: ClassVar[Mapping[str, str]] = {}  # the fields of a spec without which nothing is made, in words

    def __init__(self, cloud: Cloud, api: Client, waits: Waits, pages: Pages) -> None:
        super().__init__(cloud, api, waits)
        self._pages = pages

    # -- reading ------------------------------------------------------------------------------------------------------

    def all(self) -> list[Resource]:
        """Return every one in the account, over all pages."""
        return [self._resource(row) for row in self._pages(self.path, f"{self.row_name}s")]

    def get(self, resource_id: str) -> Resource | None:
        """Return one, ``None`` when Vultr answers 404."""
        try:
            answer = self._api.call("GET", self._at(resource_id))
        except NotFoundError:
            return None
        row = self._row(answer)
        if row is None:
            raise ProviderDownError(f"Vultr's answer about {self.title} {resource_id} holds none.", provider="vultr")
        return self._resource(row)

    def _existing(self, resource_id: str) -> Resource:
        found = self.get(resource_id)
        if found is None:
            raise NotFoundError(f"Vultr has no {self.title} {resource_id}.", provider="vultr")
        return found

    def _row(self, answer: Mapping[str, object]) -> dict[str, object] | None:
        row = answer.get(self.row_name)
        return row if isinstance(row, dict) and row.get("id") else None

    def _at(self, resource_id: str) -> str:
        return f"{self.path}/{quote(resource_id, safe='')}"

    @abstractmethod
    def _resource(self, row: Mapping[str, object]) -> Resource:
        """Return a row in neutral terms."""

    def _labelled(self, row: Mapping[str, object], **more: object) -> Resource:
        label = text(row.get(self.label_name))
        return self.resource(
            text(row.get("id")),
            label,
            RunRef.from_label(label),
            created_at=epoch(row.get("date_created")),
            emulated=row.get("emulated"),
            **more,
        )

    # -- making and ending --------------------------------------------------------------------------------------------

    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that makes one."""
        self.check(spec)
        for field, word in self.needs.items():
            if not getattr(spec, field):
                raise UsageError(f"A Vultr {self.title} needs {word}.")
        return Call("POST", self.path, self._body(spec))

    @abstractmethod
    def _body(self, spec: ResourceSpec) -> dict[str, object]:
        """Return what the create request says; raises :class:`UsageError` for what cannot be."""

    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return the one of the answer."""
        row = self._row(answer)
        if row is None:
            raise AmbiguousError(f"Vultr accepted the order and named no {self.title}.", provider="vultr")
        return self._resource(row)

    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Make one; see :func:`gpuyard.providers.rental.make_once`. One that does not become usable is ended again."""
        made = super().create(spec, progress=progress)
        try:
            return self._finish(made, progress)
        except ProviderError as error:
            if progress:
                progress(f"{error} Destroying {self.title} {made.id} again.")
            self.destroy(made.id, progress=progress)
            raise

    def _finish(self, made: Resource, progress: Progress | None) -> Resource:
        """Return what was made when it is usable."""
        return made

    def ending(self, resource_id: str) -> Call:
        """Return the call that deletes one."""
        return Call("DELETE", self._at(resource_id))

    def _wait(
        self, resource_id: str, reached: Callable[[Resource], bool], limit_s: float, progress: Progress | None = None
    ) -> Resource:
        """Look at a resource until it is as it is to be; a look that fails is followed by another one."""
        start = told = self._waits.clock()
        attempt = 0
        while True:
            try:
                found = self._existing(resource_id)
                if reached(found):
                    return found
                state = f"is {found.status_text or 'as it was'}"
            except ProviderDownError as error:
                state = f"does not answer: {error}"
            now = self._waits.clock()
            if now - start >= limit_s:
                raise ProviderDownError(
                    f"Vultr {self.title} {resource_id} {state}, after {limit_s:.0f} s. Look at "
                    f"{self._cloud.console_url}.",
                    provider="vultr",
                )
            if progress and now - told >= _TOLD_EVERY_S:
                told = now
                progress(f"Vultr: {self.title} {resource_id} {state}.")
            self._waits.sleep(self._waits.delay(attempt))
            attempt += 1


class BlockStorage(VultrShelf):
    """Volumes: one machine of their region at a time, to and from which they move while it runs."""

    kind: ClassVar[Kind] = Kind.VOLUME
    title: ClassVar[str] = "block storage"
    path: ClassVar[str] = "/blocks"
    row_name: ClassVar[str] = "block"
    label_name: ClassVar[str] = "label"
    knows: ClassVar[frozenset[str]] = frozenset({"ref", "region", "size_gb"})
    needs: ClassVar[Mapping[str, str]] = {"region": "a region", "size_gb": "a size in GB"}
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"block_type": tuple(_TIERS)}

    def price_per_month_usd(self, spec: ResourceSpec) -> float:
        """Return the price of the size at its ``block_type``."""
        return (spec.size_gb or 0.0) * _TIERS[_block_type(spec)].usd_per_gb_month

    def _body(self, spec: ResourceSpec) -> dict[str, object]:
        tier = _block_type(spec)
        size = self.whole_size(spec, _TIERS[tier].least_gb, _TIERS[tier].most_gb)
        rows = self._pages("/regions", "regions")
        having = [text(row.get("id")) for row in rows if f"block_storage_{tier}" in strings(row.get("options"))]
        if spec.region not in having:
            raise UsageError(
                f"region={spec.region} has no block storage of the type {tier} at Vultr; these have it: "
                f"{', '.join(sorted(having))}."
            )
        return {"region": spec.region, "size_gb": size, "label": key_name(spec), "block_type": tier}

    def _finish(self, made: Resource, progress: Progress | None) -> Resource:
        return self._wait(made.id, lambda volume: volume.ready, _ACTIVE_WITHIN_S, progress)

    def _resource(self, row: Mapping[str, object]) -> Resource:
        instance, mount_id = text(row.get("attached_to_instance")), text(row.get("mount_id"))
        detail = {
            "block_type": text(row.get("block_type")),
            "device": f"/dev/disk/by-id/virtio-{mount_id}" if mount_id else "",
        }
        return self._labelled(
            row,
            region=text(row.get("region")),
            size_gb=optional_number(row.get("size_gb")),
            price_per_month_usd=optional_number(row.get("cost")),
            attached_to=(instance,) if instance else (),
            ready=row.get("status") == "active",
            status_text=text(row.get("status")),
            detail={name: value for name, value in detail.items() if value},
        )

    def reaches(self, found: Resource, offer: Offer) -> bool:
        """Say whether a machine of ``offer`` could have a volume; of bare metal nobody says that it can."""
        return not offer.id.startswith(METAL) and super().reaches(found, offer)

    def quotes(self, spec: ResourceSpec, offers: Sequence[Offer]) -> list[tuple[Offer, float | None]]:
        """Return the offers of virtual machines, with the price of a volume."""
        return super().quotes(spec, [offer for offer in offers if not offer.id.startswith(METAL)])

    # -- moving and growing -------------------------------------------------------------------------------------------

    def attach(self, resource_id: str, instance_id: str, *, progress: Progress | None = None) -> None:
        """Give a volume to an instance of its region, which goes on running, and come back when it has it."""
        volume = self._existing(resource_id)
        if volume.attached_to == (instance_id,):
            return
        if volume.attached_to:
            raise self._refusal(f"belongs to instance {volume.attached_to[0]}: detach it there first.", resource_id)
        instance = self._cloud.instance(instance_id)
        if instance is None:
            raise NotFoundError(f"Vultr has no instance {instance_id}.", provider="vultr")
        if instance.region != volume.region:
            where = f"is in {volume.region}, and instance {instance_id} in {instance.region}"
            raise self._refusal(f"{where}: choose an instance in {volume.region}.", resource_id)
        body = {"instance_id": instance_id, "live": True}
        self._move(resource_id, "attach", body, (instance_id,), progress)

    def detach(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """Take a volume from its instance, which goes on running, and come back when that is done.

        What is mounted there has to be unmounted before.
        """
        if self._existing(resource_id).attached_to:
            self._move(resource_id, "detach", {"live": True}, (), progress)

    def _move(
        self,
        resource_id: str,
        action: str,
        body: Mapping[str, object],
        wanted: tuple[str, ...],
        progress: Progress | None,
    ) -> None:
        def reached(volume: Resource) -> bool:
            return volume.attached_to == wanted

        try:
            self._api.call("POST", f"{self._at(resource_id)}/{action}", body=body, repeatable=True)
        except InvalidRequestError:
            # A repeated request is refused when the first one, whose answer was lost, has done it.
            if not reached(self._existing(resource_id)):
                raise
        self._wait(resource_id, reached, _MOVED_WITHIN_S, progress)

    def grow(self, resource_id: str, size_gb: float) -> None:
        """Make a volume larger; its partition and file system are not touched."""
        now = self._existing(resource_id).size_gb or 0.0
        if size_gb == now:
            return
        if size_gb < now or size_gb != int(size_gb):
            raise self._refusal(f"has {now:g} GB, and only grows, by whole GB: size_gb={size_gb:g}.", resource_id)
        self._api.call("PATCH", self._at(resource_id), body={"size_gb": int(size_gb)}, repeatable=True)
        self._wait(resource_id, lambda volume: volume.size_gb == size_gb, _MOVED_WITHIN_S)

    def _refusal(self, why: str, resource_id: str) -> InvalidRequestError:
        return InvalidRequestError(f"Vultr {self.title} {resource_id} {why}", provider="vultr")

    def destroy(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """Take a volume from its instance, if one has it, delete it, and come back when Vultr answers 404."""

        def send() -> None:
            self.detach(resource_id)
            self._api.call("DELETE", self._at(resource_id), repeatable=True)

        end_surely(self._cloud, self, resource_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        """Return the calls of :meth:`destroy`. Reads whether an instance has it."""
        calls = super().plan_destroy(resource_id)
        volume = self.get(resource_id)
        if volume and volume.attached_to:
            calls.insert(0, PlannedCall("POST", self._api.url(f"{self._at(resource_id)}/detach"), {"live": True}))
        return calls


def _block_type(spec: ResourceSpec) -> str:
    return spec.options.get("block_type", "high_perf")


class Snapshots(VultrShelf):
    """Snapshots of instances; not of block storage, which is no part of them."""

    kind: ClassVar[Kind] = Kind.SNAPSHOT
    title: ClassVar[str] = "snapshot"
    path: ClassVar[str] = "/snapshots"
    row_name: ClassVar[str] = "snapshot"
    label_name: ClassVar[str] = "description"
    knows: ClassVar[frozenset[str]] = frozenset({"ref", "source"})
    needs: ClassVar[Mapping[str, str]] = {"source": "an instance as its source"}

    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Begin one, which takes up to half an hour. The instance has to stay until ``ready`` says that it is done."""
        return super().create(spec, progress=progress)

    def all(self) -> list[Resource]:
        """Return every one in the account, over all pages; not those that Vultr still lists as deleted."""
        return [snapshot for snapshot in super().all() if snapshot.status_text != "deleted"]

    def get(self, resource_id: str) -> Resource | None:
        """Return one, ``None`` when Vultr answers 404 or says that it is deleted."""
        found = super().get(resource_id)
        return None if found and found.status_text == "deleted" else found

    def _body(self, spec: ResourceSpec) -> dict[str, object]:
        return {"instance_id": spec.source, "description": key_name(spec)}

    def _resource(self, row: Mapping[str, object]) -> Resource:
        size = number(row.get("size")) / _GIB or None  # 0: not known yet
        return self._labelled(
            row,
            size_gb=size,
            price_per_month_usd=None if size is None else size * _SNAPSHOT_USD_PER_GB_MONTH,
            ready=row.get("status") == "complete",
            status_text=text(row.get("status")),
        )


class SshKeys(VultrShelf, KeyShelf):
    """Public keys of the account; an instance has those that were named when it was rented."""

    path: ClassVar[str] = "/ssh-keys"
    row_name: ClassVar[str] = "ssh_key"
    label_name: ClassVar[str] = "name"

    def _body(self, spec: ResourceSpec) -> dict[str, object]:
        return {"name": key_name(spec), "ssh_key": self.public_key(spec)}

    def _resource(self, row: Mapping[str, object]) -> Resource:
        return self.key(
            text(row.get("id")),
            text(row.get("ssh_key")),
            text(row.get("name")),
            created_at=epoch(row.get("date_created")),
            emulated=row.get("emulated"),
        )


class Firewalls(VultrShelf):
    """Firewall groups that let SSH in, over both kinds of addresses, and nothing else."""

    kind: ClassVar[Kind] = Kind.FIREWALL
    title: ClassVar[str] = "firewall group"
    path: ClassVar[str] = "/firewalls"
    row_name: ClassVar[str] = "firewall_group"
    label_name: ClassVar[str] = "description"
    knows: ClassVar[frozenset[str]] = frozenset({"ref"})

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        """Return the calls of :meth:`create`."""
        rules = self._api.url(f"{self.path}/<id of the new group>/rules")
        return [*super().plan_create(spec), *(PlannedCall("POST", rules, rule) for rule in _SSH_RULES)]

    def _body(self, spec: ResourceSpec) -> dict[str, object]:
        return {"description": key_name(spec)}

    def _finish(self, made: Resource, progress: Progress | None) -> Resource:
        """Add the rules: a group without any lets nobody in."""
        path = f"{self._at(made.id)}/rules"
        for attempt in range(self._waits.throttled_tries):
            rows = self._pages(path, "firewall_rules")
            missing = [rule for rule in _SSH_RULES if not any(_same_rule(rule, row) for row in rows)]
            if not missing:
                return self._existing(made.id)
            try:
                for rule in missing:
                    self._api.call("POST", path, body=rule, repeatable=False)
            except (AmbiguousError, ThrottledError):
                self._waits.sleep(self._waits.delay(attempt))  # the next look says which of them are there
        raise ProviderDownError(f"Vultr adds no rules to {self.title} {made.id}.", provider="vultr")

    def _resource(self, row: Mapping[str, object]) -> Resource:
        rules = number(row.get("rule_count"))
        return self._labelled(row, ready=rules > 0, status_text=f"{rules:g} rules")


def _same_rule(rule: Mapping[str, object], row: Mapping[str, object]) -> bool:
    return all(
        text(row.get(name)).lower() == text(rule[name]) for name in ("ip_type", "protocol", "port", "subnet_size")
    ) and text(row.get("subnet")) == text(rule["subnet"])
