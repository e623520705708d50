# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which disk a volume gets, over the disks of several kinds of machines, and never one with anything on it (B16, V5).

The machines are STAND-INs: what ``lsblk`` and ``blkid`` say there, after the clouds' documents and published outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.gpuyard.cloud.plugins.module_utils import _disks
from ansible_collections.gpuyard.cloud.plugins.module_utils._box import BoxError
from ansible_collections.gpuyard.cloud.plugins.module_utils._disks import Disk, Machine, Volume, decide

GIB = 1 << 30
Entry = dict[str, Any]


def entry(name: str, size: float, kind: str = "disk", **more: Any) -> Entry:
    """Return a device as ``lsblk -J -b`` shows it; ``size`` in GiB. Keys in capitals are what ``blkid`` says of it."""
    mounts = more.pop("mounts", [None])
    return {"name": name, "path": f"/dev/{name}", "type": kind, "size": int(size * GIB), "mountpoints": mounts, **more}


def root(name: str, part: str, size: float, **more: Any) -> Entry:
    efi = entry(f"{part}15", 0.1, "part", mounts=["/boot/efi"], TYPE="vfat")
    system = entry(f"{part}1", size - 1, "part", mounts=["/"], TYPE="ext4", LABEL="cloudimg-rootfs")
    return entry(name, size, children=[system, efi], PTTYPE="gpt", **more)


# A block volume is a virtio disk whose serial number is the volume's mount_id.
VULTR = [root("vda", "vda", 480), entry("vdb", 1000, serial="ewr-5a1e")]
# One NVMe disk with the system, and further ones in the machine.
LAMBDA = [
    root("nvme0n1", "nvme0n1p", 476, tran="nvme", model="SAMSUNG MZVL2512HCJQ", serial="S675NX0"),
    entry("nvme1n1", 7153, tran="nvme", model="SAMSUNG MZQL27T6HBLA", serial="S6CKNT0"),
]
# Two disks mirrored for the system by the installer, two free.
_MIRROR = entry("md0", 890, "raid1", mounts=["/"], TYPE="ext4")
BARE_METAL = [
    entry(
        f"nvme{number}n1",
        894,
        tran="nvme",
        model="Micron_7450",
        serial=f"MT{number}",
        **(
            {
                "PTTYPE": "gpt",
                "children": [
                    entry(f"nvme{number}n1p1", 890, "part", TYPE="linux_raid_member", LABEL="any:0", children=[_MIRROR])
                ],
            }
            if number < 2
            else {}
        ),
    )
    for number in range(4)
]
GCP = [
    root("sda", "sda", 100, model="PersistentDisk", vendor="Google", serial="persistent-disk-0"),
    entry("sdb", 500, model="PersistentDisk", vendor="Google", serial="data"),
    entry("nvme0n1", 375, tran="nvme", model="nvme_card"),
    entry("nvme0n2", 375, tran="nvme", model="nvme_card"),
    entry("nvme1n1", 1000, tran="nvme", model="nvme_card-pd"),
]
GCP_IDS = {
    "/dev/sdb": ["google-data", "scsi-0Google_PersistentDisk_data"],
    "/dev/nvme0n1": ["google-local-nvme-ssd-0"],
    "/dev/nvme0n2": ["google-local-nvme-ssd-1"],
    "/dev/nvme1n1": ["google-big"],
}
AWS = [
    root("nvme0n1", "nvme0n1p", 100, tran="nvme", model="Amazon Elastic Block Store", serial="vol0aaa"),
    entry("nvme1n1", 838, tran="nvme", model="Amazon EC2 NVMe Instance Storage", serial="AWS22"),
    entry("nvme2n1", 1000, tran="nvme", model="Amazon Elastic Block Store", serial="vol0bbb"),
]


def machine(entries: list[Entry], ids: dict[str, list[str]] | None = None, **more: Any) -> Machine:
    held: dict[str, dict[str, str]] = {}

    def note(one: Entry) -> None:
        held[one["path"]] = {key: value for key, value in one.items() if key.isupper()}
        for child in one.get("children", []):
            note(child)

    for one in entries:
        note(one)
    return Machine(tuple(Disk.from_lsblk(one, ids or {}, held.__getitem__) for one in entries), **more)


