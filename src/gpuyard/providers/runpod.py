"""RunPod: containers ("pods") in its own data centres (``SECURE``) or on the machines of hosts (``COMMUNITY``).

Facts: ``docs/reference/runpod.md``. The traps that shape this file:

* An offer is so many GPUs of a type in a data centre. The catalogue says nothing of processors and memory: at least
  what the query asks for is ordered with the pod, and that is what the offer promises.
* 400 is both a broken rule and "no capacity"; only the words of ``detail`` tell.
* ``startSsh`` would let all keys of the account in. A ``PUBLIC_KEY`` of the pod's own lets in ours alone.
* Only the direct address of port 22 is of use; the proxy moves no files.
* A pod that is stopped has lost its disk, and may come back without a GPU: it counts as taken away, and gpuyard stops
  none.
* The catalogue's prices are for one GPU; the disk is asked for besides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar
from urllib.parse import quote

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
    UnsupportedError,
)
from gpuyard.formats.label import RunRef
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
from gpuyard.providers.rental import create_once, destroy_surely
from gpuyard.providers.resources import Kind, Shelf
from gpuyard.providers.runpod_shelves import AccountKeys, NetworkVolumes
from gpuyard.providers.values import dicts, epoch, number, strings, text

BASE_URL = "https://api.runpod.io/v2"
IMAGE = "runpod/pytorch:2.4.0-py3.11-cuda12.4.1-devel-ubuntu22.04"
CLOUDS = ("SECURE", "COMMUNITY")
LABEL_VARIABLE = "GPUYARD_LABEL"
_DISK_USD_PER_GB_MONTH = 0.10
_HOURS_PER_MONTH = 730
_MOST_DISK_GB = 2000.0
_LEAST_CORES, _LEAST_RAM_GB = 2.0, 8.0  # for each GPU, the least that is ordered
_PAGE = 1000
_MOST_LOG_LINES, _LOG_QUIET_S = 5000, 4.0
_NO_CAPACITY = re.compile(r"no longer any instances|not enough free gpus|no instances? (?:currently )?available", re.I)
_ENDED = "TERMINATED"
_STATES = {
    "PROVISIONING": State.PENDING,
    "STARTING": State.PENDING,
    "RUNNING": State.RUNNING,
    "EXITED": State.PREEMPTED,  # its disk is gone, and somebody else may have its GPU
    "ERROR": State.FAILED,
    _ENDED: State.FAILED,
}


def classify(answer: Answer) -> ProviderError | None:
    """Return the error that a RunPod answer means, ``None`` for a success (docs/reference/runpod.md)."""
    if 200 <= answer.status < 300:
        return None
    detail = text(answer.fields.get("detail"))
    wrong = "; ".join(strings(answer.fields.get("errors")))
    words = ": ".join(filter(None, [detail or text(answer.fields.get("title")), wrong])) or answer.text
    kinds: dict[int, type[ProviderError]] = {
        401: AuthenticationError,
        402: CreditError,
        403: AuthenticationError,
        404: NotFoundError,
    }
    kind = kinds.get(answer.status, InvalidRequestError)
    if answer.status == 400 and _NO_CAPACITY.search(words):
        kind = NoCapacityError
    return kind(f"RunPod refused: {words or f'HTTP {answer.status}'}", provider="runpod", status=answer.status)


class RunPod(Cloud):
    """RunPod behind the neutral interface."""

    name: ClassVar[str] = "runpod"
    title: ClassVar[str] = "RunPod"
    console_url: ClassVar[str] = "https://console.runpod.io/pods"
    preinstalled: ClassVar[str] = "the image's programs; PyTorch by default"
    remark: ClassVar[str] = "containers; a stop loses what is on the pod's own disk"
    prepaid: ClassVar[bool] = True
    api_url: ClassVar[str] = BASE_URL
    meaning = staticmethod(classify)
    _models: dict[str, dict[str, object]] | None = None

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Return so many GPUs as the query asks for (one by default) of each type and place that has them now.

        Of a query with alternatives each is asked for that differs in what has to be ordered.
        """
        found: dict[str, Offer] = {}
        rows: dict[tuple[str, int], list[dict[str, object]]] = {}
        for choice in query.choices:
            count = max(1, math.ceil(choice.gpu_count or 1))
            for cloud in CLOUDS:
                if (cloud, count) not in rows:
                    rows[cloud, count] = self._catalogue(cloud, count)
                for row in rows[cloud, count]:
                    for place in _places(row):
                        offer = self._offer(row, cloud, count, place, choice)
                        found.setdefault(offer.id, offer)
        return list(found.values())

    def _catalogue(self, cloud: str, count: int) -> list[dict[str, object]]:
        """Return the types of GPU of which one of RunPod's two clouds has so many on one machine."""
        params: dict[str, str | int] = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud, "count": count}
        rows = dicts(self._api.call("GET", "/catalog/gpus", params=params).get("gpus"))
        return [row for row in rows if row.get(cloud.lower()) is True and _of_cloud(row, "maxCount", cloud) >= count]

    def _offer(self, row: Mapping[str, object], cloud: str, count: int, place: str, query: Query) -> Offer:
        cores = max(_LEAST_CORES, math.ceil((query.cpu_cores or 0) / count))
        ram_gb = max(_LEAST_RAM_GB, math.ceil((query.ram_gb or 0) / count))
        disk = query.disk_gb * _DISK_USD_PER_GB_MONTH / _HOURS_PER_MONTH
        order = (text(row.get("id")), cloud, place, str(count), f"{cores:g}", f"{ram_gb:g}", query.cuda or "")
        return Offer(
            provider=self.name,
            id="|".join(order),
            gpu_name=gpus.normalise(text(row.get("id")) or text(row.get("name"))),
            gpu_count=count,
            gpu_ram_gb=number(row.get("memory")),
            cpu_cores=cores * count,
            ram_gb=ram_gb * count,
            disk_gb=_MOST_DISK_GB,
            region=place,
            market="on-demand",
            price_per_hour_usd=_of_cloud(row, "price", cloud) * count + disk,
            disk_price_per_hour_usd=disk,
            cuda=_newest_cuda(row),
            emulated=self.emulated or bool(row.get("emulated")),
            data_center=cloud == "SECURE",
        )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent ``offer``; see :func:`gpuyard.providers.rental.create_once`."""
        body = _create_body(offer, spec)

        def send() -> Instance:
            row = self._api.call("POST", "/pods", body=body, repeatable=False)
            if not row.get("id"):
                raise AmbiguousError("RunPod accepted the order and named no pod.", provider=self.name)
            return self._instance(row, offer)

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the one call of :meth:`create`."""
        return [PlannedCall("POST", self._api.url("/pods"), _create_body(offer, spec))]

    def ssh_keys(self) -> list[str]:
        """Return the account's public keys; a pod of ours has the one that it was rented with."""
        return strings(self._api.call("GET", "/account/ssh-keys").get("keys"))

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return all pods of the account that have not ended, over all pages where there are pages."""
        return [self._instance(row) for row in self._pages("/pods", "pods") if row.get("status") != _ENDED]

    def _pages(self, path: str, name: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        params: dict[str, str | int] = {"limit": _PAGE}
        seen: set[str] = set()
        while True:
            answer = self._api.call("GET", path, params=params)
            # A version without pages answers a bare list.
            found = answer.get(name, answer.get("items"))
            if not isinstance(found, list):
                raise ProviderDownError(f"RunPod's answer to GET {path} holds no list.", provider=self.name)
            rows += dicts(found)
            pages = answer.get("pagination")
            cursor = text(pages.get("nextCursor")) if isinstance(pages, dict) and pages.get("hasNextPage") else ""
            if not cursor:
                return rows
            if cursor in seen:
                raise ProviderDownError(
                    f"RunPod repeats a page of {path}, so the list cannot be trusted.", provider=self.name
                )
            seen.add(cursor)
            params["cursor"] = cursor

    def instance(self, instance_id: str) -> Instance | None:
        """Return one pod, ``None`` when RunPod answers 404 or that it is terminated."""
        try:
            row = self._api.call("GET", f"/pods/{quote(instance_id, safe='')}")
        except NotFoundError:
            return None
        if not row.get("id"):
            raise ProviderDownError(f"RunPod's answer about pod {instance_id} holds none.", provider=self.name)
        return None if row.get("status") == _ENDED else self._instance(row)

    # -- what the account holds besides ---------------------------------------------------------------------------

    def shelves(self) -> Mapping[Kind, Shelf]:
        """Return the network volumes and the account's SSH keys."""
        return self._shelves

    @cached_property
    def _shelves(self) -> Mapping[Kind, Shelf]:
        volumes = NetworkVolumes(self, self._api, self._waits, self._pages)
        return {Kind.FILESYSTEM: volumes, Kind.SSH_KEY: AccountKeys(self, self._api, self._waits)}

    def _instance(self, row: Mapping[str, object], offer: Offer | None = None) -> Instance:
        gpu = _fields(row, "gpu")
        model = {} if offer else self._model(text(gpu.get("id")))
        direct = _fields(_fields(row, "ssh"), "direct")
        host, port = text(direct.get("host")), int(number(direct.get("port")))
        status = text(row.get("status"))
        state = _STATES.get(status, State.UNKNOWN)
        if state is State.RUNNING and not (host and port):
            state = State.PENDING
        label = text(_fields(row, "env").get(LABEL_VARIABLE)) or text(row.get("name"))
        cloud = text(row.get("cloud")) or CLOUDS[0]
        count = number(gpu.get("count")) or (offer.gpu_count if offer else 0.0)
        price = offer.price_per_hour_usd if offer else _of_cloud(model, "price", cloud) * count
        disk = number(row.get("disk")) * _DISK_USD_PER_GB_MONTH / _HOURS_PER_MONTH
        return Instance(
            provider=self.name,
            id=text(row.get("id")),
            label=label,
            ref=RunRef.from_label(label),
            state=state,
            status_text=status,
            region=text(row.get("dataCenterId")) or (offer.region if offer else ""),
            gpu_name=gpus.normalise(text(gpu.get("id"))) or (offer.gpu_name if offer else ""),
            gpu_count=count,
            gpu_ram_gb=offer.gpu_ram_gb if offer else number(model.get("memory")),
            market="on-demand",
            # `cost` is 0 while it does not run; what it then bills is its disk.
            price_per_hour_usd=number(row.get("cost")) or price + (0.0 if offer else disk),
            idle_price_per_hour_usd=disk,
            ssh_host=host,
            ssh_port=port or 22,
            created_at=epoch(row.get("createdAt")),
            emulated=self.emulated or bool(row.get("emulated")),
            sandbox=self.sandbox,
        )

    def _model(self, gpu_id: str) -> dict[str, object]:
        """Return a GPU type of the catalogue, ``{}`` when it is not there (any more); it is read once."""
        if self._models is None:
            rows = dicts(self._api.call("GET", "/catalog/gpus").get("gpus"))
            self._models = {text(row.get("id")): row for row in rows}
        return self._models.get(gpu_id, {})

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """Delete the pod and come back when RunPod no longer has it."""
        path = f"/pods/{quote(instance_id, safe='')}"

        def send() -> None:
            self._api.call("DELETE", path, repeatable=True)

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        return [PlannedCall("DELETE", self._api.url(f"/pods/{quote(instance_id, safe='')}"))]

    def reboot(self, instance_id: str) -> None:
        """Restart the pod's container on its host."""
        path = f"/pods/{quote(instance_id, safe='')}/action"
        self._api.call("POST", path, body={"action": "restart"}, repeatable=True)

    def logs(self, instance_id: str, lines: int) -> list[str]:
        """Return the container's log, which RunPod sends as a stream that does not end."""
        path = f"/pods/{quote(instance_id, safe='')}/logs"
        wanted = min(lines, _MOST_LOG_LINES)
        events = self._api.events(path, {"source": "container", "tail": wanted}, most=wanted, quiet_s=_LOG_QUIET_S)
        return [text(event.get("line")) for event in events]

    def credit_usd(self) -> float | None:
        """Return nothing: this API does not say, only the older one in GraphQL."""
        return None


