# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which disk a volume lies on: what a machine's disks are, and a decision over that without any effect.

A disk that holds anything is never chosen for formatting. What gpuyard has formatted carries the volume's own label,
and is found by it. Private to this collection; standard library only, Python 3.10 or newer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._box import BoxError

FSTAB = "/etc/fstab"
FILE_SYSTEMS = ("ext4", "xfs")
RAID_MEMBER = "linux_raid_member"
MOUNTED = "mounted"
"""The source of a volume that the cloud itself mounts when it makes the machine."""
UNKNOWN = "content that no program knows"
"""Stands for a file system where a disk has content without any signature."""
OURS = "x-gpuyard.volume="
"""The mount option by which a line of fstab is known as gpuyard's; mount itself ignores options that begin with x-."""

# Models by which the clouds name disks that NVMe or SCSI alone do not tell apart, in lower case.
_LOCAL_MODELS = ("instance storage", "ephemeraldisk", "nvme direct disk")
_ATTACHED_MODELS = ("elastic block store", "nvme_card-pd", "persistentdisk", "msft nvme accelerator")
_ATTACHED_PATHS = ("/dev/nvme", "/dev/sd", "/dev/vd", "/dev/xvd")
_OF_THE_MACHINE = ("sata", "sas", "ata", "usb")


def label_of(name: str) -> str:
    """Return the label of a volume's file system and RAID; xfs has room for twelve characters."""
    return f"gy-{name}"


def gb(size: float) -> str:
    """Return bytes in gigabytes (10^9), for people."""
    return f"{size / 1e9:.4g} GB"


@dataclass(frozen=True)
class Volume:
    """A volume as it is wanted.

    ``source`` is ``local-nvme``, ``attached``, ``mounted`` (by the cloud), or the id of a disk; ``size`` in bytes.
    """

    name: str
    mount: str
    source: str
    size: int
    file_system: str

    @classmethod
    def from_options(cls, name: str, options: Mapping[str, Any]) -> Volume:
        """Return the volume that the options of a module say."""
        size = int(options["size_gb"] * 1e9)
        return cls(name, os.path.normpath(options["mount"]), options["source"], size, options["file_system"])