def volume(source: str = "attached", size_gb: float = 300, **more: Any) -> Volume:
    return Volume(**{"name": "cache", "mount": "/mnt/cache", "source": source, "size": int(size_gb * 1e9),
                     "file_system": "ext4", **more})  # fmt: skip


def paths(wanted: Volume, where: Machine) -> tuple[str, list[str]]:
    found = decide(wanted, where)
    return found.how, [disk.path for disk in found.disks]


def with_content(entries: list[Entry], name: str, **content: Any) -> list[Entry]:
    return [{**one, **content} if one["name"] == name else one for one in entries]


@pytest.mark.parametrize(
    ("entries", "ids", "source", "chosen"),
    [
        (VULTR, {}, "attached", ["/dev/vdb"]),
        (VULTR, {"/dev/vdb": ["virtio-ewr-5a1e"]}, "virtio-ewr-5a1e", ["/dev/vdb"]),
        (VULTR, {}, "ewr-5a1e", ["/dev/vdb"]),
        (LAMBDA, {}, "local-nvme", ["/dev/nvme1n1"]),
        (BARE_METAL, {}, "local-nvme", ["/dev/nvme2n1", "/dev/nvme3n1"]),
        (GCP, GCP_IDS, "local-nvme", ["/dev/nvme0n1", "/dev/nvme0n2"]),
        (GCP, {}, "local-nvme", ["/dev/nvme0n1", "/dev/nvme0n2"]),
        (GCP, GCP_IDS, "google-data", ["/dev/sdb"]),
        (AWS, {}, "local-nvme", ["/dev/nvme1n1"]),
        (AWS, {}, "attached", ["/dev/nvme2n1"]),
    ],
)
def test_the_empty_disks_of_a_machine_are_found(entries: Any, ids: Any, source: str, chosen: list[str]) -> None:
    assert paths(volume(source), machine(entries, ids)) == ("format", chosen)


def test_a_container_uses_the_folder_where_it_is_large_enough() -> None:
    """A container at Vast sees the disks of its host, which are none of its business."""
    container = machine(LAMBDA, may_mount=False, why_no_mount="it is a container", free=int(400e9))
    assert paths(volume("local-nvme"), container) == ("folder", [])
    with pytest.raises(BoxError, match=r"it is a container\), and where /mnt/cache lies 400 GB are free, less than"):
        decide(volume(size_gb=1000), container)
    # Once taken it stays, however full it has become.
    assert decide(volume(), dataclasses.replace(container, free=0, taken=True)).how == "folder"


CONTENT = [
    ({"mounts": ["/data"]}, "is in use at /data"),
    ({"mountpoints": ["[SWAP]"], "TYPE": "swap"}, r"is in use at \[SWAP\]"),
    ({"TYPE": "ext4", "LABEL": "mydata"}, "holds ext4 labelled mydata"),
    ({"TYPE": "swap"}, "holds swap"),
    ({"TYPE": "LVM2_member"}, "holds LVM2_member"),
    ({"TYPE": "linux_raid_member", "LABEL": "other:0"}, "holds linux_raid_member labelled other:0"),
    ({"TYPE": "crypto_LUKS"}, "holds crypto_LUKS"),
    ({"TYPE": "zfs_member", "LABEL": "tank"}, "holds zfs_member labelled tank"),
    ({"TYPE": _disks.UNKNOWN}, "holds content that no program knows"),
    ({"PTTYPE": "gpt"}, r"has a partition table \(gpt\)"),
    ({"children": [entry("vdb1", 10, "part")], "PTTYPE": "dos"}, "holds /dev/vdb1"),
    ({"children": [entry("dm-0", 10, "lvm")]}, "holds /dev/dm-0"),
    ({"ro": True}, "can only be read"),
    ({"rm": "1"}, "is removable"),
]


