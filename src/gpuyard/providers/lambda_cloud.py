"""Lambda: virtual machines with whole GPUs, from one to eight of them.

Facts: ``docs/reference/lambda.md``. The traps that shape this file:

* An offer is an instance type in a region that says it has capacity. That is advisory: a launch can be refused all the
  same, and then the next offer is tried.
* A launch names exactly one SSH key of the account, by its name, and only one launch in twelve seconds is taken.
* Nothing makes a launch safe to repeat. The run stands in the tags, and for versions that answer without tags in the
  name, so that a launch whose answer was lost can be found.
* A terminated instance may still be listed, as ``terminating`` or ``terminated``; both are no more than leftovers, and
  only a 404 or ``terminated`` confirms the end.
* The listing holds ``jupyter_token``, a secret: rows are never shown as they are.

There is no stop, no interruptible market, no balance and no time of creation in the API. Types with ``arm64``
processors are left out: what the roles pin is built for x86-64.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from gpuyard import gpus
from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    CreditError,
    InvalidRequestError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    ProviderError,
)
from gpuyard.formats.label import FIRST_NODE, TAG, RunRef
from gpuyard.providers.base import (
    CreateSpec,
    Instance,
    Offer,
    PlannedCall,
    Progress,
    Query,
    State,
)
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.http import Answer
from gpuyard.providers.lambda_shelves import AccountKeys, FileSystems
from gpuyard.providers.rental import Waits, create_once, destroy_surely
from gpuyard.providers.resources import Kind, Shelf
from gpuyard.providers.values import dicts, number, same_ssh_key, strings, text

BASE_URL = "https://cloud.lambda.ai/api/v1"
USER = "ubuntu"
_LAUNCH_EVERY_S = 12.5
_LONGEST_NAME = 64
_ENDED = "terminated"
_DESCRIPTION = re.compile(r"(?P<model>[^(]+?)\s*\(\s*(?P<gb>\d+(?:\.\d+)?)\s*GB\s*(?P<build>[^)]*)\)")
_KINDS: Mapping[str, type[ProviderError]] = {
    "global/invalid-api-key": AuthenticationError,
    "global/account-inactive": AuthenticationError,
    "global/quota-exceeded": CreditError,
    "global/invalid-address": CreditError,  # no billing address: nothing can be rented
    "global/object-does-not-exist": NotFoundError,
    "instance-operations/launch/insufficient-capacity": NoCapacityError,
    "instance-operations/launch/file-system-in-wrong-region": NoCapacityError,  # another offer may be in the right one
}
_STATES = {
    "booting": State.PENDING,
    "active": State.RUNNING,
    # It may recover, and bills: it is neither given up nor taken for a machine that works.
    "unhealthy": State.UNKNOWN,
    "terminating": State.FAILED,
    _ENDED: State.FAILED,
    "preempted": State.PREEMPTED,
}


def classify(answer: Answer) -> ProviderError | None:
    """Return the error that a Lambda answer means, ``None`` for a success (docs/reference/lambda.md)."""
    if 200 <= answer.status < 300:
        return None
    error = answer.fields.get("error")
    said = error if isinstance(error, dict) else {}
    code = text(said.get("code"))
    kind = _KINDS.get(code)
    if kind is None:
        by_status: dict[int, type[ProviderError]] = {
            401: AuthenticationError,
            403: AuthenticationError,
            404: NotFoundError,
        }
        kind = by_status.get(answer.status, InvalidRequestError)
    words = " ".join(filter(None, [text(said.get("message")), text(said.get("suggestion"))]))
    message = f"Lambda refused: {words or answer.text or f'HTTP {answer.status}'}"
    return kind(message, provider="lambda", status=answer.status, code=code)


class Lambda(Cloud):
    """Lambda's cloud behind the neutral interface."""

    name: ClassVar[str] = "lambda"
    title: ClassVar[str] = "Lambda"
    console_url: ClassVar[str] = "https://cloud.lambda.ai/instances"
    preinstalled: ClassVar[str] = "Lambda Stack: driver, CUDA, PyTorch"
    remark: ClassVar[str] = "virtual machines that boot for minutes; one launch in twelve seconds, no stop"
    api_url: ClassVar[str] = BASE_URL
    meaning = staticmethod(classify)
    waits: ClassVar[Waits] = Waits(throttled_delay=_LAUNCH_EVERY_S)

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Return the types with GPUs, each in every region that says it has capacity now."""
        types = self._api.call("GET", "/instance-types").get("data")
        found = []
        for entry in types.values() if isinstance(types, dict) else []:
            kind = entry.get("instance_type") if isinstance(entry, dict) else None
            if not isinstance(kind, dict) or not number(_specs(kind).get("gpus")) or _is_arm(kind):
                continue
            for region in dicts(entry.get("regions_with_capacity_available")):
                found.append(self._offer(kind, text(region.get("name"))))
        return found

    def _offer(self, kind: Mapping[str, object], region: str) -> Offer:
        specs = _specs(kind)
        model, ram_gb = _gpu(kind)
        return Offer(
            provider=self.name,
            id=f"{text(kind.get('name'))}@{region}",
            gpu_name=model,
            gpu_count=number(specs.get("gpus")),
            gpu_ram_gb=ram_gb,
            cpu_cores=number(specs.get("vcpus")),
            ram_gb=number(specs.get("memory_gib")),
            disk_gb=number(specs.get("storage_gib")),
            region=region,
            market="on-demand",
            price_per_hour_usd=_price(kind),
            emulated=self.emulated or bool(kind.get("emulated")),
            data_center=True,
        )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent the type and region of ``offer.id``; see :func:`gpuyard.providers.rental.create_once`."""
        storage = self._file_systems.launch_fields(spec.mounts, offer.region)
        with self._creating:
            key_name = self._key_name(spec.ssh_public_key) or self._add_key(spec.ssh_public_key)
        body = {**_launch_body(offer, spec, key_name), **storage}

        def send() -> Instance:
            answer = self._api.call("POST", "/instance-operations/launch", body=body, repeatable=False)
            data = answer.get("data")
            ids = strings(data.get("instance_ids")) if isinstance(data, dict) else []
            if not ids:
                raise AmbiguousError("Lambda accepted the launch and named no instance.", provider=self.name)
            return self._just_launched(ids[0], offer, spec)

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def _just_launched(self, instance_id: str, offer: Offer, spec: CreateSpec) -> Instance:
        """Return an instance of which the answer says no more than its id."""
        return Instance(
            provider=self.name,
            id=instance_id,
            label=_name(spec.ref),
            ref=spec.ref,
            state=State.PENDING,
            status_text="booting",
            region=offer.region,
            gpu_name=offer.gpu_name,
            gpu_count=offer.gpu_count,
            gpu_ram_gb=offer.gpu_ram_gb,
            market="on-demand",
            price_per_hour_usd=offer.price_per_hour_usd,
            ssh_user=USER,
            emulated=offer.emulated,
            sandbox=self.sandbox,
        )

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the calls of :meth:`create`. Reads whether the account has the SSH key."""
        calls = []
        storage = self._file_systems.launch_fields(spec.mounts, offer.region)
        key_name = self._key_name(spec.ssh_public_key)
        if key_name is None:
            body = _key_body(spec.ssh_public_key)
            calls.append(PlannedCall("POST", self._api.url("/ssh-keys"), body))
            key_name = text(body["name"])
        url = self._api.url("/instance-operations/launch")
        calls.append(PlannedCall("POST", url, {**_launch_body(offer, spec, key_name), **storage}))
        return calls

    # -- what the account holds besides ---------------------------------------------------------------------------

    def shelves(self) -> Mapping[Kind, Shelf]:
        """Return the file systems and the account's SSH keys."""
        return {Kind.FILESYSTEM: self._file_systems, Kind.SSH_KEY: self._account_keys}

    @cached_property
    def _file_systems(self) -> FileSystems:
        return FileSystems(self, self._api, self._waits, lambda: self._list("/instances"))

    @cached_property
    def _account_keys(self) -> AccountKeys:
        return AccountKeys(self, self._api, self._waits)

    def ssh_keys(self) -> list[str]:
        """Return the account's public keys; an instance has the one that was named when it was rented."""
        rows = self._list("/ssh-keys")
        return [" ".join([*text(row.get("public_key")).split()[:2], text(row.get("name"))]) for row in rows]

    def _key_name(self, public_key: str) -> str | None:
        for row in self._list("/ssh-keys"):
            if same_ssh_key(public_key, text(row.get("public_key"))):
                return text(row.get("name"))
        return None

    def _add_key(self, public_key: str) -> str:
        body = _key_body(public_key)
        try:
            # The name is the key's own, so a lost answer needs no ceremony: the second request finds it there.
            answer = self._api.call("POST", "/ssh-keys", body=body, repeatable=True)
        except InvalidRequestError:
            if (known := self._key_name(public_key)) is not None:
                return known
            raise
        row = answer.get("data")
        if not isinstance(row, dict) or not row.get("name"):
            raise ProviderDownError("Lambda took the SSH key and named none.", provider=self.name)
        return text(row["name"])

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return all instances of the account that have not ended."""
        return [self._instance(row) for row in self._list("/instances") if row.get("status") != _ENDED]

    def instance(self, instance_id: str) -> Instance | None:
        """Return one instance, ``None`` when Lambda answers 404 or that it is terminated."""
        try:
            row = self._api.call("GET", f"/instances/{instance_id}").get("data")
        except NotFoundError:
            return None
        if not isinstance(row, dict):
            raise ProviderDownError(f"Lambda's answer about instance {instance_id} holds none.", provider=self.name)
        return None if row.get("status") == _ENDED else self._instance(row)

    def _instance(self, row: Mapping[str, object]) -> Instance:
        kind = row.get("instance_type")
        kind = kind if isinstance(kind, dict) else {}
        region = row.get("region")
        model, ram_gb = _gpu(kind)
        status, address = text(row.get("status")), text(row.get("ip"))
        state = _STATES.get(status, State.UNKNOWN)
        if state is State.RUNNING and not address:
            state = State.PENDING
        name = text(row.get("name"))
        return Instance(
            provider=self.name,
            id=text(row.get("id")),
            label=name,
            ref=RunRef.from_tags(_tags(row)) or RunRef.from_label(name),
            state=state,
            status_text=status,
            region=text(region.get("name")) if isinstance(region, dict) else "",
            gpu_name=model,
            gpu_count=number(_specs(kind).get("gpus")),
            gpu_ram_gb=ram_gb,
            market="on-demand",
            price_per_hour_usd=_price(kind),
            ssh_host=address,
            ssh_user=USER,
            emulated=self.emulated or bool(kind.get("emulated")),
            sandbox=self.sandbox,
        )

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """Terminate the instance and come back when Lambda no longer has it."""

        def send() -> None:
            self._api.call(
                "POST", "/instance-operations/terminate", body={"instance_ids": [instance_id]}, repeatable=True
            )

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        url = self._api.url("/instance-operations/terminate")
        return [PlannedCall("POST", url, {"instance_ids": [instance_id]})]

    def reboot(self, instance_id: str) -> None:
        """Restart an instance."""
        self._api.call("POST", "/instance-operations/restart", body={"instance_ids": [instance_id]}, repeatable=True)

    def credit_usd(self) -> float | None:
        """Return nothing: the API does not say."""
        return None

    def _list(self, path: str) -> list[dict[str, object]]:
        return dicts(self._api.call("GET", path).get("data"))


def _name(ref: RunRef) -> str:
    """Return the instance's name: the label where it fits, since a version without tags has nothing else."""
    if len(ref.label) <= _LONGEST_NAME:
        return ref.label
    return ref.run if ref.node == FIRST_NODE else f"{ref.run}.{ref.node}"


