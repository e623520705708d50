#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: data_disks
short_description: Bring local NVMe disks and attached volumes to their mount points
description:
  - Finds the disk of each volume, makes a file system on it when nothing is on it, mounts it, and writes it into
    C(/etc/fstab) by its UUID. Several local NVMe disks become one RAID 0.
  - A disk that is in use, or holds anything at all (partitions, a file system, a member of a RAID or of LVM, content
    without a signature), is never formatted. A file system that carries the volume's own label, C(gy-NAME), is mounted
    as it is.
  - A volume that has grown has its file system grown. The speed is measured once.
  - In a container nothing is mounted. Where the wanted folder lies on a disk with enough room, it is used as it is.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  volumes:
    description:
      - The volumes by their names, of at most nine lower-case letters, digits and dashes.
      - C(mount) is the mount point; C(source) is V(local-nvme), V(attached), V(mounted) (what the cloud has mounted
        there itself), or the serial number, path or name in C(/dev/disk/by-id) of one disk; C(size_gb) is the least
        size in gigabytes (10^9 bytes); C(file_system) is V(ext4) or V(xfs).
    type: dict
    required: true
  devices:
    description:
      - Look at these block devices only, take them for local NVMe disks of whatever kind they are, and mount also in a
        container. For trials with loop devices.
    type: list
    elements: path
    default: []
  record:
    description: The file on the machine in which it is noted what was begun and how fast a volume is.
    type: path
    default: /opt/gpuyard/volumes.json
attributes:
  check_mode:
    description: Can run in check mode and tell what would change, with the disks that would be formatted.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have the cache on an attached volume
  gpuyard.cloud.data_disks:
    volumes:
      cache:
        mount: /mnt/cache
        source: attached
        size_gb: 1000
        file_system: ext4
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["format /dev/vdb (1.074e+03 GB, serial 5a1e) with ext4 for volume cache", mount /dev/vdb at /mnt/cache]
packages:
  description: The packages that have to be installed before the volumes can be had; only in check mode.
  type: list
  elements: str
  returned: success
  sample: [mdadm]
volumes:
  description: What each volume lies on (empty for a folder), and how fast it writes and reads in megabytes a second.
  type: dict
  returned: success
  sample: {"cache": {"mount": "/mnt/cache", "device": "/dev/vdb", "write_mb_s": 510, "read_mb_s": 880}}
summary:
  description: The same as sentences.
  type: list
  elements: str
  returned: success
  sample: ["Volume cache: 1.074e+03 GB of ext4 on /dev/vdb at /mnt/cache, writes 510 MB/s and reads 880 MB/s."]
