"""What a workload says of the hardware: CUDA, and what a machine has to show before it is believed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from gpuyard.workload.values import Positive, RelativePath, Section, Switch, Version, show


def _choice(*choices: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value in choices:
            return value
        raise ValueError(f"must be one of {', '.join(choices)}, not {show(value)}")

    return BeforeValidator(check)


class Cuda(Section):
    """CUDA on the machine: its toolkit, and on a machine of its own the driver."""

    version: Version | None = None
    """The version, in quotes; any that begins with these numbers will do."""
    minimum: Version | None = None
    """The oldest version that will do, in quotes."""
    maximum: Version | None = None
    """The newest version that will do, in quotes."""
    source: Annotated[
        Literal["auto", "repository", "distribution", "wheels", "image"],
        _choice("auto", "repository", "distribution", "wheels", "image"),
    ] = "auto"
    """Where the toolkit comes from: NVIDIA's ``repository``, the ``distribution``, NVIDIA's ``wheels`` or the
    ``image``. ``auto`` takes what is there where it fits, else the first of these that has it."""
    driver: Annotated[Literal["auto", "keep"], _choice("auto", "keep")] = "auto"
    """Whether a driver may be installed (``auto``) on a machine that is no container, or not (``keep``)."""

    @model_validator(mode="after")
    def _one_wish(self) -> Cuda:
        if self.version and (self.minimum or self.maximum):
            raise ValueError("must have either version or minimum and maximum")
        if self.minimum and self.maximum and _numbers(self.minimum) > _numbers(self.maximum):
            raise ValueError(f"must have a maximum that is not below the minimum {self.minimum}, not {self.maximum}")
        return self


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class Health(Section):
    """What a machine has to show: right after it was rented, and once more when it is in shape."""

    required: Switch = True
    """Whether a new machine that fails is given back, and the next offer taken. Else it is told, and kept."""
    gpu_bandwidth_gb_s: Positive | None = None
    """The least that each GPU's memory reads and writes when it is copied, in gigabytes a second. Default: 50."""
    disk_mb_s: Positive | None = None
    """The least with which new data reaches the disk, in megabytes a second. Default: 10."""
    disk_free_gb: Positive | None = None
    """The least that is free on the disk, in gigabytes. Default: 1."""
    network_mb_s: Positive | None = None
    """The least to the bucket and back, in megabytes a second. Default: 1."""
    data: list[RelativePath] = []
    """Paths or patterns of the repository that have to be there, and hold something, when the machine is in shape."""
    torch: Switch = False
    """Whether the environment's torch has to see every GPU and compute on it, with several also over NCCL."""

    @property
    def least(self) -> dict[str, float]:
        """The thresholds that the workload names."""
        named = {name: getattr(self, name) for name in DEFAULTS}
        return {name: value for name, value in named.items() if value is not None}


DEFAULTS = {"gpu_bandwidth_gb_s": 50.0, "disk_mb_s": 10.0, "disk_free_gb": 1.0, "network_mb_s": 1.0}
"""What a sound machine passes by far."""
