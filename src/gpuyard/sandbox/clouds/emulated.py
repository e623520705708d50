"""What the sandbox knows of one cloud that it emulates. Everything else in the sandbox is the same for all of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from starlette.responses import Response
from starlette.types import ASGIApp

from gpuyard.sandbox.model import Json, ProviderName, Rental, World

if TYPE_CHECKING:
    from gpuyard.sandbox.cloud import Cloud


@dataclass(frozen=True, slots=True)
class Boot:
    """What a rental's container is given at its first start."""

    gpu: Json
    environment: Mapping[str, str] = field(default_factory=dict)
    onstart: str = ""
    user_data: bytes = b""


class EmulatedCloud(ABC):
    """One cloud: where its API is and how it words its failures, and what its machines are."""

    name: ClassVar[ProviderName]
    path: ClassVar[str]
    """Below which its API is."""
    base_path: ClassVar[str]
    """What its clients are given as an address, below the server's; they add the rest themselves."""
    outcomes: ClassVar[tuple[str, ...]]
    """How a preemption shows; the first is the default."""
    bills_gpus: ClassVar[bool] = False
    """Whether the GPUs have a price of their own, which is asked for only while a machine runs."""
    gives_own_keys: ClassVar[bool] = False
    """Whether a machine has a key of its own, with which it can end itself."""
    creates: ClassVar[re.Pattern[str]]
    """The requests that rent, as ``METHOD /path`` below its API."""
    destroys: ClassVar[re.Pattern[str]]
    """Those that end something."""
    reads: ClassVar[re.Pattern[str]] = re.compile("GET ")
    """Those that change nothing."""

    def place(self, request: str) -> str:
        """Return which of :data:`gpuyard.sandbox.faults.Place` a request is."""
        for name, pattern in (("create", self.creates), ("destroy", self.destroys), ("read", self.reads)):
            if pattern.match(request):
                return name
        return "write"

    @abstractmethod
    def app(self, cloud: Cloud) -> ASGIApp:
        """Return its API, as it is below :attr:`path`."""

    @abstractmethod
    def throttled(self) -> Response:
        """Return its answer to requests that come too often."""

    @abstractmethod
    def broken(self) -> Response:
        """Return its answer when it is out of order."""

    @abstractmethod
    def refusal(self, status: int, text: str) -> Response:
        """Return its answer to a request that no route takes (404, 405, 501) or that is too large (413)."""

    @abstractmethod
    def boot(self, rental: Rental, own_key: str = "") -> Boot:
        """Return what a rental's box is given, made from what the create call said.

        ``own_key`` is the key that the instance itself has, where its cloud gives it one.
        Nothing but the rental is needed for it, so that a box whose making was interrupted can be made once more.
        """

    @abstractmethod
    def state(self, rental: Rental, fraction: float) -> str:
        """Return a rental's state in its own words; ``fraction`` says how far a boot is."""

    def gpu_price(self, rental: Rental) -> float:
        """Return what a rental's GPUs cost an hour, where they have a price of their own."""
        return 0.0

    def ended(self, rental: Rental, world: World) -> None:  # noqa: B027  # most markets take no note of it
        """Note what a rental's end means for the market."""