@pytest.mark.parametrize(("content", "words"), CONTENT, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("source", ["attached", "ewr-5a1e", "/dev/vdb"])
def test_a_disk_with_anything_on_it_is_left_alone(content: Entry, words: str, source: str) -> None:
    """Also when it is named: a slip in a serial number must not cost anybody's data."""
    if "mounts" in content:
        content = {"mountpoints": content["mounts"]}
    found = machine(with_content(VULTR, "vdb", **content))
    with pytest.raises(BoxError, match=words) as error:
        decide(volume(source), found)
    assert "Nothing was formatted" in str(error.value)
    # What was noted before counts for gpuyard's own leavings only.
    if content.get("TYPE") != _disks.UNKNOWN:
        with pytest.raises(BoxError, match=words):
            decide(volume(source), dataclasses.replace(found, unfinished=("/dev/vdb",)))


def test_what_is_no_attached_volume_is_none() -> None:
    """Memory, and what a machine has itself, are not what a cloud has attached."""
    others = [entry("zram0", 400), entry("nbd0", 400), entry("sdz", 4000, tran="sata")]
    with pytest.raises(BoxError, match="no such thing as an attached volume with nothing on it; there are /dev/zram0"):
        decide(volume(), machine(others))
    assert paths(volume(), machine([*others, *VULTR])) == ("format", ["/dev/vdb"])
    assert paths(volume("/dev/sdz"), machine(others)) == ("format", ["/dev/sdz"])


def test_the_disk_of_the_system_is_never_taken() -> None:
    for source in ("/dev/vda", "attached"):
        with pytest.raises(BoxError, match=r"/dev/vda .* holds the running system"):
            decide(volume(source), machine(VULTR[:1]))
    with pytest.raises(BoxError, match="a local NVMe disk with nothing on it; there are /dev/vda"):
        decide(volume("local-nvme"), machine(VULTR[:1]))
    with pytest.raises(BoxError, match="there are no disks at all"):
        decide(volume(), machine([]))


def test_what_carries_the_label_is_mounted_and_never_formatted() -> None:
    ours = with_content(VULTR, "vdb", TYPE="ext4", LABEL="gy-cache", UUID="u-1")
    assert paths(volume(), machine(ours)) == ("mount", ["/dev/vdb"])
    mounted = machine(with_content(ours, "vdb", mountpoints=["/mnt/cache"]), mounted="/dev/vdb")
    assert paths(volume(), mounted) == ("use", ["/dev/vdb"])
    # On another machine the same volume may be called otherwise, and be a partition that its owner has labelled.
    part = entry("sdq1", 900, "part", TYPE="ext4", LABEL="gy-cache")
    assert paths(volume(), machine([*LAMBDA, entry("sdq", 900, PTTYPE="gpt", children=[part])])) == (
        "mount",
        ["/dev/sdq1"],
    )
    with pytest.raises(BoxError, match="size_gb=2000 is more than /dev/vdb has, 1074 GB: let the volume grow"):
        decide(volume(size_gb=2000), machine(ours))
    with pytest.raises(BoxError, match="file_system=xfs is not what /dev/vdb has, with data in it: say ext4"):
        decide(volume(file_system="xfs"), machine(ours))
    with pytest.raises(BoxError, match="is mounted at /elsewhere already"):
        decide(volume(), machine(with_content(ours, "vdb", mountpoints=["/elsewhere"])))
    with pytest.raises(BoxError, match="/dev/vdb and /dev/vdc both carry the label gy-cache"):
        decide(volume(), machine([*ours, {**ours[1], "name": "vdc", "path": "/dev/vdc"}]))
    with pytest.raises(BoxError, match="nfs:/x is mounted at /mnt/cache, where /dev/vdb belongs"):
        decide(volume(), machine(ours, mounted="nfs:/x"))


def test_what_somebody_else_has_mounted_there_is_used_as_it_is() -> None:
    assert decide(volume(), machine(VULTR, mounted="nfs:/x", free=int(400e9))).how == "folder"
    with pytest.raises(BoxError, match="nfs:/x is mounted there, and where /mnt/cache lies 1 GB are free"):
        decide(volume(), machine(VULTR, mounted="nfs:/x", free=int(1e9)))


def raid(with_array: bool = True, label: str = "any:gy-cache", **content: Any) -> list[Entry]:
    array = [entry("md127", 750, "raid0", **content)] if with_array else []
    return [
        {**one, "TYPE": "linux_raid_member", "LABEL": label, "children": array} if "nvme0" in one["name"] else one
        for one in GCP
    ]


def test_an_array_is_recognised_after_a_reboot() -> None:
    wanted = volume("local-nvme", 600)
    assert paths(wanted, machine(raid(TYPE="ext4", LABEL="gy-cache"))) == ("mount", ["/dev/md127"])
    assert paths(wanted, machine(raid(with_array=False))) == ("assemble", ["/dev/nvme0n1", "/dev/nvme0n2"])
    with pytest.raises(BoxError, match="holds linux_raid_member labelled host:data"):
        decide(wanted, machine(raid(with_array=False, label="host:data")))
    with pytest.raises(BoxError, match="its array /dev/md127 holds xfs labelled other, so it is left alone"):
        decide(wanted, machine(raid(TYPE="xfs", LABEL="other")))


def test_what_was_cut_off_is_gone_on_with() -> None:
    wanted = volume("local-nvme", 600)
    ids = ("google-local-nvme-ssd-0", "google-local-nvme-ssd-1")
    # The array is made and has no file system yet, or half of one.
    assert paths(wanted, machine(raid(), GCP_IDS)) == ("format", ["/dev/md127"])
    half = machine(raid(TYPE=_disks.UNKNOWN), GCP_IDS)
    assert paths(wanted, dataclasses.replace(half, unfinished=ids)) == ("format", ["/dev/md127"])
    with pytest.raises(BoxError, match="holds content that no program knows, so it is left alone"):
        decide(wanted, half)
    # A single disk that holds half a file system.
    torn = machine(with_content(VULTR, "vdb", TYPE=_disks.UNKNOWN), unfinished=("/dev/vdb",))
    assert paths(volume(), torn) == ("format", ["/dev/vdb"])


def test_sizes_and_choices_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        BoxError, match=r"more than there is free: /dev/nvme2n1 .*MT2.*; /dev/nvme0n1 holds the running"
    ):
        decide(volume("local-nvme", 5000), machine(BARE_METAL))
    two = machine([*VULTR, entry("vdc", 1000, serial="ewr-6b")])
    with pytest.raises(BoxError, match=r"several attached volumes are empty and large enough: .*: ewr-5a1e or ewr-6b"):
        decide(volume(), two)
    # The size may tell which is meant.
    assert paths(volume(size_gb=1200), machine([*VULTR, entry("vdc", 2000)])) == ("format", ["/dev/vdc"])


