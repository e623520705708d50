"""What a workload says of the hardware: CUDA, and what a machine has to show before it is believed."""

from __future__ import annotations

from pydantic import BeforeValidator

from gpuyard.workload.values import Positive, RelativePath, Section, Switch, show


def _choice(*choices: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value in choices:
            return value
        raise ValueError(f"must be one of {', '.join(choices)}, not {show(value)}")

    return BeforeValidator(check)


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
