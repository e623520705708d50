"""Vultr: virtual machines with whole GPUs or slices of one.

Facts: ``docs/reference/vultr.md``. The traps that shape this file:

* An offer is a plan in a region that has it in stock; prices differ by region, ``gpu_vram_gb`` is the plan's total, and
  ``gpu_count`` may be ``"1/8"``.
* An instance is ready only when three status words and the address agree, and the words do not advance monotonically.
* A halted instance bills in full. Only DELETE ends it, and only a 404 confirms that it ended.
* How a preemption shows is undocumented: a 404 or ``suspended`` are taken for one.
* Bodies without ``Content-Type: application/json`` get a 400; errors are texts without a code.

Cloud GPU (``vcg``) and dedicated (``vdm``) plans are offered; bare metal has another life cycle and is not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
    UnsupportedError,
)
from gpuyard.formats.label import FIRST_NODE, RunRef
from gpuyard.providers.base import (
    CreateSpec,
    Instance,
    Market,
    Offer,
    PlannedCall,
    Progress,
    Query,
    Rights,
    State,
)
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.http import Answer
from gpuyard.providers.rental import create_once, destroy_surely
from gpuyard.providers.resources import Kind, Shelf
from gpuyard.providers.values import dicts, epoch, number, optional_number, same_ssh_key, strings, text
from gpuyard.providers.vultr_shelves import METAL, BlockStorage, Firewalls, Snapshots, SshKeys, VultrShelf

BASE_URL = "https://api.vultr.com/v2"
UBUNTU_22_04 = 1743
LIMITED_USER = "linuxuser"
"""Whom Vultr makes where ``user_scheme`` is ``limited``: a user with sudo, in place of root's login."""
PLAN_TYPES = ("vcg", "vdm")
_PAGE = 500  # rows, the most that a page holds
_REQUESTS_AT_ONCE = 8  # the limit is 30 a second
_MODEL = re.compile(r"(?:^|-)(a16|a40|a100|l40s?|h100|h200|b200|b300|gh200|mi300x|mi325x|mi355x)(?:-|$)")
_SOLD_OUT = ("not available", "out of stock", "no capacity", "sold out", "unavailable", "insufficient capacity")
_NO_CREDIT = ("insufficient", "credit", "quota", "limit", "billing", "balance")
_NO_ADDRESS = {"", "0.0.0.0"}


def classify(answer: Answer) -> ProviderError | None:
    """Return the error that a Vultr answer means, ``None`` for a success (docs/reference/vultr.md).

    Vultr has no error codes, and what it says when a region is sold out or a quota reached is not documented; the words
    are matched liberally, capacity before credit.
    """
    if 200 <= answer.status < 300:
        return None
    words = answer.text.lower()
    kind: type[ProviderError]
    message = f"Vultr refused: {answer.text or f'HTTP {answer.status}'}"
    if "unauthorized ip" in words:
        kind = AuthenticationError
        message += " (the key's IP allow-list is at https://my.vultr.com/settings/#settingsapi)"
    elif answer.status == 401:
        kind = AuthenticationError
    elif answer.status == 404:
        kind = NotFoundError
    elif answer.status in (400, 403, 409, 412, 422) and any(sign in words for sign in _SOLD_OUT):
        kind = NoCapacityError
    elif answer.status in (400, 402, 403) and any(sign in words for sign in _NO_CREDIT):
        kind = CreditError
    elif answer.status == 403:
        kind = AuthenticationError
    else:
        kind = InvalidRequestError
    return kind(message, provider="vultr", status=answer.status)