def _create_body(offer: Offer, spec: CreateSpec) -> dict[str, object]:
    if spec.bootstrap:
        raise UnsupportedError("RunPod runs no script at the first boot.", provider="runpod")
    if spec.image_login:
        raise UnsupportedError(
            f"RunPod pulls {spec.image} only with a login that is stored there, which gpuyard does not do: choose "
            "another cloud, or make the image public.",
            provider="runpod",
        )
    gpu, cloud, place, count, cores, ram_gb, cuda = offer.id.split("|")
    if len(spec.mounts) > 1:
        raise UnsupportedError(
            f"RunPod creates a pod with one network volume at most, not with {len(spec.mounts)}: leave the others out.",
            provider="runpod",
        )
    if spec.mounts and cloud != CLOUDS[0]:
        # Another offer has it, so the order goes on to the next one.
        raise NoCapacityError(
            f"RunPod has no network volumes on hosts' machines ({cloud}), only in its own data centres ({CLOUDS[0]}).",
            provider="runpod",
        )
    body: dict[str, object] = {
        "name": spec.ref.label,
        "image": spec.image or IMAGE,
        "gpu": {
            "id": gpu,
            "count": int(count),
            "minRamPerGpu": int(float(ram_gb)),
            "minVcpuCountPerGpu": int(float(cores)),
            **({"minCudaVersion": cuda} if cuda else {}),
        },
        "cloud": cloud,
        "disk": math.ceil(spec.disk_gb),
        "ports": ["22/tcp"],
        "env": {**spec.environment, LABEL_VARIABLE: spec.ref.label, "PUBLIC_KEY": spec.ssh_public_key},
    }
    if spec.mounts:
        body["mounts"] = {"network": [{"volumeId": volume, "path": path} for volume, path in spec.mounts]}
    if place:
        body["dataCenterIds"] = [place]
    return body


def _places(row: Mapping[str, object]) -> list[str]:
    """Return the data centres that have it now; ``""`` for any, where none is named."""
    centres = dicts(row.get("dataCenters"))
    if centres:
        return [text(centre.get("id")) for centre in centres if _is_there(centre)]
    return [""] if _is_there(row) else []


def _is_there(row: Mapping[str, object]) -> bool:
    return text(row.get("availability")).upper() not in ("", "NONE")


def _of_cloud(row: Mapping[str, object], name: str, cloud: str) -> float:
    return number(_fields(row, name).get(cloud.lower()))


def _newest_cuda(row: Mapping[str, object]) -> str | None:
    there = [text(one.get("version")) for one in dicts(row.get("cudaVersions")) if one.get("available") is not False]
    numbers = [tuple(map(int, version.split("."))) for version in there if re.fullmatch(r"\d+\.\d+", version)]
    return ".".join(map(str, max(numbers))) if numbers else None


def _fields(row: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}
