"""What the user asked for, before anything is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gpuyard.box.stages.choice import Choice

Mode = Literal["launch", "resume"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. ``None`` is: not said; only ``bucket`` tells it from ``""``, which is: no bucket."""

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
    profiles: Sequence[str] = ()
    overrides: str | Sequence[str] = ()
    iterations: int | None = None
    choice: Choice = field(default_factory=Choice)  # which stages are to run
    restore: int | None = None  # the number of the checkpoint to go on from, in place of the newest one
    # What the machine has to offer, in place of what the workload says: fields of Query by name.
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What the command says in place of the workload, by the names of :func:`gpuyard.workload.resolve`."""
        others = {
            "market": self.market,
            "max_price_per_hour": self.max_price_per_hour_usd,
            "iterations": self.iterations,
        }
        return {**self.conditions, **{name: value for name, value in others.items() if value is not None}}
