"""The one interface behind which every cloud stands.

Five verbs are at its centre: discover offers, provision an instance, attach storage, run a bootstrap, destroy. A
provider knows nothing of workloads; it gets a :class:`Query` or a :class:`CreateSpec` and gives back neutral records.
Facts about each API: ``docs/reference``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from gpuyard.errors import UnsupportedError
from gpuyard.formats.label import RunRef
from gpuyard.geography import Spot
from gpuyard.registry import Login

if TYPE_CHECKING:
    from gpuyard.providers.resources import Kind, Shelf

Market = Literal["on-demand", "interruptible"]
Rank = Literal["price", "value", "distance", "regions"]
"""What decides among the offers that fit: the price with everything, the price of what a GPU does, the distance to the
bucket, or the order in which the regions were named; what is equal in that goes by the price."""
Progress = Callable[[str], None]
"""Receives one human-readable line whenever something worth telling happened during a long call."""


class State(enum.StrEnum):
    """What an instance is doing, in the same words for every provider."""

    PENDING = "pending"  # rented, not reachable yet
    RUNNING = "running"
    STOPPED = "stopped"  # stopped by us, still billing something
    PREEMPTED = "preempted"  # taken away from us, may still bill its disk
    FAILED = "failed"  # will never become running
    UNKNOWN = "unknown"  # the provider does not say


@dataclass(frozen=True, slots=True)
class Query:
    """What the machine has to offer. Conditions left at ``None`` or empty are not asked for."""

    gpu_count: float | None = None
    gpu_ram_gb: float | None = None  # per GPU
    most_gpu_ram_gb: float | None = None  # per GPU
    gpu_names: Sequence[str] = ()  # any of these, in normalised spelling ("A100 SXM4", "RTX 4090")
    cpu_cores: float | None = None
    ram_gb: float | None = None
    disk_gb: float = 20.0
    cuda: str | None = None  # lowest CUDA version the driver has to support, "12.4"
    driver: str | None = None  # lowest version of the driver, "535.86"
    compute_capability: str | None = None  # lowest one of the GPU, "8.0"
    reliability: float | None = None  # 0..1, where the provider publishes one
    internet_mbit_s: float | None = None  # in the slower direction, 10^6 bits a second
    static_ip: bool = False  # whether the machine's address has to stay for as long as it is rented
    data_center: bool = False  # whether it has to stand in one
    regions: Sequence[str] = ()
    countries: Sequence[str] = ()  # two letters each, as ISO 3166 has them
    market: Market | Literal["any"] = "any"
    max_price_per_hour_usd: float | None = None
    bid_times: float = 1.0  # what is bid for an interruptible machine, as a multiple of the least that is accepted
    bid_at_most_usd: float | None = None  # an hour, without the disk
    rank: Rank = "price"
    traffic_gb_per_hour: float = 0.0  # what the workload itself sends and fetches, 10^9 bytes
    near: Spot | None = None  # where the bucket lies; None: not known
    alternatives: tuple[Query, ...] = ()  # what will do in place of this, each after the one before

    @property
    def choices(self) -> tuple[Query, ...]:
        """The query itself without its alternatives, and then these: what will do, best first."""
        return (replace(self, alternatives=()), *self.alternatives)


@dataclass(frozen=True, slots=True)
class Offer:
    """Something rentable now. Prices are for the whole machine."""

    provider: str
    id: str
    gpu_name: str
    gpu_count: float
    gpu_ram_gb: float  # per GPU
    cpu_cores: float
    ram_gb: float
    disk_gb: float  # the most that can be had
    region: str
    market: Market
    price_per_hour_usd: float  # GPU plus the disk that the query asked for; no traffic
    disk_price_per_hour_usd: float = 0.0  # the part of it that is disk (kept billing while stopped)
    traffic_price_per_gb_usd: float = 0.0
    reliability: float | None = None
    cuda: str | None = None  # newest CUDA the driver supports; None: not said
    machine_id: str = ""  # the physical host where the provider names it, to avoid one just lost
    emulated: bool = False
    dlperf: float | None = None  # how fast the whole machine is by Vast.ai's measure; None: not said
    turn: float = 0.0  # whatever it costs, it is taken after those with less: its price or stock is not sure
    driver: str | None = None  # None: not said, as for all that follows
    compute_capability: str | None = None
    internet_mbit_s: float | None = None  # in the slower direction
    static_ip: bool | None = None
    data_center: bool | None = None
    least_bid_usd: float | None = None  # an hour without the disk, the lowest that is accepted; None: nothing is bid
    volume_gb: float | None = None  # the largest volume that its host has room for; None: not said
    volume_usd_per_gb_month: float | None = None  # of a volume on its host
    volume_price_per_hour_usd: float = 0.0  # of the volume that the run has beside it; in no other price

    @property
    def bid_usd(self) -> float:
        """What is bid for it an hour, without the disk."""
        return self.price_per_hour_usd - self.disk_price_per_hour_usd

    @property
    def is_one_machine(self) -> bool:
        """Whether it stands for one physical machine, so that only one can rent it; else it can be had repeatedly."""
        return bool(self.machine_id)


@dataclass(frozen=True, slots=True)
class CreateSpec:
    """How to rent an offer."""

    ref: RunRef
    ssh_public_key: str
    disk_gb: float = 20.0
    image: str = ""  # "": the provider's default
    limited_user: bool = False  # log in as a user with sudo, where the provider makes one; else as root
    image_login: Login | None = None  # with which the provider's host pulls it; None: it needs none
    market: Market = "on-demand"
    bid_per_hour_usd: float | None = None  # interruptible only; None: the offer's own price
    bootstrap: str = ""  # a shell script that the provider runs at first boot; never holds a secret
    environment: Mapping[str, str] = field(default_factory=dict)  # not secret
    mounts: tuple[tuple[str, str], ...] = ()  # volumes that it is created with: a resource's id, and where it lies
    known_ids: frozenset[str] = frozenset()  # this run's instances from before: never taken for the new one
    before_request: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    """Called each time right before a create request is sent."""


OWN = "own"
"""The provider of the boxes that belong to the user, which cost nothing and are never ended."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a box of the user's own is reached, where that is not as a rented one, and what it is called."""

    name: str  # in the user's inventory
    private_key: str = ""  # its path; "": ssh offers what it always offers
    options: tuple[tuple[str, str], ...] = ()  # further ones of ssh, by name: ProxyJump and the like