@dataclass(frozen=True)
class Disk:
    """A block device: a disk, a partition, an array. ``ids`` are its names in /dev/disk/by-id."""

    path: str
    kind: str
    size: int
    file_system: str = ""
    label: str = ""
    uuid: str = ""
    table: str = ""
    model: str = ""
    serial: str = ""
    transport: str = ""
    read_only: bool = False
    removable: bool = False
    mounts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    children: tuple[Disk, ...] = ()

    @classmethod
    def from_lsblk(
        cls, entry: Mapping[str, Any], ids: Mapping[str, Sequence[str]], probe: Callable[[str], Mapping[str, str]]
    ) -> Disk:
        """Return a device of ``lsblk -J -b``. ``ids`` are names by path; ``probe`` reads what a device itself holds.

        What lsblk says of the content may come from an old note of udev's, so the device is asked.
        """
        path = str(entry.get("path") or f"/dev/{entry['name']}")
        held = probe(path)
        return cls(
            path=path,
            kind=str(entry.get("type") or ""),
            size=int(entry.get("size") or 0),
            file_system=held.get("TYPE", ""),
            label=held.get("LABEL", ""),
            uuid=held.get("UUID", ""),
            table=held.get("PTTYPE", ""),
            model=str(entry.get("model") or "").strip(),
            serial=str(entry.get("serial") or "").strip(),
            transport=str(entry.get("tran") or ""),
            read_only=_true(entry.get("ro")),
            removable=_true(entry.get("rm")),
            mounts=tuple(str(place) for place in entry.get("mountpoints") or [] if place),
            ids=tuple(sorted(ids.get(path, ()))),
            children=tuple(cls.from_lsblk(child, ids, probe) for child in entry.get("children") or []),
        )

    @property
    def identity(self) -> str:
        """What it is recognised by later; no two disks share it, as some share a serial number."""
        return self.ids[0] if self.ids else self.path

    @property
    def is_local(self) -> bool:
        """Whether it is an NVMe disk in the machine itself, whose content ends with the rental."""
        model = self.model.lower()
        if any(word in model for word in _LOCAL_MODELS) or any(name.startswith("google-local-") for name in self.ids):
            return True
        return self._is_nvme and not any(word in model for word in _ATTACHED_MODELS)

    @property
    def is_attached(self) -> bool:
        """Whether it is a volume that a cloud has attached."""
        known = self.path.startswith(_ATTACHED_PATHS) and self.transport not in _OF_THE_MACHINE
        return known and not self.is_local

    @property
    def _is_nvme(self) -> bool:
        return self.transport == "nvme" or self.path.startswith("/dev/nvme")

    def with_children(self) -> Iterator[Disk]:
        """Yield it and everything that lies on it."""
        yield self
        for child in self.children:
            yield from child.with_children()

    def is_called(self, name: str) -> bool:
        """Tell whether ``name`` is its path, serial number or one of its ids."""
        return name in (self.path, self.serial, *self.ids, *(f"/dev/disk/by-id/{one}" for one in self.ids))

    def in_words(self) -> str:
        """Return what it is, for people."""
        known = [gb(self.size), self.model, f"serial {self.serial}" if self.serial else ""]
        return f"{self.path} ({', '.join(filter(None, known))})"

    def why_not(self, unfinished: Sequence[str] = (), label: str = "") -> str:
        """Return why it must not be formatted, as the end of a sentence about it; ``""`` when nothing is on it.

        A disk whose identity is in ``unfinished`` was empty when gpuyard began to format it for the volume with
        ``label``, and was cut off: what gpuyard itself has left on it does not count.
        """
        places = [place for device in self.with_children() for place in device.mounts]
        if "/" in places:
            return "holds the running system"
        if places:
            return f"is in use at {places[0]}"
        if self.children:
            return f"holds {self.children[0].path}"
        if self.table:
            return f"has a partition table ({self.table})"
        if self.read_only:
            return "can only be read"
        if self.removable:
            return "is removable"
        own = self.file_system in (*FILE_SYSTEMS, RAID_MEMBER) and self.label.rsplit(":", maxsplit=1)[-1] == label
        if self.file_system and not (self.identity in unfinished and (own or self.file_system == UNKNOWN)):
            named = f" labelled {self.label}" if self.label else ""
            return f"holds {self.file_system}{named}"
        return ""


def _true(value: object) -> bool:
    return value in (True, 1, "1")


@dataclass(frozen=True)
class Machine:
    """What decides about a volume.

    ``mounted`` is the source of what is mounted at the wanted place, ``""`` for nothing; ``free`` are the bytes free
    where the wanted folder lies; ``taken`` says that the folder was taken for this volume before.
    """

    disks: tuple[Disk, ...] = ()
    may_mount: bool = True
    why_no_mount: str = ""
    mounted: str = ""
    free: int = 0
    taken: bool = False
    unfinished: tuple[str, ...] = ()
    any_kind: bool = False


@dataclass(frozen=True)
class Decision:
    """What becomes of a volume: ``folder``, ``use`` (it is mounted), ``mount``, ``assemble`` or ``format``."""

    how: str
    disks: tuple[Disk, ...] = ()
    reason: str = ""

    @property
    def disk(self) -> Disk:
        """The device with the file system."""
        return self.disks[0]


