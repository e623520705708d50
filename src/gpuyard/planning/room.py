"""How much room a run's files take on its machine, and whether what is asked for is enough."""

from __future__ import annotations

from dataclasses import dataclass

from gpuyard import records
from gpuyard.errors import UsageError
from gpuyard.remedies import option
from gpuyard.workload import Workload
from gpuyard.workload.disks import MACHINE_DISK, Size


@dataclass(frozen=True, slots=True)
class Room:
    """What the files in one place take after all iterations, and what is asked for, in gigabytes (10^9 bytes)."""

    place: str
    needed_gb: float
    asked_gb: float
    last: int
    rows: tuple[tuple[str, str, str], ...]

    @property
    def title(self) -> str:
        """The place in words."""
        return "disk" if self.place == MACHINE_DISK else f"volume {self.place}"

    def summary(self) -> str:
        """Return both in one line of the plan."""
        words = f"{self.needed_gb:.4g} GB needed by iteration {self.last}, {self.asked_gb:.4g} GB asked."
        return f"{self.title[0].upper()}{self.title[1:]}: {words}"


def rooms(workload: Workload, disk_gb: float) -> list[Room]:
    """Return what the workload's ``sizes`` take, for each place in which something lies; the machine's disk first."""
    lying: dict[str, dict[str, Size]] = {MACHINE_DISK: {}}
    for name, size in workload.sizes.items():
        lying.setdefault(size.place or persistent_place(workload), {})[name] = size
    found = []
    for place, sizes in lying.items():
        if not sizes:
            continue
        counts = {name: size.count(workload.iterations) for name, size in sizes.items()}
        rows = [
            (name, f"{counts[name]} x {size.gb:g} GB", f"{counts[name] * size.gb:.4g} GB")
            for name, size in sizes.items()
        ]
        asked = disk_gb if place == MACHINE_DISK else workload.volumes[place].size_gb
        needed = sum(counts[name] * size.gb for name, size in sizes.items())
        found.append(Room(place, needed, asked, workload.iterations - 1, tuple(rows)))
    return found


def persistent_place(workload: Workload) -> str:
    """Return where the persistent root lies: the name of a volume, or the machine's own disk."""
    for name, volume in workload.volumes.items():
        if f"{workload.persist.root}/".startswith(f"{volume.mount}/"):
            return name
    return MACHINE_DISK


def check(workload: Workload, disk_gb: float) -> None:
    """Raise :class:`UsageError` with the sum as a table when ``disk_gb``, or a volume, is too small for the run."""
    for room in rooms(workload, disk_gb):
        if room.needed_gb <= room.asked_gb:
            continue
        least = f"{room.needed_gb:.0f}" if room.needed_gb == int(room.needed_gb) else f"{int(room.needed_gb) + 1}"
        if room.place == MACHINE_DISK:
            key, way = "needs.disk_gb", f"{option('disk_gb', least)}, or needs.disk_gb in the workload,"
        else:
            key = f"volumes.{room.place}.size_gb"
            way = f"{key}: {least} in the workload"
        table = [("sizes", "by the end", ""), *room.rows, ("in all", "", f"{room.needed_gb:.4g} GB")]
        raise UsageError(
            f"{workload.source}: the run's files take {room.needed_gb:.4g} GB of the {room.title} by iteration "
            f"{room.last}, more than {key}={room.asked_gb:g}: ask for more with {way} or run fewer iterations. Nothing "
            "was rented.\n" + "\n".join(records.table(table))
        )