@dataclass(frozen=True, slots=True)
class Instance:
    """A rented machine, or a box of the user's own (``way``) that a run has claimed."""

    provider: str
    id: str
    label: str  # the provider's own label, verbatim
    ref: RunRef | None  # None: not rented by gpuyard
    state: State
    status_text: str  # the provider's own words
    region: str
    gpu_name: str
    gpu_count: float
    gpu_ram_gb: float
    market: Market
    price_per_hour_usd: float
    ssh_host: str = ""  # "": not known yet
    ssh_port: int = 22
    ssh_user: str = "root"
    created_at: float | None = None  # seconds since 1970
    machine_id: str = ""
    emulated: bool = False
    sandbox: str = ""  # the name of the sandbox that emulates it; "": a real one
    idle_price_per_hour_usd: float | None = None  # while it does not run; None: the same as while it does
    way: Way | None = None  # how an own box is reached; None: it is rented

    @property
    def place(self) -> tuple[str, str]:
        """Its provider and its id there: what makes it the same machine."""
        return self.provider, self.id

    @property
    def runs(self) -> bool:
        """Whether it is up, so that the whole price is asked for it."""
        return self.state is State.RUNNING

    @property
    def alive(self) -> bool:
        """Whether it still is its node's machine, stopped or not; one that was taken away or failed is a leftover."""
        return self.state not in (State.PREEMPTED, State.FAILED)

    @property
    def idle(self) -> bool:
        """Whether it does not run and is not about to."""
        return self.state in (State.STOPPED, State.PREEMPTED, State.FAILED)

    @property
    def idle_price(self) -> float:
        """What it costs an hour while it does not run."""
        return self.price_per_hour_usd if self.idle_price_per_hour_usd is None else self.idle_price_per_hour_usd

    @property
    def silent(self) -> bool:
        """Whether it is an own box that does not answer: switched off, say, and still its run's."""
        return self.way is not None and self.state is State.UNKNOWN

    @property
    def cost_now_per_hour_usd(self) -> float:
        """What it costs an hour as it is now."""
        return self.idle_price if self.idle else self.price_per_hour_usd

    @property
    def host_key_alias(self) -> str:
        """The name under which its SSH host key is pinned: belongs to the instance, not to an address.

        An own box has the same one for all runs.
        """
        return alias_prefix(self.provider, self.sandbox) + (self.way.name if self.way else self.id)


def alias_prefix(provider: str, sandbox: str) -> str:
    """Return how the aliases of all of a provider's instances begin."""
    return f"{sandbox_prefix(sandbox)}{provider}-" if sandbox else f"gpuyard-{provider}-"


