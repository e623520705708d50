"""What a workload says of disks: the volumes of its machine, and how much room the run's files take."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema, field_validator

from gpuyard.box.stages.folders import why_not
from gpuyard.workload.values import AbsolutePath, Keep, Positive, Section, SomeWords, show

MACHINE_DISK = "disk"
"""The place of files that lie on the machine's own disk."""
_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,7}[a-z0-9])?")


def _volume_name(value: object) -> str:
    if not isinstance(value, str) or not _VOLUME.fullmatch(value) or value == MACHINE_DISK:
        raise ValueError(
            "must be a name of at most nine lower-case letters, digits and dashes, since the file system's label holds "
            f"it, and not {MACHINE_DISK}; not {show(value)}"
        )
    return value


VolumeName = Annotated[
    str, BeforeValidator(_volume_name), WithJsonSchema({"type": "string", "pattern": f"^{_VOLUME.pattern}$"})
]


class CloudVolume(Section):
    """A volume that a launch has from the cloud: made once, given to the machine, and paid for."""

    keep: bool = False
    """Whether it outlives the run: then it is the account's, and the next run of the workload gets it as it is. Without
    it, it belongs to the run and ends with it."""
    options: dict[str, SomeWords] = {}
    """What only one cloud knows, such as Vultr's ``block_type``; offers of the others are left out."""


class Volume(Section):
    """A disk of the machine besides the one with its system, made ready and mounted."""

    mount: AbsolutePath
    """Where it is mounted. In a container, where nothing can be mounted, a folder of the container's disk."""
    source: SomeWords = "attached"
    """Which disk: ``local-nvme``, all empty NVMe disks of the machine itself (several as RAID 0), whose content ends
    with the rental; ``attached``, the volume that the cloud has attached; else the serial number of one disk, or its
    name in ``/dev/disk/by-id``. A disk with anything on it is never formatted."""
    size_gb: Positive
    """The least size, in gigabytes."""
    file_system: Literal["ext4", "xfs"] = "ext4"
    """The file system that an empty disk gets."""
    cloud: CloudVolume | None = None
    """A launch makes it and gives it to the machine, at clouds that can. None: it is there."""

    @field_validator("mount")
    @classmethod
    def _own_folder(cls, mount: str) -> str:
        if why_not(mount, here=False):
            raise ValueError(
                f"must be a folder of its own, such as /mnt/cache, not {show(mount)}, which the system uses"
            )
        return posixpath.normpath(mount)


class Size(Section):
    """How much room something takes that the run writes or brings."""

    gb: Positive
    """How large one of it is, in gigabytes."""
    per: Literal["iteration", "run"] = "iteration"
    """Whether each iteration writes another one, or there is one for the whole run."""
    keep: Keep = None
    """How many are there at a time, where the run itself removes older ones: ``latest``, ``all``, or a number; 2 where
    the newest is written before the one before it goes. Default: all."""
    place: SomeWords | None = None
    """Where it lies: the name of a volume, or ``disk``, the machine's own. Default: where ``persist.root`` lies."""

    def count(self, iterations: int) -> int:
        """Return how many of it there are after so many iterations."""
        written = 1 if self.per == "run" else iterations
        if self.keep is None or self.keep == "all":
            return written
        return min(written, 1 if self.keep == "latest" else self.keep)


def check_volumes(volumes: Mapping[str, Volume], sizes: Mapping[str, Size], nodes: int) -> None:
    """Raise :class:`ValueError` for volumes that ``nodes`` cannot have together, and for a size in an unknown place."""
    from_cloud = [name for name, volume in volumes.items() if volume.cloud]
    if len(from_cloud) > 1:
        raise ValueError(f"has {' and '.join(from_cloud)} both with cloud, and a machine gets one volume of its cloud")
    for name in from_cloud:
        volume = volumes[name]
        if volume.source != "attached":
            raise ValueError(f"has volumes.{name} with cloud and source: {volume.source}; leave out source")
        if volume.cloud and volume.cloud.keep and nodes > 1:
            raise ValueError(f"has volumes.{name}.cloud with keep, and {nodes} nodes: only one machine can have it")
    for source in ("local-nvme", "attached"):
        same = [name for name, volume in volumes.items() if volume.source == source]
        if len(same) > 1:
            raise ValueError(
                f"has {' and '.join(same)} both with source: {source}, so it is not known which disk is meant: name "
                "one by its serial number"
            )
    for name, volume in volumes.items():
        for other, outer in volumes.items():
            if name != other and f"{volume.mount}/".startswith(f"{outer.mount}/"):
                raise ValueError(
                    f"has the volume {name} at {volume.mount}, which lies in that of {other}, {outer.mount}"
                )
    for name, size in sizes.items():
        if size.place is not None and size.place != MACHINE_DISK and size.place not in volumes:
            known = ", ".join([MACHINE_DISK, *volumes])
            raise ValueError(f"has sizes.{name} with place: {size.place}, which is none of: {known}")