def _launch_body(offer: Offer, spec: CreateSpec, key_name: str) -> dict[str, object]:
    kind, _, region = offer.id.partition("@")
    body: dict[str, object] = {
        "region_name": region,
        "instance_type_name": kind,
        "ssh_key_names": [key_name],
        "name": _name(spec.ref),
        # `run:x` is the key run with the value x. A tag without a value gets one, because there must be one.
        "tags": [
            {"key": key, "value": value or "true"} for key, _, value in (tag.partition(":") for tag in spec.ref.tags)
        ],
    }
    if spec.bootstrap:
        body["user_data"] = spec.bootstrap
    return body


def _tags(row: Mapping[str, object]) -> list[str]:
    found = {text(tag.get("key")): text(tag.get("value")) for tag in dicts(row.get("tags"))}
    return [key if key == TAG else f"{key}:{value}" for key, value in found.items()]


def _key_body(public_key: str) -> dict[str, object]:
    body = " ".join(public_key.split()[:2])
    return {"name": f"gpuyard-{hashlib.sha256(body.encode()).hexdigest()[:12]}", "public_key": public_key}


def _specs(kind: Mapping[str, object]) -> Mapping[str, object]:
    specs = kind.get("specs")
    return specs if isinstance(specs, dict) else {}


def _is_arm(kind: Mapping[str, object]) -> bool:
    # Older versions do not name the architecture, and have one type that is known to be of the other.
    return text(kind.get("architecture")).lower() == "arm64" or "gh200" in text(kind.get("name")).lower()


def _gpu(kind: Mapping[str, object]) -> tuple[str, float]:
    """Return the model and the memory in GB of each GPU, which stand in words only: ``A10 (24 GB PCIe)``."""
    said = _DESCRIPTION.search(text(kind.get("gpu_description")) or text(kind.get("description")))
    if not said:
        return gpus.normalise(text(kind.get("gpu_description"))), 0.0
    model = re.sub(r"^\d+x\s+", "", said["model"])  # `description` begins with their number
    return gpus.normalise(f"{model} {said['build']}"), float(said["gb"])


def _price(kind: Mapping[str, object]) -> float:
    return number(kind.get("price_cents_per_hour")) / 100