def sandbox_prefix(sandbox: str) -> str:
    """Return how the aliases of a sandbox's instances begin: a later sandbox may give their ids to other machines."""
    return f"gpuyard-sandbox-{sandbox}-"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """An API call that would change something: what ``--check`` shows instead of making it."""

    method: str
    url: str
    body: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """What the key of an account may do, in the provider's own words, and the right without which it may not rent."""

    held: tuple[str, ...]
    needed: str

    @property
    def can_rent(self) -> bool:
        """Whether the key may rent, as far as the provider says it."""
        return self.needed in self.held


class Provider(ABC):
    """A cloud. Implementations raise only the errors of :mod:`gpuyard.errors`."""

    name: ClassVar[str]
    title: ClassVar[str]  # as people write it, "Vast.ai"
    console_url: ClassVar[str]  # where a person sees and ends what is rented
    preinstalled: ClassVar[str] = ""  # what is on a machine that it rents out, in a few words
    remark: ClassVar[str] = ""  # what to know before renting there, in a few words
    prepaid: ClassVar[bool] = False  # whether nothing can be rented without credit
    sandbox: str = ""  # the name of the sandbox that emulates it; "": a real one

    @abstractmethod
    def offers(self, query: Query) -> list[Offer]:
        """Return what is rentable now, wider than ``query`` where the API cannot filter (the market filters again)."""

    @abstractmethod
    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent ``offer``. The label goes on with the request, and the request is never repeated blindly.

        After a lost or ambiguous answer the instance is looked up by its label; an error that carries an instance id
        has that instance destroyed before it is raised. Raises :class:`NoCapacityError` when the next offer may be
        tried.
        """

    @abstractmethod
    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the writing calls that :meth:`create` would make, without making any."""

    @abstractmethod
    def instances(self) -> list[Instance]:
        """Return every instance of the account, ours or not, over all pages."""

    @abstractmethod
    def instance(self, instance_id: str) -> Instance | None:
        """Return one instance, or ``None`` when the provider says it does not exist."""

    @abstractmethod
    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """End the rental and come back only when the provider confirms it is gone; already gone is success.

        Raises :class:`LeakError`, naming the id, when it could not be confirmed.
        """

    @abstractmethod
    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the writing calls that :meth:`destroy` would make."""

    @abstractmethod
    def credit_usd(self) -> float | None:
        """Return the account's remaining credit in dollars, ``None`` where the provider does not say."""

    def rights(self) -> Rights | None:
        """Return what the key may do, ``None`` where the provider does not say."""
        return None

    def shelves(self) -> Mapping[Kind, Shelf]:
        """Return where the account keeps what is no instance, by kind; only kinds that the cloud knows."""
        return {}

    def refuse_mounts(self, spec: CreateSpec) -> None:
        """Say, before anything is sent, that no machine here is created with a volume."""
        if spec.mounts:
            raise UnsupportedError(
                f"No machine of {self.title} is created with a volume: leave it out, or attach it to one that runs.",
                provider=self.name,
            )

    def ssh_keys(self) -> list[str]:
        """Return the public SSH keys that the account holds, each as ``type body name``."""
        return []

    def add_ssh_key(self, instance_id: str, public_key: str) -> None:
        """Let a public key, as ``type body name``, into an instance that lives; one that it knows is no error."""
        raise UnsupportedError(f"{self.title} cannot add an SSH key to an instance that lives.", provider=self.name)

    def start(self, instance_id: str) -> None:
        """Start a stopped instance."""
        raise UnsupportedError(f"{self.title} cannot start a stopped instance.", provider=self.name)

    def reboot(self, instance_id: str) -> None:
        """Restart what runs on an instance; what is on its disk stays. It comes back when that is asked for."""
        raise UnsupportedError(f"{self.title} cannot reboot an instance.", provider=self.name)

    def change_bid(self, instance_id: str, bid_per_hour_usd: float) -> None:
        """Bid another price for an interruptible instance, in US dollars an hour without the disk."""
        raise UnsupportedError(f"{self.title} takes no bids.", provider=self.name)

    def logs(self, instance_id: str, lines: int) -> list[str]:
        """Return the last ``lines`` that the instance's own program has printed, as the provider keeps them."""
        raise UnsupportedError(f"{self.title} keeps no logs of its instances.", provider=self.name)

    def stop(self, instance_id: str) -> None:
        """Stop an instance; what it still costs then is the provider's business."""
        raise UnsupportedError(f"{self.title} cannot stop an instance without destroying it.", provider=self.name)