def test_fstab_has_one_line_a_volume() -> None:
    old = "# /etc/fstab\nUUID=root / ext4 defaults 0 1\nUUID=b /boot/efi vfat umask=0077 0 1"
    first = _disks.with_volume(old, volume(), "u-1")
    assert first.startswith(f"{old}\nUUID=u-1 /mnt/cache ext4 defaults,noatime,nofail,")
    assert _disks.with_volume(first, volume(), "u-1") == first
    changed = _disks.with_volume(first, volume(mount="/mnt/my cache"), "u-2")
    assert "u-1" not in changed and "UUID=u-2 /mnt/my\\040cache ext4" in changed
    with pytest.raises(BoxError, match="fstab has a line for /mnt/cache that is not gpuyard's"):
        _disks.with_volume("UUID=x /mnt/cache ext4 defaults 0 2\n", volume(), "u-1")


def test_what_fstab_names_and_is_not_mounted(tmp_path: Any) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(
        "UUID=a / ext4 defaults 0 1\nproc /proc proc defaults 0 0\nUUID=b /no/such\\040place ext4 nofail 0 2\n"
        "UUID=c /no/cd iso9660 noauto 0 0\nUUID=d none swap sw 0 0\nUUID=e /no/ours xfs nofail,x-gpuyard.volume=x 0 2\n"
    )
    assert _disks.unmounted(str(fstab)) == ["/no/such place", "/no/ours"]
    assert _disks.unmounted(str(fstab), ours=True) == ["/no/ours"]
    assert _disks.unmounted(str(fstab), at="/no/ours/below") == ["/no/ours"]
    assert _disks.unmounted(str(fstab), at="/no/our") == [] == _disks.unmounted(str(tmp_path / "none"))


def test_what_the_cloud_mounts_itself_is_used_as_it_is_and_nothing_else() -> None:
    """It may be nearly full: what is free says nothing of its size."""
    wanted = volume("mounted")
    assert decide(wanted, machine(VULTR, mounted="nfs:/x", free=0)).how == "folder"
    assert decide(wanted, dataclasses.replace(machine([], mounted="/dev/sdb"), may_mount=False, free=0)).how == "folder"
    with pytest.raises(BoxError, match="nothing is mounted at /mnt/cache, where the cloud was to mount it"):
        decide(wanted, machine(VULTR))