def decide(wanted: Volume, machine: Machine) -> Decision:
    """Return on what a volume lies, and what has to be done for it; raise :class:`BoxError` with the way out.

    Nothing is read and nothing is changed. Only disks on which nothing is are ever to be formatted.
    """
    if wanted.source == MOUNTED:
        if machine.mounted:
            return Decision("folder", reason=f"{machine.mounted} is mounted there")
        raise BoxError(
            f"volumes.{wanted.name}: nothing is mounted at {wanted.mount}, where the cloud was to mount it when it "
            "made this machine: end the run, and launch it again."
        )
    if not machine.may_mount:
        return _folder(wanted, machine, f"no disk can be mounted here ({machine.why_no_mount})")
    label = label_of(wanted.name)
    devices = list(dict.fromkeys(device for disk in machine.disks for device in disk.with_children()))
    ours = [device for device in devices if device.label == label and device.file_system in FILE_SYSTEMS]
    if len(ours) > 1:
        raise BoxError(
            f"volumes.{wanted.name}: {' and '.join(device.path for device in ours)} both carry the label {label}, so "
            "it is not known which is meant: detach one, or give one another label."
        )
    if machine.mounted:
        if ours and wanted.mount in ours[0].mounts:
            return Decision("use", (_fitting(wanted, ours[0]),))
        if ours:
            raise BoxError(
                f"volumes.{wanted.name}: {machine.mounted} is mounted at {wanted.mount}, where {ours[0].path} belongs "
                f"by its label {label}: unmount it, or choose another mount."
            )
        return _folder(wanted, machine, f"{machine.mounted} is mounted there")
    if ours:
        if ours[0].mounts:
            raise BoxError(
                f"volumes.{wanted.name}: {ours[0].path} is mounted at {ours[0].mounts[0]} already: unmount it "
                f"there, or say mount: {ours[0].mounts[0]}."
            )
        return Decision("mount", (_fitting(wanted, ours[0]),))
    members = [device for device in devices if _is_member(device, label)]
    arrays = list(dict.fromkeys(array for member in members for array in member.children))
    if arrays:
        cut_off = any(member.identity in machine.unfinished for member in members)
        if why := arrays[0].why_not((arrays[0].identity,) if cut_off else (), label):
            raise BoxError(f"volumes.{wanted.name}: its array {arrays[0].path} {why}, so it is left alone.")
        return Decision("format", (arrays[0],))
    if members:
        return Decision("assemble", tuple(members))
    return Decision("format", _free(wanted, machine, label))


def _is_member(device: Disk, label: str) -> bool:
    return device.file_system == RAID_MEMBER and device.label.split(":")[-1] == label


def _fitting(wanted: Volume, device: Disk) -> Disk:
    """Return the device with the volume's file system, or say why it will not do."""
    if device.size < wanted.size:
        raise BoxError(
            f"volumes.{wanted.name}: size_gb={wanted.size / 1e9:g} is more than {device.path} has, {gb(device.size)}: "
            "let the volume grow, or say less."
        )
    if device.file_system != wanted.file_system:
        raise BoxError(
            f"volumes.{wanted.name}: file_system={wanted.file_system} is not what {device.path} has, with data in it: "
            f"say {device.file_system}."
        )
    return device


def _folder(wanted: Volume, machine: Machine, reason: str) -> Decision:
    if not machine.taken and machine.free < wanted.size:
        raise BoxError(
            f"volumes.{wanted.name}: {reason}, and where {wanted.mount} lies {gb(machine.free)} are free, less than "
            f"size_gb={wanted.size / 1e9:g}: rent a larger disk (needs.disk_gb), say less, or name as mount a folder "
            "that lies on a larger disk."
        )
    return Decision("folder", reason=reason)