class Vultr(Cloud):
    """Vultr behind the neutral interface."""

    name: ClassVar[str] = "vultr"
    title: ClassVar[str] = "Vultr"
    console_url: ClassVar[str] = "https://my.vultr.com/"
    preinstalled: ClassVar[str] = "Ubuntu 22.04"
    remark: ClassVar[str] = "virtual machines; one that is stopped bills in full, and preemptible is a plan of its own"
    api_url: ClassVar[str] = BASE_URL
    meaning = staticmethod(classify)
    _plans: dict[str, dict[str, object]] | None = None

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Return the GPU plans of every region that has them in stock now.

        Stock is asked for region by region, several at once, also in regions that the query excludes: the market then
        can say what that condition costs.
        """
        plans = {
            plan_id: plan
            for kind in PLAN_TYPES
            for plan_id, plan in self._plans_of(kind).items()
            if _is_gpu(plan) and max(_prices(plan, "")) > 0
        }
        listed = {region for plan in plans.values() for region in strings(plan.get("locations"))}
        if any(not strings(plan.get("locations")) for plan in plans.values()):
            # Account-specific plans name no region publicly; only the stock of each region does.
            listed |= {text(region.get("id")) for region in self._pages("/regions", "regions")}
        kinds = sorted({plan_id.split("-", 1)[0] for plan_id in plans} & set(PLAN_TYPES))
        questions = [(region, kind) for region in sorted(listed) for kind in kinds]
        with ThreadPoolExecutor(max_workers=_REQUESTS_AT_ONCE) as pool:
            answers = list(pool.map(lambda question: self._stock(*question), questions))
        found = []
        for (region, _), in_stock in zip(questions, answers, strict=True):
            found += [self._offer(plans[plan_id], region) for plan_id in in_stock if plan_id in plans]
        # Nothing says which bare metal is in stock: its plan's regions have to do, and a create tells.
        for plan in self._metal_plans().values():
            if _is_gpu(plan) and max(_prices(plan, "")) > 0:
                found += [self._offer(plan, region) for region in strings(plan.get("locations")) if region]
        return found

    def _metal_plans(self) -> dict[str, dict[str, object]]:
        return {text(plan.get("id")): plan for plan in self._pages("/plans-metal", "plans_metal")}

    def _stock(self, region: str, kind: str) -> list[str]:
        try:
            answer = self._api.call("GET", f"/regions/{region}/availability", params={"type": kind})
        except NotFoundError:
            return []  # a region that plans still name and the list of regions no longer has
        return strings(answer.get("available_plans"))

    def _offer(self, plan: Mapping[str, object], region: str) -> Offer:
        on_demand, preemptible = _prices(plan, region)
        # A create cannot ask for the preemptible price, so only a plan without another price counts as interruptible.
        market: Market = "on-demand" if plan.get("deploy_ondemand", True) else "interruptible"
        count, ram = _gpu(plan)
        return Offer(
            provider=self.name,
            id=f"{text(plan.get('id'))}@{region}",
            gpu_name=_gpu_name(plan),
            gpu_count=count,
            gpu_ram_gb=ram,
            cpu_cores=number(plan.get("vcpu_count")) or number(plan.get("cpu_count")),
            ram_gb=round(number(plan.get("ram")) / 1024, 1),
            disk_gb=number(plan.get("disk")) * max(1.0, number(plan.get("disk_count"), 1.0)),
            region=region,
            market=market,
            price_per_hour_usd=on_demand if market == "on-demand" else preemptible or on_demand,
            emulated=self.emulated or bool(plan.get("emulated")),
            data_center=True,
        )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent the plan and region of ``offer.id``; see :func:`gpuyard.providers.rental.create_once`."""
        self.refuse_mounts(spec)
        with self._creating:
            key_id = self._key_id(spec.ssh_public_key) or self._add_key(spec.ssh_public_key)
        body = _create_body(offer, spec, key_id)

        def send() -> Instance:
            path, wrapper = _place(metal=offer.id.startswith(METAL))
            row = self._api.call("POST", path, body=body, repeatable=False).get(wrapper)
            if not isinstance(row, dict) or not row.get("id"):
                raise AmbiguousError("Vultr accepted the order and named no instance.", provider=self.name)
            return self._instance(row, offer)

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the calls of :meth:`create`. Reads whether the account has the SSH key."""
        self.refuse_mounts(spec)
        calls = []
        key_id = self._key_id(spec.ssh_public_key)
        if key_id is None:
            calls.append(PlannedCall("POST", self._api.url("/ssh-keys"), _key_body(spec.ssh_public_key)))
            key_id = "<id of the new key>"
        path, _ = _place(metal=offer.id.startswith(METAL))
        calls.append(PlannedCall("POST", self._api.url(path), _create_body(offer, spec, key_id)))
        return calls

    def ssh_keys(self) -> list[str]:
        """Return the account's public keys; an instance has those that were named when it was rented."""
        rows = self._pages("/ssh-keys", "ssh_keys")
        return [" ".join([*text(row.get("ssh_key")).split()[:2], text(row.get("name"))]) for row in rows]

    def _key_id(self, public_key: str) -> str | None:
        for row in self._pages("/ssh-keys", "ssh_keys"):
            if same_ssh_key(public_key, text(row.get("ssh_key"))):
                return text(row.get("id"))
        return None

    def _add_key(self, public_key: str) -> str:
        # A second copy of a key does no harm, so a lost answer needs no ceremony.
        answer = self._api.call("POST", "/ssh-keys", body=_key_body(public_key), repeatable=True)
        row = answer.get("ssh_key")
        if not isinstance(row, dict) or not row.get("id"):
            raise ProviderDownError("Vultr took the SSH key and named no id for it.", provider=self.name)
        return text(row["id"])

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return all machines of the account, virtual and bare metal, over all pages."""
        rows = [*self._pages("/instances", "instances"), *self._pages("/bare-metals", "bare_metals")]
        return [self._instance(row) for row in rows]

    def instance(self, instance_id: str) -> Instance | None:
        """Return one machine, ``None`` when Vultr answers 404, of one that may be of either kind in both places."""
        for path, wrapper in self._places(instance_id):
            try:
                row = self._api.call("GET", f"{path}/{instance_id}").get(wrapper)
            except NotFoundError:
                continue
            if not isinstance(row, dict):
                raise ProviderDownError(f"Vultr's answer about instance {instance_id} holds none.", provider=self.name)
            return self._instance(row)
        return None

    def _places(self, instance_id: str) -> list[tuple[str, str]]:
        """Return the routes below which a machine may be, with what wraps an answer: one where it has been seen."""
        if instance_id in self._is_metal:
            return [_place(metal=self._is_metal[instance_id])]
        return [_place(metal=False), _place(metal=True)]

    def _path(self, instance_id: str) -> str:
        """Return the path of a machine; it is looked for where it is not known which kind it is."""
        if instance_id not in self._is_metal:
            self.instance(instance_id)
        return f"{self._places(instance_id)[0][0]}/{instance_id}"

    @cached_property
    def _is_metal(self) -> dict[str, bool]:
        """Which of the machines that have been seen are bare metal, by id."""
        return {}

    def _instance(self, row: Mapping[str, object], offer: Offer | None = None) -> Instance:
        region = text(row.get("region"))
        self._is_metal[text(row.get("id"))] = metal = text(row.get("plan")).startswith(METAL)
        plan = {} if offer else self._plan(text(row.get("plan")))
        on_demand, preemptible = _prices(plan, region)
        preemptible_only = bool(plan) and not plan.get("deploy_ondemand", True)
        count, ram = (offer.gpu_count, offer.gpu_ram_gb) if offer else _gpu(plan)
        market: Market = offer.market if offer else "interruptible" if preemptible_only else "on-demand"
        address = text(row.get("main_ip"))
        return Instance(
            provider=self.name,
            id=text(row.get("id")),
            label=text(row.get("label")),
            ref=RunRef.from_tags(strings(row.get("tags"))),
            state=_metal_state(row) if metal else _state(row),
            status_text="/".join(
                text(row[name]) for name in ("status", "power_status", "server_status") if row.get(name)
            ),
            region=region,
            gpu_name=offer.gpu_name if offer else _gpu_name(plan),
            gpu_count=count,
            gpu_ram_gb=ram,
            market=market,
            price_per_hour_usd=(
                offer.price_per_hour_usd if offer else (preemptible if preemptible_only else 0.0) or on_demand
            ),
            ssh_host="" if address in _NO_ADDRESS else address,
            ssh_user=LIMITED_USER if row.get("user_scheme") == "limited" else "root",
            created_at=epoch(row.get("date_created")),
            emulated=self.emulated or bool(row.get("emulated")),
            sandbox=self.sandbox,
        )

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """Delete the instance and come back when it answers 404."""

        def send() -> None:
            self._api.call("DELETE", self._path(instance_id), repeatable=True)

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        return [PlannedCall("DELETE", self._api.url(self._path(instance_id)))]

    def start(self, instance_id: str) -> None:
        """Start a halted instance."""
        self._api.call("POST", f"{self._path(instance_id)}/start", repeatable=True)

    def stop(self, instance_id: str) -> None:
        """Halt an instance. It keeps billing in full. Of bare metal nothing would say that it is halted."""
        path = self._path(instance_id)
        if path.startswith(_place(metal=True)[0]):
            raise UnsupportedError(
                f"Vultr does not say whether bare metal is halted, and bills it in full: {instance_id} is not stopped.",
                provider=self.name,
            )
        self._api.call("POST", f"{path}/halt", repeatable=True)

    def reboot(self, instance_id: str) -> None:
        """Restart an instance."""
        self._api.call("POST", f"{self._path(instance_id)}/reboot", repeatable=True)

    def shelves(self) -> Mapping[Kind, Shelf]:
        """Return block storage, snapshots, SSH keys and firewall groups."""
        kinds: tuple[type[VultrShelf], ...] = (BlockStorage, Snapshots, SshKeys, Firewalls)
        return {kind.kind: kind(self, self._api, self._waits, self._pages) for kind in kinds}

    def credit_usd(self) -> float | None:
        """Return the account's credit (``balance`` is negative for credit), less the charges still to come."""
        account = self._api.call("GET", "/account").get("account")
        if not isinstance(account, dict) or optional_number(account.get("balance")) is None:
            return None
        return -number(account.get("balance")) - number(account.get("pending_charges"))

    def rights(self) -> Rights | None:
        """Return the rights of the key's user."""
        account = self._api.call("GET", "/account").get("account")
        held = strings(account.get("acls")) if isinstance(account, dict) else []
        return Rights(tuple(held), "provisioning") if held else None

    # -- reading --------------------------------------------------------------------------------------------------

    def _pages(self, path: str, wrapper: str, **filters: str) -> list[dict[str, object]]:
        """Return the rows of a list over all pages; cursors are opaque, ``""`` at the end."""
        rows: list[dict[str, object]] = []
        params: dict[str, str | int] = {"per_page": _PAGE, **filters}
        seen: set[str] = set()
        while True:
            answer = self._api.call("GET", path, params=params)
            rows += dicts(answer.get(wrapper))
            meta = answer.get("meta")
            links = meta.get("links") if isinstance(meta, dict) else None
            cursor = text(links.get("next")) if isinstance(links, dict) else ""
            if not cursor:
                return rows
            if cursor in seen:
                raise ProviderDownError(
                    f"Vultr repeats a page of {path}, so the list cannot be trusted.", provider=self.name
                )
            seen.add(cursor)
            params["cursor"] = cursor

    def _plans_of(self, kind: str) -> dict[str, dict[str, object]]:
        return {text(plan.get("id")): plan for plan in self._pages("/plans", "plans", type=kind)}

    def _plan(self, plan_id: str) -> dict[str, object]:
        """Return a plan by id, ``{}`` when it is not listed (any more); the catalogue is read once."""
        if self._plans is None:
            self._plans = self._plans_of("all") | self._metal_plans()
        return self._plans.get(plan_id, {})


