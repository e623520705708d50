"""What the user asked for, before anything is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gpuyard.config import BucketSettings, SshKey
from gpuyard.providers.base import Provider

Mode = Literal["launch", "resume"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. ``None`` is what was not said."""

    mode: Mode = "launch"
    workload: str | None = None
    run: str | None = None
    provider: str | None = None
    market: str | None = None
    max_price_per_hour_usd: float | None = None
    offer: str | None = None  # the id of the one offer to take
    shutdown: bool = False  # whether the machine is to be destroyed when the run has ended
    restore: int | None = None  # the number of the checkpoint to go on from, in place of the newest one
    # What the machine has to offer, in place of what the workload says: fields of Query by name.
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connections:
    """What a plan is made with: connected, and nothing sent yet."""

    clouds: Sequence[Provider]  # where a machine may be rented
    everywhere: Sequence[Provider]  # where the run may have a machine: all of them
    bucket: BucketSettings
    key: SshKey
    mirrors: Mapping[str, str] = field(default_factory=dict)  # where a machine gets toolchains from, by toolchain