def _free(wanted: Volume, machine: Machine, label: str) -> tuple[Disk, ...]:
    """Return the disks to format for a volume; several are one array."""
    disks = [disk for disk in machine.disks if disk.size and disk.kind in ("disk", *(["loop"] * machine.any_kind))]
    if wanted.source == "local-nvme":
        what, chosen = "a local NVMe disk", [disk for disk in disks if disk.is_local or machine.any_kind]
    elif wanted.source == "attached":
        what, chosen = "an attached volume", [disk for disk in disks if disk.is_attached]
    else:
        what, chosen = f"the disk {wanted.source}", [disk for disk in disks if disk.is_called(wanted.source)]
    reasons = {disk.path: disk.why_not(machine.unfinished, label) for disk in chosen}
    free = [disk for disk in chosen if not reasons[disk.path]]
    if not free:
        seen = [f"{disk.in_words()} {reasons[disk.path]}" for disk in chosen]
        seen = seen or [f"there are {', '.join(disk.in_words() for disk in disks) or 'no disks at all'}"]
        raise BoxError(
            f"volumes.{wanted.name}: there is no such thing as {what} with nothing on it; {'; '.join(seen)}. Nothing "
            "was formatted: attach one, name another source, or, where a file system is to be used as it is, give it "
            f"the label {label} (e2label or xfs_admin -L)."
        )
    if wanted.source == "local-nvme":
        if sum(disk.size for disk in free) < wanted.size:
            raise BoxError(_too_small(wanted, free, reasons))
        return tuple(free)
    large = [disk for disk in free if disk.size >= wanted.size]
    if not large:
        raise BoxError(_too_small(wanted, free, reasons))
    if len(large) > 1:
        raise BoxError(
            f"volumes.{wanted.name}: several attached volumes are empty and large enough: "
            f"{', '.join(disk.in_words() for disk in large)}. Name one as its source: "
            f"{' or '.join(disk.serial or disk.identity for disk in large)}."
        )
    return tuple(large)


def _too_small(wanted: Volume, free: Sequence[Disk], reasons: Mapping[str, str]) -> str:
    left = [f"{path} {why}" for path, why in reasons.items() if why]
    return (
        f"volumes.{wanted.name}: size_gb={wanted.size / 1e9:g} is more than there is free: "
        f"{', '.join(disk.in_words() for disk in free)}{''.join(f'; {one}' for one in left)}. Rent a machine with "
        "more, or say less."
    )


def fstab_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of an fstab, each with its fields; none for a comment."""
    for line in text.splitlines(keepends=True):
        yield line, [] if line.lstrip().startswith("#") else line.split()


def with_volume(text: str, wanted: Volume, uuid: str) -> str:
    """Return an fstab with the line of a volume, in place of what gpuyard wrote for it or its mount before.

    Raises :class:`BoxError` when somebody else has a line for that mount.
    """
    # nofail: a machine whose volume is detached, or whose local disks were changed, starts all the same.
    options = f"defaults,noatime,nofail,{OURS}{wanted.name}"
    line = f"UUID={uuid} {escape(wanted.mount)} {wanted.file_system} {options} 0 2\n"
    kept, placed = "", False
    for old, fields in fstab_lines(text):
        if len(fields) < 4 or (
            fields[1] != escape(wanted.mount) and f"{OURS}{wanted.name}" not in fields[3].split(",")
        ):
            kept += old
        elif OURS not in fields[3]:
            raise BoxError(
                f"volumes.{wanted.name}: {FSTAB} has a line for {wanted.mount} that is not gpuyard's: remove it, or "
                "choose another mount."
            )
        elif not placed:
            kept, placed = kept + line, True
    if placed:
        return kept
    return kept + ("\n" if kept and not kept.endswith("\n") else "") + line


def escape(path: str) -> str:
    """Return a path as fstab and the kernel write it: a space is an octal number there."""
    return re.sub(r"[\\\s]", lambda found: f"\\{ord(found[0]):03o}", path)


def unescape(path: str) -> str:
    """Return the path that :func:`escape` has written."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def unmounted(fstab: str, *, at: str = "", ours: bool = False) -> list[str]:
    """Return the mount points of an fstab that are not mounted: of all, or of those at or above the path ``at``.

    With ``ours`` only those that gpuyard has written. A line with ``noauto`` is not expected to be mounted.
    """
    try:
        with open(fstab, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except OSError:
        return []
    found = []
    for _line, fields in fstab_lines(text):
        if len(fields) < 4 or not fields[1].startswith("/"):
            continue
        options, place = fields[3].split(","), unescape(fields[1])
        if "noauto" in options or (ours and OURS not in fields[3]):
            continue
        if (not at or os.path.commonpath([place, at]) == place) and not os.path.ismount(place):
            found.append(place)
    return found
