"""Vast.ai: a marketplace of containers on other people's machines.

Facts: ``docs/reference/vast.md``. The traps that shape this file:

* Success is 2xx *and* ``success`` not ``false``; a wrong key is a 404, a gone offer 410, 404 or 400.
* A search returns at most 64 offers and has no cursor; the next page is asked for by a higher price floor.
* A create can answer with an error and still have rented; the answer then carries ``new_contract``.
* The label is the only free-form metadata. :meth:`Vast.stop` therefore marks the label before it stops an instance. Any
  other stop of one of our instances was not ours: outbid, contract over, credit gone. All of these read as preempted,
  because the API does not tell them apart, and neither does it say whether ``intended_status`` changes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
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
    UsageError,
)
from gpuyard.formats.label import STOPPED_MARK, RunRef
from gpuyard.providers.base import (
    CreateSpec,
    Instance,
    Market,
    Offer,
    PlannedCall,
    Progress,
    Query,
    State,
)
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.http import Answer, fetch_text
from gpuyard.providers.rental import create_once, destroy_surely
from gpuyard.providers.resources import Kind, Shelf
from gpuyard.providers.values import dicts, number, optional_number, same_ssh_key, text
from gpuyard.providers.vast_shelves import AccountKeys, Variables, Volumes

BASE_URL = "https://console.vast.ai"
DEFAULT_IMAGE = "vastai/pytorch:@vastai-automatic-tag"
PAGE_CAP = 64  # offers; the server never returns more
MOST_PAGES = 4  # searches are limited to ten a minute; the cheapest fits are on the first page anyway
LIST_PAGE = 25  # instances; the most that the v1 list gives at once
HOURS_PER_MONTH = 720.0  # Vast's month for storage prices
_HOURS_PER_GREGORIAN_MONTH = 730.0
LEAST_DISK_GB = 8.0
GPU_NAMES = (
    *("RTX 3060", "RTX 3070", "RTX 3080", "RTX 3090", "RTX 4070", "RTX 4080", "RTX 4090", "RTX 5080", "RTX 5090"),
    *("A10", "A40", "A100 SXM4", "A100 PCIE", "H100 SXM", "H100 PCIE", "H100 NVL", "H200", "B200", "L4", "L40", "L40S"),
    *("RTX A4000", "RTX A5000", "RTX A6000", "RTX 6000Ada", "RTX PRO 6000 S", "RTX PRO 6000 WS"),
    *("Tesla V100", "Tesla T4"),
)
"""How Vast spells models, as far as we know."""
_LEAST_BID_USD, _MOST_BID_USD = 0.001, 32.0  # an hour, the most for each GPU
_LOG_LOOKS, _LOG_LOOK_EVERY_S = 30, 0.3
_ENV_LIMIT = 32768  # bytes
_ONSTART_LIMIT = 4096  # bytes
_UNSAFE_VALUE = re.compile(r"[\s'\"\\$`]")
_NO_TMUX = "touch ~/.no_auto_tmux"
"""Without it an SSH login lands in tmux, which breaks Ansible and our own sessions."""
START_AGAIN = "if [ -x /opt/gpuyard/start-again ]; then /opt/gpuyard/start-again & fi"
"""The start script runs at each start, so a run goes on that was at work when its machine was stopped or outbid."""
_TYPES: dict[Market, str] = {"on-demand": "on-demand", "interruptible": "bid"}
_BROKEN = (
    *("oci runtime create failed", "manifest unknown", "pull access denied", "failed to create task"),
    "no space left on device",
)


_MISSING = ("no_such_instance", "not_found", "no_ssh_key", "no_such_volume", "nonexistent_key")


def classify(answer: Answer) -> ProviderError | None:
    """Return the error that a Vast answer means, ``None`` for a success (docs/reference/vast.md, Errors)."""
    fields = answer.fields
    ok = 200 <= answer.status < 300
    contract = fields.get("new_contract")
    if ok and fields.get("success") is not False:
        return None
    code = str(fields.get("error") or "")
    words = f"{code} {answer.text}".lower()
    kind = _kind(answer.status, code, words)
    return kind(
        f"Vast.ai refused: {answer.text or f'HTTP {answer.status}'}",
        provider="vast",
        status=answer.status,
        code=code,
        instance_id=str(contract) if contract else None,
    )


def _kind(status: int, code: str, words: str) -> type[ProviderError]:
    if code == "auth_error" or "invalid user key" in words or "session expired" in words or status == 401:
        return AuthenticationError
    if code == "insufficient_credit" or "lacks credit" in words or status == 411:
        return CreditError
    if "no_such_ask" in words or "resources are currently unavailable" in words:
        return NoCapacityError
    if status == 404 or code in _MISSING or "ssh key not found" in words:
        return NotFoundError
    if status == 403 and not code:
        return AuthenticationError
    return InvalidRequestError


class Vast(Cloud):
    """Vast.ai behind the neutral interface."""

    name: ClassVar[str] = "vast"
    title: ClassVar[str] = "Vast.ai"
    console_url: ClassVar[str] = "https://cloud.vast.ai/instances/"
    preinstalled: ClassVar[str] = "the image's programs; PyTorch by default"
    remark: ClassVar[str] = "containers on other people's machines; an interruptible one stops without notice"
    prepaid: ClassVar[bool] = True
    api_url: ClassVar[str] = BASE_URL
    meaning = staticmethod(classify)
    _last_create: float | None = None

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Search with the query's conditions; when that did not fill a page, add the rest of the market.

        Each further search costs one call and only happens on a small market or for a rare wish. The unfiltered one is
        what lets the market say which condition removed how many offers.
        """
        found: dict[str, Offer] = {}
        names, others = _names(query), _conditions(query)
        for market in ("on-demand", "interruptible") if query.market == "any" else (query.market,):
            rows, capped = self._search({**others, **names}, market, query.disk_gb)
            if names and not rows:
                # Vast may spell a model in another way than we know.
                more, capped = self._search(others, market, query.disk_gb, most_pages=1)
                rows += more
            if not capped:
                rows += self._search({}, market, query.disk_gb, most_pages=1)[0]
            for row in rows:
                offer = self._offer(row, market, query)
                # One ask is rentable on demand and by bid at different prices: two offers under one id.
                found.setdefault(f"{offer.id} {market}", offer)
        return list(found.values())

    def _search(
        self, conditions: Mapping[str, object], market: Market, disk_gb: float, *, most_pages: int = MOST_PAGES
    ) -> tuple[list[dict[str, object]], bool]:
        """Return the rows by rising price, and whether the first page was full."""
        rows: dict[str, dict[str, object]] = {}
        floor: float | None = None
        first_full = False
        for page_number in range(most_pages):
            body: dict[str, object] = {
                "verified": {"eq": True},
                "external": {"eq": False},
                "rentable": {"eq": True},
                **conditions,
                "type": _TYPES[market],
                "order": [["dph_total", "asc"]],
                "limit": PAGE_CAP,
                "allocated_storage": disk_gb,
            }
            if floor is not None:
                body["dph_total"] = {"gte": floor}
            # A search by POST changes nothing, so it may be repeated.
            page = dicts(self._api.call("POST", "/api/v0/bundles/", body=body, repeatable=True).get("offers"))
            before = len(rows)
            rows.update((str(row["id"]), row) for row in page if row.get("id") is not None)
            full = len(page) >= PAGE_CAP
            first_full = first_full or (page_number == 0 and full)
            if not full or len(rows) == before:
                break
            floor = max(number(row.get("dph_total")) for row in page)
        return list(rows.values()), first_full

    def _offer(self, row: Mapping[str, object], market: Market, query: Query) -> Offer:
        count = number(row.get("num_gpus"), 1.0)
        cores = optional_number(row.get("cpu_cores_effective")) or optional_number(row.get("cpu_cores")) or 0.0
        whole = optional_number(row.get("cpu_cores"))
        share = cores / whole if whole else number(row.get("gpu_frac"), 1.0)
        disk_price = number(row.get("storage_cost")) * query.disk_gb / HOURS_PER_MONTH
        disk_price = number(row.get("storage_total_cost"), disk_price)
        price, least_bid = number(row.get("dph_total")), None
        if market == "interruptible":
            # The price of a search for bids is that of the least one.
            least_bid = number(row.get("min_bid"), price - disk_price)
            price += max(0.0, min(least_bid * query.bid_times, query.bid_at_most_usd or math.inf) - least_bid)
        cuda = optional_number(row.get("cuda_max_good"))
        capability = optional_number(row.get("compute_cap"))
        speeds = [speed for name in ("inet_up", "inet_down") if (speed := optional_number(row.get(name))) is not None]
        hosting, static_ip = row.get("hosting_type"), row.get("static_ip")
        volume_gb, volume_price = number(row.get("avail_vol_size")), number(row.get("avail_vol_dph"))
        return Offer(
            provider=self.name,
            id=str(row["id"]),
            gpu_name=gpus.normalise(text(row.get("gpu_name"))),
            gpu_count=count,
            gpu_ram_gb=round(number(row.get("gpu_ram")) / 1000, 1),
            cpu_cores=cores,
            ram_gb=round(number(row.get("cpu_ram")) * min(1.0, share) / 1000, 1),
            disk_gb=number(row.get("disk_space")),
            region=text(row.get("geolocation")),
            market=market,
            price_per_hour_usd=price,
            disk_price_per_hour_usd=disk_price,
            traffic_price_per_gb_usd=max(number(row.get("inet_up_cost")), number(row.get("inet_down_cost"))),
            reliability=optional_number(row.get("reliability2", row.get("reliability"))),
            cuda=None if cuda is None else f"{cuda:.1f}",
            machine_id=text(row.get("machine_id")),
            emulated=self.emulated or bool(row.get("emulated")),
            dlperf=optional_number(row.get("dlperf")),
            driver=text(row.get("driver_version")) or None,
            compute_capability=None if capability is None else f"{capability / 100:.1f}",
            internet_mbit_s=min(speeds, default=None),
            static_ip=None if static_ip is None else bool(static_ip),
            data_center=None if hosting is None else hosting == 1,
            least_bid_usd=least_bid,
            volume_gb=volume_gb,
            volume_usd_per_gb_month=volume_price * _HOURS_PER_GREGORIAN_MONTH / volume_gb if volume_gb else None,
        )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent the ask ``offer.id``; see :func:`gpuyard.providers.rental.create_once` for what may go wrong."""
        body = {**_create_body(offer, spec), **self._volumes.volume_info(spec.mounts, offer.machine_id)}
        with self._creating:
            self._space_creates()
            if not self._has_key(spec.ssh_public_key):
                self._add_key(spec.ssh_public_key)
            self._last_create = self._waits.clock()

        def send() -> Instance:
            self._last_create = self._waits.clock()
            answer = self._api.call("PUT", f"/api/v0/asks/{offer.id}/", body=body, repeatable=False)
            contract = answer.get("new_contract")
            if not contract:
                raise AmbiguousError(f"Vast.ai accepted ask {offer.id} and named no instance.", provider=self.name)
            return Instance(
                provider=self.name,
                id=str(contract),
                label=spec.ref.label,
                ref=spec.ref,
                state=State.PENDING,
                status_text="rented",
                region=offer.region,
                gpu_name=offer.gpu_name,
                gpu_count=offer.gpu_count,
                gpu_ram_gb=offer.gpu_ram_gb,
                market=offer.market,
                price_per_hour_usd=offer.price_per_hour_usd,
                machine_id=offer.machine_id,
                emulated=self.emulated,
                sandbox=self.sandbox,
                idle_price_per_hour_usd=offer.disk_price_per_hour_usd,
            )

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def _space_creates(self) -> None:
        """Wait until Vast takes another create: after a refusal for asking too often a machine has to be looked for."""
        if self._last_create is not None and not self.emulated:
            since = self._waits.clock() - self._last_create
            self._waits.sleep(max(0.0, self._waits.between_creates - since))

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the calls of :meth:`create`. Reads whether the account has the SSH key."""
        calls = []
        body = {**_create_body(offer, spec), **self._volumes.volume_info(spec.mounts, offer.machine_id)}
        if not self._has_key(spec.ssh_public_key):
            calls.append(PlannedCall("POST", self._api.url("/api/v0/ssh/"), {"ssh_key": spec.ssh_public_key}))
        if spec.image_login:
            body["image_login"] = f"(the login of {spec.image_login.user} at {spec.image_login.registry})"
        calls.append(PlannedCall("PUT", self._api.url(f"/api/v0/asks/{offer.id}/"), body))
        return calls

    # -- what the account holds besides ---------------------------------------------------------------------------

    def shelves(self) -> Mapping[Kind, Shelf]:
        """Return the stored variables, the account's SSH keys and the local volumes."""
        return {
            Kind.VOLUME: self._volumes,
            Kind.VARIABLE: Variables(self, self._api, self._waits),
            Kind.SSH_KEY: self._account_keys,
        }

    @cached_property
    def _volumes(self) -> Volumes:
        return Volumes(self, self._api, self._waits)

    @cached_property
    def _account_keys(self) -> AccountKeys:
        return AccountKeys(self, self._api, self._waits)

    def ssh_keys(self) -> list[str]:
        """Return the account's public keys, which reach every new instance."""
        try:
            answer = self._api.call("GET", "/api/v0/ssh/")
        except NotFoundError:
            return []  # "No SSH keys found for the user." is a 404
        rows = dicts(answer.get("items") or answer.get("ssh_keys") or answer.get("keys"))
        return [text(row.get("public_key")) or text(row.get("key")) for row in rows if not row.get("deleted_at")]

    def _has_key(self, public_key: str) -> bool:
        return any(same_ssh_key(public_key, key) for key in self.ssh_keys())

    def _add_key(self, public_key: str) -> None:
        # Twice the same key does no harm, so a lost answer needs no ceremony.
        self._api.call("POST", "/api/v0/ssh/", body={"ssh_key": public_key}, repeatable=True)

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return all instances over all pages of the v1 list (the v0 list answers 410 on many accounts)."""
        found: dict[str, Instance] = {}
        params: dict[str, str | int] = {
            "limit": LIST_PAGE,
            "order_by": json.dumps([{"col": "id", "dir": "asc"}]),
        }
        seen_tokens: set[str] = set()
        while True:
            answer = self._api.call("GET", "/api/v1/instances/", params=params)
            for row in dicts(answer.get("instances")):
                instance = self._instance(row)
                found[instance.id] = instance
            token = text(answer.get("next_token"))
            if not token:
                return list(found.values())
            if token in seen_tokens:
                raise ProviderDownError(
                    "Vast.ai repeats a page of its instance list, so the list cannot be trusted.", provider=self.name
                )
            seen_tokens.add(token)
            params["after_token"] = token

    def instance(self, instance_id: str) -> Instance | None:
        """Return one instance; a destroyed one is ``instances: null`` or a 404, and both occur."""
        try:
            answer = self._api.call("GET", f"/api/v0/instances/{instance_id}/", params={"owner": "me"})
        except NotFoundError:
            return None
        if "instances" not in answer:
            # Such an answer confirms no end, and a destroy that believes it would leave something billing.
            raise ProviderDownError(
                f"Vast.ai's answer about instance {instance_id} does not say whether it exists.", provider=self.name
            )
        rows = answer["instances"]
        candidates = [rows] if isinstance(rows, dict) else dicts(rows)
        for row in candidates:
            if str(row.get("id")) == instance_id:
                return self._instance(row)
        return None

    def _instance(self, row: Mapping[str, object]) -> Instance:
        label = text(row.get("label"))
        ref = RunRef.from_label(label)
        host, port = _address(row)
        return Instance(
            provider=self.name,
            id=str(row["id"]),
            label=label,
            ref=ref,
            state=_state(row, ref, label),
            status_text=_status_text(row),
            region=text(row.get("geolocation")),
            gpu_name=gpus.normalise(text(row.get("gpu_name"))),
            gpu_count=number(row.get("num_gpus"), 1.0),
            gpu_ram_gb=round(number(row.get("gpu_ram")) / 1000, 1),
            market="interruptible" if row.get("is_bid") else "on-demand",
            price_per_hour_usd=number(row.get("dph_total")),
            ssh_host=host,
            ssh_port=port,
            created_at=optional_number(row.get("start_date")),
            machine_id=text(row.get("machine_id")),
            emulated=self.emulated or bool(row.get("emulated")),
            sandbox=self.sandbox,
            idle_price_per_hour_usd=_disk_price(row),
        )

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """End the rental and its disk, and come back when the provider confirms it."""

        def send() -> None:
            self._api.call("DELETE", f"/api/v0/instances/{instance_id}/", repeatable=True)

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        return [PlannedCall("DELETE", self._api.url(f"/api/v0/instances/{instance_id}/"))]

    def start(self, instance_id: str) -> None:
        """Start a stopped instance.

        When its GPU is let to somebody else Vast queues the start, which may then happen (and bill) hours later. That
        is taken back, and :class:`NoCapacityError` is raised. The mark of our own stop goes first: if the start is
        lost after it, the instance reads as preempted, never as stopped by us.
        """
        self._mark(instance_id, stopped=False)
        try:
            self._put(instance_id, {"state": "running"})
        except NoCapacityError:
            self._mark(instance_id, stopped=True)
            self._put(instance_id, {"state": "stopped"})
            raise

    def stop(self, instance_id: str) -> None:
        """Stop an instance; its disk keeps billing. The label is marked first, so that this reads as our own stop."""
        self._mark(instance_id, stopped=True)
        self._put(instance_id, {"state": "stopped"})

    def reboot(self, instance_id: str) -> None:
        """Restart the container; its GPU is kept."""
        # Twice the same is no more than once, as long as nobody has begun anything on it.
        self._api.call("PUT", f"/api/v0/instances/reboot/{instance_id}/", repeatable=True)

    def change_bid(self, instance_id: str, bid_per_hour_usd: float) -> None:
        """Bid another price; one above the others' brings an instance back that was outbid."""
        instance = self.instance(instance_id)
        if instance is None:
            raise NotFoundError(f"Vast.ai has no instance {instance_id}.", provider=self.name)
        if instance.market != "interruptible":
            raise UsageError(
                f"Vast.ai instance {instance_id} is on demand, and nothing is bid for it: its price stays what it was."
            )
        most = _MOST_BID_USD * max(1.0, instance.gpu_count)
        if not _LEAST_BID_USD <= bid_per_hour_usd <= most:
            raise UsageError(f"bid={bid_per_hour_usd:g}: Vast.ai takes ${_LEAST_BID_USD:g} to ${most:g} an hour.")
        body = {"client_id": "me", "price": bid_per_hour_usd}
        self._api.call("PUT", f"/api/v0/instances/bid_price/{instance_id}/", body=body, repeatable=True)

    def logs(self, instance_id: str, lines: int) -> list[str]:
        """Return the container's log, which Vast puts into a file at another place first."""
        path = f"/api/v0/instances/request_logs/{instance_id}/"
        answer = self._api.call("PUT", path, body={"tail": str(lines)}, repeatable=True)
        address = text(answer.get("result_url"))
        if not address:
            raise ProviderDownError(
                "Vast.ai took the request for logs and named no place for them.", provider=self.name
            )
        # The place is somebody else's, so the key does not go there, and it answers 404 until the file is there.
        for _ in range(_LOG_LOOKS):
            found = fetch_text(address)
            if found is not None:
                return found.splitlines()[-lines:]
            self._waits.sleep(_LOG_LOOK_EVERY_S)
        raise ProviderDownError(
            f"Vast.ai had no log of instance {instance_id} after {_LOG_LOOKS * _LOG_LOOK_EVERY_S:.0f} s.",
            provider=self.name,
        )

    def add_ssh_key(self, instance_id: str, public_key: str) -> None:
        """Add the key to the instance's own ones, which its host takes over at once."""
        # Twice the same key does no harm.
        self._api.call("POST", f"/api/v0/instances/{instance_id}/ssh/", body={"ssh_key": public_key}, repeatable=True)

    def credit_usd(self) -> float | None:
        """Return the account's credit."""
        return optional_number(self._api.call("GET", "/api/v0/users/current").get("credit"))

    def _mark(self, instance_id: str, *, stopped: bool) -> None:
        instance = self.instance(instance_id)
        if instance is None:
            raise NotFoundError(f"Vast.ai has no instance {instance_id}.", provider=self.name)
        if instance.ref is not None:
            self._put(instance_id, {"label": instance.ref.label + (STOPPED_MARK if stopped else "")})

    def _put(self, instance_id: str, body: Mapping[str, object]) -> None:
        # Setting a state or a label twice is the same as once.
        self._api.call("PUT", f"/api/v0/instances/{instance_id}/", body=body, repeatable=True)