"""

import contextlib
import mmap
import os
import re
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils._disks import (
    FILE_SYSTEMS,
    FSTAB,
    MOUNTED,
    UNKNOWN,
    Decision,
    Disk,
    Machine,
    Volume,
    decide,
    gb,
    label_of,
    unescape,
    with_volume,
)

MDADM_CONF = "/etc/mdadm/mdadm.conf"
COLUMNS = "NAME,PATH,TYPE,SIZE,MODEL,SERIAL,TRAN,RO,RM,MOUNTPOINTS"
PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mdadm": "mdadm"}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,7}[a-z0-9])?")
_CAP_SYS_ADMIN = 21
_SAMPLE = 64 << 10
_SAMPLES = 64
_EDGE = 1 << 20
# Less than this is what a file system cannot use at the end of its device.
_LEAST_GROWTH = 16 << 20
_MEASURED = 1 << 30
_MEASURED_S = 2.0
_BLOCK = 4 << 20


def programs() -> dict[str, str]:
    """Return the variable by which the programs of the administrator are found, too."""
    return {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}


def execute(module: AnsibleModule, command: list[str]) -> tuple[int, str, str]:
    """Run a program, see :func:`_box.execute`."""
    return _box.execute(module, command, environment=programs())


def why_no_mount() -> str:
    """Return why this machine must not mount disks, ``""`` when it may."""
    if any(Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")):
        return "it is a container"
    with contextlib.suppress(OSError):
        variables = {entry.partition(b"=")[0] for entry in Path("/proc/1/environ").read_bytes().split(b"\0")}
        if variables & {b"container", b"VAST_CONTAINERLABEL", b"RUNPOD_POD_ID"}:
            return "it is a container"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    if found and not int(found[1], 16) >> _CAP_SYS_ADMIN & 1:
        return "there is no right to"
    return ""


def is_blank(path: str) -> bool:
    """Tell whether a device holds the same byte everywhere: at its beginning, its end, and in samples between."""
    with open(path, "rb", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        places = [(0, _EDGE), (max(size - _EDGE, 0), _EDGE)]
        places += [(size * number // _SAMPLES, _SAMPLE) for number in range(1, _SAMPLES)]
        seen: set[int] = set()
        for place, length in places:
            stream.seek(place)
            seen |= set(stream.read(length))
            if len(seen) > 1:
                return False
    return seen <= {0} or seen <= {255}


def probe(module: AnsibleModule, path: str) -> dict[str, str]:
    """Return what lies on a device by its own content, as ``blkid`` calls it."""
    code, output, _errors = execute(module, ["blkid", "--probe", "--output", "export", path])
    found = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    if code not in (0, 2):  # several signatures at once, or it cannot be read
        return {"TYPE": UNKNOWN}
    if not found.get("TYPE") and not found.get("PTTYPE") and not is_blank(path):
        found["TYPE"] = UNKNOWN
    # blkid writes what is not plain with a backslash before it.
    return {name: value.replace("\\", "") for name, value in found.items()}


def find_disks(module: AnsibleModule, devices: list[str]) -> tuple[Disk, ...]:
    """Return the disks of this machine, or only ``devices``, each with what lies on it."""
    command = ["lsblk", "--json", "--bytes", "--output", COLUMNS, *devices]
    output = _box.run(module, command, purpose="Listing the disks", environment=programs())
    ids: dict[str, list[str]] = {}
    folder = Path("/dev/disk/by-id")
    for link in sorted(folder.iterdir()) if folder.is_dir() else []:
        ids.setdefault(os.path.realpath(link), []).append(link.name)
    entries = module.from_json(output)["blockdevices"]
    for entry in entries:
        # Older lsblk does not know the serial number of a virtio disk.
        with contextlib.suppress(OSError):
            serial = Path("/sys/block", entry["name"], "serial").read_text(encoding="utf-8")
            entry["serial"] = entry.get("serial") or serial.strip("\0 \n")
    kept = [entry for entry in entries if int(entry.get("size") or 0) and (devices or entry["type"] == "disk")]
    return tuple(Disk.from_lsblk(entry, ids, lambda path: probe(module, path)) for entry in kept)


def mounted_at(place: str) -> str:
    """Return the source of what is mounted at ``place``, ``""`` for nothing."""
    found = ""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        source, target = line.split(" ")[:2]
        if unescape(target) == place:
            found = source
    return found


def free_at(folder: str) -> int:
    """Return the bytes that are free where a folder lies, or will lie."""
    place = Path(folder)
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def ext4_bytes(device: str) -> int:
    """Return how large the ext4 file system on a device is, by its superblock."""
    with open(device, "rb") as stream:
        ext4 = stream.read(2048)[1024:]
    (low,), (power,), (incompatible,) = (struct.unpack_from("<I", ext4, place) for place in (4, 24, 96))
    high = struct.unpack_from("<I", ext4, 336)[0] if incompatible & 0x80 else 0
    return int(((high << 32) + low) * (1024 << power))


def device_bytes(path: str) -> int:
    """Return the size of a block device."""
    with open(path, "rb", buffering=0) as stream:
        return stream.seek(0, os.SEEK_END)


def measure(folder: str) -> dict[str, float]:
    """Return how fast a folder's disk writes and reads, in MB/s, past the kernel's cache; ``{}`` where it cannot be.

    One file, one request of 4 MiB at a time, for at most two seconds each way: a lower bound of what a fast disk does.
    """
    place = Path(folder, ".gpuyard-speed")
    buffer = mmap.mmap(-1, _BLOCK)  # begins at a page, as O_DIRECT wants
    buffer.write(os.urandom(_BLOCK))
    most = min(_MEASURED, free_at(folder) // 2) // _BLOCK * _BLOCK
    speeds = {}
    try:
        for name, flags, step in (
            ("write_mb_s", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.write),
            ("read_mb_s", os.O_RDONLY, lambda handle, buffer: os.readv(handle, [buffer])),
        ):
            handle = os.open(place, flags | os.O_DIRECT, 0o600)
            try:
                began, moved = time.monotonic(), 0
                while moved < most and time.monotonic() - began < _MEASURED_S and (count := step(handle, buffer)):
                    moved += count
                os.fsync(handle)
                speeds[name] = round(moved / 1e6 / (time.monotonic() - began), 1)
            finally:
                os.close(handle)
    except OSError:
        return {}  # such as a file system in memory, which knows no O_DIRECT
    finally:
        place.unlink(missing_ok=True)
    return speeds


class Bringing:
    """Brings one volume to its place. With ``dry`` set, only says what it would do."""

    def __init__(self, module: AnsibleModule, wanted: Volume, record: dict[str, Any]) -> None:
        self.module, self.wanted, self.record = module, wanted, record
        self.dry = bool(module.check_mode)
        self.note: dict[str, Any] = dict(record.get(wanted.name) or {})
        self.actions: list[str] = []
        self.packages: list[str] = []

    def say(self, **changes: Any) -> None:
        """Note something of this volume on the machine, at once: what follows may be cut off."""
        self.note.update(changes)
        if not self.dry:
            self.record[self.wanted.name] = self.note
            _box.write_record(Path(self.module.params["record"]), self.record)

    def run(self, *command: str, purpose: str) -> str:
        """Run a program, see :func:`_box.run`."""
        return _box.run(self.module, command, purpose=purpose, environment=programs())

    def needs(self, program: str) -> bool:
        """Return whether a program is missing, and note its package; raise :class:`BoxError` where it is needed now."""
        if shutil.which(program, path=programs()["PATH"]):
            return False
        self.packages.append(PACKAGES[program])
        if not self.dry:
            raise _box.BoxError(f"{program} is missing on this machine: install the package {PACKAGES[program]}.")
        return True

    def look(self) -> Machine:
        """Return what decides about this volume now."""
        devices = self.module.params["devices"]
        why = "" if devices else why_no_mount()
        mount = self.wanted.mount
        return Machine(
            disks=() if why else find_disks(self.module, devices),
            may_mount=not why,
            why_no_mount=why,
            mounted=mounted_at(mount),
            free=free_at(mount),
            taken=self.note.get("folder") == [mount, self.wanted.size] and Path(mount).is_dir(),
            unfinished=tuple(self.note.get("unfinished") or ()),
            any_kind=bool(devices),
        )

    def bring(self) -> dict[str, Any]:
        """Bring the volume to its place and return what it lies on."""
        decision = decide(self.wanted, self.look())
        if decision.how == "assemble":
            decision = self.assemble(decision)
        before = {"device": decision.disk.path if decision.how == "use" else "", "mount": mounted_at(self.wanted.mount)}
        if decision.how == "folder":
            return self.take_folder(decision)
        device, uuid = (decision.disk.path, decision.disk.uuid) if decision.disks else ("", "")
        if decision.how == "format":
            device, uuid = self.format(decision.disks)
        if decision.how != "use":
            self.check_place()
        self.write_fstab(uuid)
        if decision.how != "use":
            device, uuid = self.mount(device, uuid)
        if self.note.get("unfinished"):
            self.say(unfinished=[])
        self.grow(device)
        return self.result(device, uuid) | {"before": before}

    def take_folder(self, decision: Decision) -> dict[str, Any]:
        """Use the folder as it is, on the disk where it lies."""
        place = Path(self.wanted.mount)
        taken = [self.wanted.mount, self.wanted.size]
        before = {"device": "", "mount": "folder" if self.note.get("folder") == taken else ""}
        if not place.is_dir():
            self.actions.append(f"create the folder {place}, since {decision.reason}")
            if not self.dry:
                place.mkdir(parents=True)
        if self.note.get("folder") != taken:
            if not self.actions:
                self.actions.append(f"use the folder {place}, since {decision.reason}")
            self.say(folder=taken)
        return self.result("", "") | {"before": before}

    def assemble(self, decision: Decision) -> Decision:
        """Assemble the array that lies on some disks; one whose making was cut off is made anew."""
        members = [disk.path for disk in decision.disks]
        self.actions.append(f"assemble the RAID 0 of {', '.join(members)}")
        if self.needs("mdadm") or self.dry:
            # What is on it cannot be seen before.
            return Decision("mount", decision.disks)
        array = f"/dev/md/{label_of(self.wanted.name)}"
        code, output, errors = execute(self.module, ["mdadm", "--assemble", "--run", array, *members])
        self.settle()
        if code:
            unfinished = self.note.get("unfinished") or []
            if not all(disk.identity in unfinished for disk in decision.disks):
                raise _box.BoxError(
                    f"volumes.{self.wanted.name}: its RAID 0 cannot be assembled of {', '.join(members)}: "
                    f"{_box.tail(output + errors, 2)}. Where a disk of it is gone for good, so is its content: `mdadm "
                    "--zero-superblock` frees the others."
                )
            self.run("mdadm", "--zero-superblock", *members, purpose="Taking back a RAID that was cut off")
        return decide(self.wanted, self.look())

    def format(self, disks: tuple[Disk, ...]) -> tuple[str, str]:
        """Make a file system on empty disks; return its device and UUID."""
        name, kind = self.wanted.name, self.wanted.file_system
        words = ", ".join(disk.in_words() for disk in disks)
        several = len(disks) > 1
        self.actions.append(f"format {'a RAID 0 of ' * several}{words} with {kind} for volume {name}")
        missing = [self.needs(f"mkfs.{kind}"), several and self.needs("mdadm")]
        if any(missing) or self.dry:
            return f"/dev/md/{label_of(name)}" if several else disks[0].path, "UUID"
        for disk in disks:
            self.check_unused(disk)
        unfinished = self.note.get("unfinished") or []
        self.say(unfinished=sorted({*unfinished, *(disk.identity for disk in disks)}))
        for disk in disks:
            if disk.file_system:  # our own, cut off
                self.run("wipefs", "--all", disk.path, purpose=f"Clearing {disk.path}")
        device = self.make_array(disks) if several else disks[0].path
        self.run(f"mkfs.{kind}", "-q", "-L", label_of(name), *(["-m", "0"] * (kind == "ext4")), device,
                 purpose=f"Making a file system on {device}")  # fmt: skip
        return device, probe(self.module, device)["UUID"]

    def check_unused(self, disk: Disk) -> None:
        """Raise :class:`BoxError` when the kernel says that somebody uses a disk, whatever its content is."""
        try:
            os.close(os.open(disk.path, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            raise _box.BoxError(
                f"volumes.{self.wanted.name}: {disk.path} is in use ({error.strerror}), so it was not formatted."
            ) from error

    def make_array(self, disks: tuple[Disk, ...]) -> str:
        """Make a RAID 0 of empty disks, that is assembled at each start, and return its device."""
        label = label_of(self.wanted.name)
        array = f"/dev/md/{label}"
        members = [disk.path for disk in disks]
        # No name of this machine in it: a prepared image may start with another one.
        command = ["mdadm", "--create", array, "--run", "--level=0", f"--raid-devices={len(members)}"]
        command += ["--metadata=1.2", f"--name={label}", "--homehost=any", *members]
        self.run(*command, purpose=f"Making a RAID 0 of {', '.join(members)}")
        self.settle()
        line = self.run("mdadm", "--detail", "--brief", array, purpose="Reading the new RAID").strip()
        conf = Path(MDADM_CONF)
        text = conf.read_text(encoding="utf-8") if conf.exists() else ""
        kept = "".join(old for old in text.splitlines(keepends=True) if f" {array} " not in old)
        _box.write_file(conf, f"{kept}{line}\n")
        return array

    def settle(self) -> None:
        """Wait until new devices have their names, where somebody gives them."""
        if Path("/run/udev/control").exists():
            execute(self.module, ["udevadm", "settle", "--timeout=30"])

    def check_place(self) -> None:
        """Raise :class:`BoxError` when a mount would hide files."""
        place = Path(self.wanted.mount)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise _box.BoxError(
                f"volumes.{self.wanted.name}: {place} holds files of its own, which the volume would hide: move them "
                "away first."
            )

    def write_fstab(self, uuid: str) -> None:
        """Have the volume in fstab."""
        file = Path(FSTAB)
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = with_volume(before, self.wanted, uuid)
        if after == before:
            return
        self.actions.append(f"write {self.wanted.mount} into {FSTAB}")
        if self.dry:
            return
        _box.write_file(file, after)
        if Path("/run/systemd/system").exists():
            # systemd ends a mount that it knows from an old fstab.
            self.run("systemctl", "daemon-reload", purpose=f"Letting systemd read {FSTAB}")

    def mount(self, device: str, uuid: str) -> tuple[str, str]:
        """Mount the volume; a file system that was cut off in the making is made anew. Return device and UUID."""
        place = Path(self.wanted.mount)
        self.actions.append(f"mount {device} at {place}")
        if self.dry:
            return device, uuid
        place.mkdir(parents=True, exist_ok=True)
        # Nobody, not even root, writes into the folder while the volume is not mounted. Not every file system can that.
        execute(self.module, ["chattr", "+i", str(place)])
        command = ["mount", "-o", "noatime", device, str(place)]
        code, output, errors = execute(self.module, command)
        if code and self.note.get("unfinished"):
            cut_off = [disk for disk in self.look().disks for disk in disk.with_children() if disk.path == device]
            device, uuid = self.format(tuple(cut_off))
            self.write_fstab(uuid)
            self.run(*command[:-2], device, str(place), purpose=f"Mounting {device}")
        elif code:
            raise _box.BoxError(
                f"volumes.{self.wanted.name}: {device} cannot be mounted: {_box.tail(output + errors, 2)}"
            )
        return device, uuid

    def grow(self, device: str) -> None:
        """Let the file system have all of its device."""
        if self.dry and not mounted_at(self.wanted.mount):
            return
        known = self.file_system_bytes(device)
        if device_bytes(device) - known < max(_LEAST_GROWTH, known // 1000):
            return
        self.actions.append(f"grow the file system of volume {self.wanted.name} from {gb(known)}")
        command = ["xfs_growfs", self.wanted.mount] if self.wanted.file_system == "xfs" else ["resize2fs", device]
        if not self.dry:
            self.run(*command, purpose=f"Growing the file system on {device}")

    def file_system_bytes(self, device: str) -> int:
        """Return how large the mounted file system is."""
        if self.wanted.file_system == "ext4":
            return ext4_bytes(device)
        # What xfs has on the disk may be older than what it knows.
        output = self.run("xfs_growfs", "-n", self.wanted.mount, purpose=f"Reading the file system on {device}")
        found = re.search(r"^data\s+=\s+bsize=(\d+)\s+blocks=(\d+)", output, re.MULTILINE)
        return int(found[1]) * int(found[2]) if found else device_bytes(device)

    def result(self, device: str, uuid: str) -> dict[str, Any]:
        """Return what the volume lies on; measures it once."""
        place = self.wanted.mount
        speeds = self.note.get("speeds") if self.note.get("uuid") == uuid else None
        if speeds is None:
            speeds = {}
            if not self.dry:
                speeds = measure(place)
                self.say(uuid=uuid, speeds=speeds)
        size = 0
        if not self.dry or Path(place).exists():
            found = os.statvfs(place)
            size = found.f_blocks * found.f_frsize
        return {"mount": place, "device": device, "size_gb": round(size / 1e9, 3), **speeds}

    def in_words(self, found: Mapping[str, Any]) -> str:
        """Return what the volume lies on as a sentence."""
        kind = f"{gb(found['size_gb'] * 1e9)} of {self.wanted.file_system} on {found['device']}"
        where = f"the folder {found['mount']} of this machine's disk"
        if found["device"]:
            where = f"{kind} at {found['mount']}"
        elif self.wanted.source == MOUNTED:
            where = f"what the cloud has mounted at {found['mount']}"
        speed = (
            f"writes {found['write_mb_s']:.0f} MB/s and reads {found['read_mb_s']:.0f} MB/s"
            if "read_mb_s" in found
            else "its speed cannot be measured"
        )
        return f"Volume {self.wanted.name}: {where}, {speed}."


def read_volumes(given: Mapping[str, Any]) -> list[Volume]:
    """Return the wanted volumes; raise :class:`BoxError` for one that says something else than it can."""
    found = []
    for name, options in given.items():
        if not _NAME.fullmatch(str(name)):
            raise _box.BoxError(
                f"volumes: {name!r} must be at most nine lower-case letters, digits and dashes, such as 'cache'."
            )
        if not isinstance(options, dict) or set(options) != {"mount", "source", "size_gb", "file_system"}:
            raise _box.BoxError(f"volumes.{name}: must say mount, source, size_gb and file_system, and nothing else.")
        if options["file_system"] not in FILE_SYSTEMS:
            raise _box.BoxError(f"volumes.{name}: file_system={options['file_system']} must be ext4 or xfs.")
        if not str(options["mount"]).startswith("/"):
            raise _box.BoxError(f"volumes.{name}: mount={options['mount']} must be an absolute path.")
        try:
            size = float(options["size_gb"])
        except (TypeError, ValueError):
            size = 0
        if size <= 0:
            raise _box.BoxError(f"volumes.{name}: size_gb={options['size_gb']} must be a positive number.")
        try:
            _box.check_persistent_root(options["mount"])
        except _box.BoxError as error:
            raise _box.BoxError(
                f"volumes.{name}: mount={options['mount']} is a folder that the system or gpuyard itself uses: name "
                "one of its own, such as /mnt/cache."
            ) from error
        found.append(Volume.from_options(name, {**options, "size_gb": size}))
    return found


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring all volumes to their places, or in check mode say what that would take."""
    record = _box.read_record(Path(module.params["record"]))
    actions: list[str] = []
    packages: list[str] = []
    volumes: dict[str, Any] = {}
    summary: list[str] = []
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for wanted in read_volumes(module.params["volumes"]):
        bringing = Bringing(module, wanted, record)
        found = bringing.bring()
        before[wanted.name] = found.pop("before")
        after[wanted.name] = before[wanted.name] if not bringing.actions else {"actions": bringing.actions}
        volumes[wanted.name] = found
        if not module.check_mode:
            summary.append(bringing.in_words(found))
        actions += bringing.actions
        packages += bringing.packages
    return {
        "changed": bool(actions),
        "actions": actions,
        "packages": sorted(set(packages)),
        "volumes": volumes,
        "summary": summary,
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "volumes": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "path", "default": []},
            "record": {"type": "path", "default": "/opt/gpuyard/volumes.json"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