_LONGEST_HOSTNAME = 63


def _create_body(offer: Offer, spec: CreateSpec, key_id: str) -> dict[str, object]:
    plan, _, region = offer.id.partition("@")
    name = spec.ref.run if spec.ref.node == FIRST_NODE else f"{spec.ref.run}.{spec.ref.node}"
    body: dict[str, object] = {
        "region": region,
        "plan": plan,
        "os_id": UBUNTU_22_04,
        "sshkey_id": [key_id],
        "label": name,
        "hostname": name.replace(".", "-")[:_LONGEST_HOSTNAME].rstrip("-"),
        "tags": spec.ref.tags,
        "backups": "disabled",
        "activation_email": False,
    }
    if plan.startswith(METAL):
        del body["backups"]
    if spec.limited_user:
        body["user_scheme"] = "limited"
    if spec.bootstrap:
        body["user_data"] = base64.b64encode(spec.bootstrap.encode()).decode()
    return body


def _key_body(public_key: str) -> dict[str, object]:
    body = " ".join(public_key.split()[:2])
    return {"name": f"gpuyard-{hashlib.sha256(body.encode()).hexdigest()[:12]}", "ssh_key": public_key}


def _is_gpu(plan: Mapping[str, object]) -> bool:
    return bool(text(plan.get("gpu_type")) or number(plan.get("gpu_vram_gb")) or number(plan.get("gpu_count")))