def _conditions(query: Query) -> dict[str, object]:
    """Return the part of the query that Vast filters itself, as sharp as the market's own conditions or wider.

    Of alternatives the least of each number is asked for. CUDA, driver, regions and countries stay with the market: a
    CUDA condition silently hides some GPU types at Vast.
    """
    choices = query.choices
    capabilities = [_hundredfold(choice.compute_capability) for choice in choices]

    def least(name: str, factor: float = 1.0) -> float | None:
        said = [getattr(choice, name) for choice in choices]
        return None if None in said else min(said) * factor

    asked = {
        "num_gpus": least("gpu_count"),
        "gpu_ram": least("gpu_ram_gb", 1000),
        "cpu_cores_effective": least("cpu_cores"),
        "disk_space": query.disk_gb,
        "reliability2": query.reliability,
        "compute_cap": min(capabilities, default=None) if all(capabilities) else None,
        "inet_up": query.internet_mbit_s,
        "inet_down": query.internet_mbit_s,
    }
    conditions: dict[str, object] = {name: {"gte": value} for name, value in asked.items() if value is not None}
    if query.static_ip:
        conditions["static_ip"] = {"eq": True}
    if query.data_center:
        conditions["hosting_type"] = {"eq": 1}
    return conditions


def _hundredfold(capability: str | None) -> int:
    """Return ``8.6`` as 860, as Vast has it; 0 for none."""
    major, _, minor = (capability or "0").partition(".")
    return int(major) * 100 + int(minor[:1] or 0) * 10


