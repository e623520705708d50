"""What the user asked for, before anything is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["launch", "resume"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. ``None``: nothing was asked for. Of ``bucket``, ``""`` means that none is to be used."""

    mode: Mode = "launch"
    workload: str | None = None
    run: str | None = None
    provider: str | None = None
    sandbox: bool | None = None
    sandbox_state: str | None = None
    market: str | None = None
    max_price_per_hour_usd: float | None = None
    ssh_key: str | None = None
    bucket: str | None = None
    bucket_endpoint: str | None = None
    offer: str | None = None  # the id of the one offer to take
    shutdown: bool = False  # whether the machine is to be destroyed when the run has ended
    restore: int | None = None  # the number of the checkpoint to go on from, in place of the newest one
    # What the machine has to offer, in place of what the workload says: fields of Query by name.
    conditions: Mapping[str, Any] = field(default_factory=dict)