def _gpu(plan: Mapping[str, object]) -> tuple[float, float]:
    """Return the number of GPUs (a slice is less than one) and the memory in GB of each one that the machine sees."""
    count = number(plan.get("gpu_count"))
    return count, round(number(plan.get("gpu_vram_gb")) / max(1.0, count), 1)


def _gpu_name(plan: Mapping[str, object]) -> str:
    """Return the model, from the plan's name where ``gpu_type`` is absent (some ``vdm`` plans)."""
    named = gpus.normalise(text(plan.get("gpu_type")))
    if named:
        return named
    model = _MODEL.search(text(plan.get("id")))
    return model[1].upper() if model else ""


def _prices(plan: Mapping[str, object], region: str) -> tuple[float, float]:
    """Return the hourly dollars on demand and preemptible, by the region's own price where it has one."""
    by_region = plan.get("location_cost")
    own = by_region.get(region) if isinstance(by_region, dict) else None
    special = own if isinstance(own, dict) else {}
    on_demand, preemptible = (
        number(special.get(name), number(plan.get(name))) for name in ("hourly_cost", "hourly_cost_preemptible")
    )
    return on_demand, preemptible


def _place(*, metal: bool) -> tuple[str, str]:
    """Return the path of all machines of a kind, and what wraps the answer about one."""
    return ("/bare-metals", "bare_metal") if metal else ("/instances", "instance")


def _metal_state(row: Mapping[str, object]) -> State:
    """Return the state of bare metal, which shows neither its power nor its server."""
    status = text(row.get("status"))
    if status == "active" and text(row.get("main_ip")) not in _NO_ADDRESS:
        return State.RUNNING
    return {"suspended": State.PREEMPTED, "failed": State.FAILED}.get(status, State.PENDING)


def _state(row: Mapping[str, object]) -> State:
    status, power, server = (text(row.get(name)) for name in ("status", "power_status", "server_status"))
    if status == "suspended":
        return State.PREEMPTED
    if status == "failed":
        return State.FAILED
    if status != "active":
        return State.PENDING
    if power == "running" and server == "ok" and text(row.get("main_ip")) not in _NO_ADDRESS:
        return State.RUNNING
    # While it boots an instance is "active" with its power "stopped", but then the server is still locked.
    return State.STOPPED if power == "stopped" and server == "ok" else State.PENDING