def _names(query: Query) -> dict[str, object]:
    """Return the condition on the GPU's name in all of Vast's spellings of what will do; none where any will."""
    if not all(choice.gpu_names for choice in query.choices):
        return {}
    wanted = [gpus.normalise(name) for choice in query.choices for name in choice.gpu_names]
    spelled = [known for known in GPU_NAMES if gpus.matches_any(wanted, known)]
    return {"gpu_name": {"in": list(dict.fromkeys([*spelled, *wanted]))}}


def _create_body(offer: Offer, spec: CreateSpec) -> dict[str, object]:
    """Return the create request's body.

    Raises :class:`UsageError` for what Vast would cut off or mangle.
    """
    environment = {**spec.environment, "GPUYARD_RUN": spec.ref.run}
    for name, value in environment.items():
        if _UNSAFE_VALUE.search(value):
            raise UsageError(
                f"The variable {name} holds a space, a quote or another character that Vast.ai mangles; "
                "encode it, or let the workload set it on the box."
            )
    onstart = f"{_NO_TMUX}\n{START_AGAIN}\n{spec.bootstrap}"
    if len(onstart.encode()) > _ONSTART_LIMIT:
        raise UsageError(f"The bootstrap script is {len(onstart.encode())} bytes long; Vast.ai takes {_ONSTART_LIMIT}.")
    if len(json.dumps(environment).encode()) > _ENV_LIMIT:
        raise UsageError(f"The instance's environment is larger than the {_ENV_LIMIT} bytes that Vast.ai takes.")
    login = spec.image_login
    return {
        "client_id": "me",
        "image": spec.image or DEFAULT_IMAGE,
        "env": environment,
        "disk": max(LEAST_DISK_GB, spec.disk_gb),
        "label": spec.ref.label,
        "onstart": onstart,
        # Direct SSH where the host has ports, and the proxy in any case.
        "runtype": "ssh_direc ssh_proxy",
        "target_state": "running",
        "cancel_unavail": True,
        "price": _bid(offer, spec),
        **({"image_login": f"-u {login.user} -p {login.password} {login.registry}"} if login else {}),
    }


