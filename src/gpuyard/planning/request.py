"""What the user asked for, before anything is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gpuyard.box.stages.choice import Choice
from gpuyard.config import BucketSettings, SshKey
from gpuyard.geography import Spot
from gpuyard.providers.base import Provider

Mode = Literal["launch", "resume"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. ``None``: nothing was asked for."""

    mode: Mode = "launch"
    workload: str | None = None
    run: str | None = None
    provider: str | None = None
    market: str | None = None
    max_price_per_hour_usd: float | None = None
    offer: str | None = None  # the id of the one offer to take
    move: bool = False  # whether a run that has a machine goes on with another one
    follow: bool = False  # whether somebody stays, who can move the run from one machine to another
    shutdown: bool = False  # whether the machine is to be destroyed when the run has ended
    profiles: Sequence[str] = ()
    overrides: str | Sequence[str] = ()
    iterations: int | None = None
    choice: Choice = field(default_factory=Choice)  # which stages are to run
    restore: int | None = None  # the number of the checkpoint to go on from, in place of the newest one
    update: bool = False  # whether a run that has begun goes on with the workload and source that are here
    lease_hours: float | None = None  # for how long it is rented from now on; 0: without end
    budget_usd: float | None = None  # what all machines of the run may cost together; 0: no limit
    # What the machine has to offer, in place of what the workload says: fields of Query by name.
    conditions: Mapping[str, Any] = field(default_factory=dict)
    near: Spot | None = None  # where the bucket lies; None: not known

    @property
    def options(self) -> dict[str, Any]:
        """What the command says in place of the workload, by the names of :func:`gpuyard.workload.resolve`."""
        others = {
            "market": self.market,
            "max_price_per_hour": self.max_price_per_hour_usd,
            "iterations": self.iterations,
        }
        needs = {"prefer" if name == "rank" else name: value for name, value in self.conditions.items()}
        return {**needs, **{name: value for name, value in others.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Connections:
    """What a plan is made with: connected, and nothing sent yet."""

    clouds: Sequence[Provider]  # where a machine may be rented
    everywhere: Sequence[Provider]  # where the run may have a machine: all of them
    bucket: BucketSettings
    key: SshKey
    mirrors: Mapping[str, str] = field(default_factory=dict)  # where a machine gets toolchains from, by toolchain
