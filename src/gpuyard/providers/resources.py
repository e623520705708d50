"""What an account may hold beside instances, each kind with the same four things: list, create once, end surely, price.

A provider has one :class:`Shelf` for each kind that it knows. What is on it belongs to a run by its label, as an
instance does, or to the account as a whole (an SSH key, a stored variable), or is not ours.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from gpuyard.errors import UnsupportedError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Offer, PlannedCall, Progress


class Kind(enum.StrEnum):
    """The kinds of resources, in the same words for every provider."""

    VOLUME = "volume"  # a disk of its own: one machine at a time
    FILESYSTEM = "filesystem"  # shared by several machines
    SNAPSHOT = "snapshot"  # of a machine or of a volume
    SSH_KEY = "ssh-key"
    VARIABLE = "variable"  # stored by the provider, in the environment of each new machine
    FIREWALL = "firewall"
    REGISTRY_LOGIN = "registry-login"

    @property
    def bills(self) -> bool:
        """Whether it costs something for as long as it is there."""
        return self in (Kind.VOLUME, Kind.FILESYSTEM, Kind.SNAPSHOT)

    @property
    def attaches(self) -> bool:
        """Whether it is of use only while a machine has it."""
        return self in (Kind.VOLUME, Kind.FILESYSTEM)


@dataclass(frozen=True, slots=True)
class Resource:
    """Something in an account that is no instance."""

    provider: str
    kind: Kind
    id: str
    name: str  # the provider's own label or name, verbatim
    ref: RunRef | None = None  # whose it is; None: not labelled with a run
    ours: bool = False  # whether gpuyard made it, for a run or for the account
    region: str = ""
    size_gb: float | None = None
    price_per_month_usd: float | None = None  # 730 hours; None: the provider does not say, 0: it costs nothing
    attached_to: tuple[str, ...] = ()  # ids of instances
    ready: bool = True
    status_text: str = ""  # the provider's own words
    created_at: float | None = None  # seconds since 1970
    detail: Mapping[str, str] = field(default_factory=dict)  # what only this provider says; never a secret
    emulated: bool = False
    sandbox: str = ""  # the name of the sandbox that emulates it; "": a real one

    @property
    def place(self) -> tuple[str, str, str]:
        """Its provider, kind and id there: what makes it the same resource."""
        return self.provider, self.kind.value, self.id


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """What to make. What a kind does not know is refused in one sentence, before anything is sent."""

    name: str  # a volume's, a key's, a variable's
    ref: RunRef | None = None  # for a run; None: for the account
    region: str = ""
    size_gb: float | None = None
    source: str = ""  # the instance or volume that a snapshot is of
    content: str = field(default="", repr=False)  # a public key; a variable's secret value
    options: Mapping[str, str] = field(default_factory=dict)  # what only one provider knows: a volume's tier
    known_ids: frozenset[str] = frozenset()  # what was there before: never taken for the new one
    before_request: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


class Shelf(ABC):
    """All resources of one kind in one account. Implementations raise only the errors of :mod:`gpuyard.errors`."""

    kind: ClassVar[Kind]
    title: ClassVar[str] = ""  # the provider's own word for it, "block storage"; "": the kind's
    at_create: ClassVar[bool] = False  # whether a machine gets one only with the request that creates it
    elastic: ClassVar[bool] = False  # whether it takes what is written to it, so that it has no size of its own

    @abstractmethod
    def all(self) -> Sequence[Resource]:
        """Return every one in the account, ours or not, over all pages."""

    @abstractmethod
    def get(self, resource_id: str) -> Resource | None:
        """Return one, or ``None`` when the provider says that it does not exist."""

    @abstractmethod
    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Make one. Its label goes on with the request, and the request is never repeated blindly."""

    @abstractmethod
    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        """Return the writing calls that :meth:`create` would make."""

    @abstractmethod
    def destroy(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """End it, and come back only when the provider confirms that it is gone; already gone is success.

        Raises :class:`LeakError`, naming the id, when it could not be confirmed.
        """

    @abstractmethod
    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        """Return the writing calls that :meth:`destroy` would make."""

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        """Return what ``spec`` would cost a month of 730 hours, ``None`` where the provider does not say."""
        return None if self.kind.bills else 0.0

    def beside(self, spec: ResourceSpec, offer: Offer) -> ResourceSpec:
        """Return ``spec`` for a place where the machine of ``offer`` can have it."""
        return replace(spec, region=offer.region)

    def reaches(self, found: Resource, offer: Offer) -> bool:
        """Say whether the machine of ``offer`` could have what is there."""
        return found.region in ("", offer.region)

    def quotes(self, spec: ResourceSpec, offers: Sequence[Offer]) -> list[tuple[Offer, float | None]]:
        """Return those of ``offers`` whose machines can get a new one, each with its price a month in US dollars.

        ``None``: the provider does not say it.
        """
        return [(offer, self.price_per_month_usd(self.beside(spec, offer))) for offer in offers]

    def check_path(self, path: str) -> None:  # noqa: B027 - most clouds take every path
        """Raise :class:`gpuyard.errors.UsageError` for a path where no machine here can have one."""

    def attach(self, resource_id: str, instance_id: str, *, progress: Progress | None = None) -> None:
        """Give it to an instance that lives, and come back when it has it."""
        raise UnsupportedError(f"A {self.title or self.kind} cannot be attached to a machine that lives here.")

    def detach(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """Take it from its instance, and come back when that is done."""
        raise UnsupportedError(f"A {self.title or self.kind} cannot be taken from a machine that lives here.")

    def grow(self, resource_id: str, size_gb: float) -> None:
        """Make it larger."""
        raise UnsupportedError(f"A {self.title or self.kind} cannot grow here.")