def _bid(offer: Offer, spec: CreateSpec) -> float | None:
    """Return the bid in dollars an hour, without the disk; ``None`` for on-demand.

    Rounded up, for a bid that is a fraction of a cent too low gets a stopped instance that bills its disk.
    """
    if offer.market == "on-demand":
        return None
    bid = spec.bid_per_hour_usd
    if bid is None:
        bid = offer.price_per_hour_usd - offer.disk_price_per_hour_usd
    return max(0.001, math.ceil(round(bid * 10_000, 4)) / 10_000)


def _disk_price(row: Mapping[str, object]) -> float | None:
    """Return what the instance's disk costs an hour, which is all that a stopped one costs; ``None``: not said."""
    price = optional_number(row.get("storage_total_cost"))
    by_gb, size = optional_number(row.get("storage_cost")), optional_number(row.get("disk_space"))
    if price is None and by_gb is not None and size is not None:
        price = by_gb * size / HOURS_PER_MONTH
    return price


def _address(row: Mapping[str, object]) -> tuple[str, int]:
    """Return where SSH is reached: directly where port 22 is mapped, else Vast's proxy, else ``("", 22)``."""
    public = text(row.get("public_ipaddr"))  # comes with a trailing newline at times
    ports = row.get("ports")
    mapped = dicts(ports.get("22/tcp")) if isinstance(ports, dict) else []
    if public and mapped and text(mapped[0].get("HostPort")).isdigit():
        return public, int(text(mapped[0].get("HostPort")))
    host = text(row.get("ssh_host"))
    port = optional_number(row.get("ssh_port"))
    if not host or port is None:
        return "", 22
    return host, int(port) + (1 if "jupyter" in text(row.get("image_runtype")) else 0)


def _state(row: Mapping[str, object], ref: RunRef | None, label: str) -> State:
    actual = text(row.get("actual_status"))
    intended = text(row.get("intended_status"))
    if text(row.get("cur_state")) == "stopped" or (intended == "stopped" and actual in ("exited", "stopped")):
        ours = label.endswith(STOPPED_MARK) if ref else intended == "stopped"
        return State.STOPPED if ours else State.PREEMPTED
    if actual == "running":
        return State.RUNNING
    message = text(row.get("status_msg")).lower()
    if actual in ("", "created", "loading") and any(sign in message for sign in _BROKEN):
        return State.FAILED
    if actual in ("", "created", "loading", "scheduling", "rebooting", "recycling"):
        return State.PENDING
    # "exited" may be stale for minutes after a start; "offline" and "unknown" are the host's trouble and may pass.
    return State.UNKNOWN


def _status_text(row: Mapping[str, object]) -> str:
    parts: Iterable[str] = (text(row.get("actual_status")) or "scheduling", text(row.get("status_msg")))
    return ": ".join(part for part in parts if part)
