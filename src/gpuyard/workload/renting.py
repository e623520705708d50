"""What a workload says of renting: what will do in place of its needs, what is bid, and when to give up."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from gpuyard.workload.values import Positive, PositiveCount, Section, SomeWords, show


def _country(value: object) -> str:
    if isinstance(value, str) and len(value.strip()) == 2 and value.strip().isalpha():
        return value.strip().upper()
    # YAML reads an unquoted NO, Norway, as false.
    hint = "; put it in quotes" if isinstance(value, bool) else ""
    raise ValueError(f"must be a country of two letters, such as 'SE', not {show(value)}{hint}")


def _times(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 100:
        return float(value)
    raise ValueError(f"must be a number from 1 to 100, not {show(value)}")


def _capability(value: object) -> str:
    if isinstance(value, str) and _CAPABILITY.fullmatch(value.strip()):
        return value.strip()
    hint = "; put it in quotes" if isinstance(value, float) else ""
    raise ValueError(f"must be a compute capability such as '8.0', not {show(value)}{hint}")


_CAPABILITY = re.compile(r"\d+\.\d")

Country = Annotated[str, BeforeValidator(_country), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z]{2}$"})]
Capability = Annotated[
    str, BeforeValidator(_capability), WithJsonSchema({"type": "string", "pattern": f"^{_CAPABILITY.pattern}$"})
]
Times = Annotated[float, BeforeValidator(_times), WithJsonSchema({"type": "number", "minimum": 1, "maximum": 100})]


class Alternative(Section):
    """A machine that will do where none of the choices before it can be had. The rest is as in ``needs``."""

    gpu_count: Positive | None = None
    """How many GPUs."""
    gpu_ram_gb: Positive | None = None
    """The least memory of each GPU, in gigabytes."""
    most_gpu_ram_gb: Positive | None = None
    """The most memory of each GPU, in gigabytes."""
    gpu_names: list[SomeWords] | None = None
    """The models that will do."""
    compute_capability: Capability | None = None
    """The least compute capability, in quotes."""
    cpu_cores: Positive | None = None
    """The least number of CPU cores."""
    ram_gb: Positive | None = None
    """The least main memory, in gigabytes."""


class Bid(Section):
    """What is bid for an interruptible machine, where a cloud takes bids (Vast.ai)."""

    times: Times = 1.2
    """What is bid, as a multiple of the least bid that is accepted now."""
    at_most_usd_per_hour: Positive | None = None
    """The most that is bid, in US dollars an hour for the machine without its disk. An offer that asks for more is left
    out."""


class Limits(Section):
    """When to give up renting a machine: nothing is left rented then, and the error says what was tried."""

    attempts: PositiveCount = 8
    """How many offers are tried."""
    minutes: Positive | None = None
    """After how many minutes no further offer is tried. None: no such limit."""
    usd: Positive | None = None
    """After how many US dollars, paid for machines that went back, no further offer is tried. None: no such limit."""
    loading_minutes: Positive | None = None
    """How long a machine may take until its cloud calls it running; then it goes back, and the next offer is tried.
    None: 15."""
    ssh_minutes: Positive | None = None
    """How long it may then take until it answers over SSH. None: 15."""
