# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes on real block devices: files behind loop devices, real file systems, real mounts (B16, V5)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuyard.cloud.plugins.modules import data_disks

SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": SBIN})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


class Yard:
    """Loop devices, and a folder in which a volume is mounted."""

    def __init__(self, folder: Path, run_module: Any) -> None:
        self.folder, self.mount, self.fstab = folder, folder / "mnt", folder / "fstab"
        self.run_module = run_module
        self.devices: list[str] = []

    def image(self, device: str) -> Path:
        return self.folder / f"disk{self.devices.index(device)}"

    def disk(self, megabytes: int) -> str:
        """Return a new block device that holds nothing."""
        image = self.folder / f"disk{len(self.devices)}"
        with image.open("wb") as stream:
            stream.truncate(megabytes << 20)
        self.devices.append(call("losetup", "--find", "--show", str(image)))
        return self.devices[-1]

    def have(self, *devices: str, check: bool = False, **more: Any) -> dict[str, Any]:
        volume = {"mount": str(self.mount), "source": "local-nvme", "size_gb": 0.05, "file_system": "ext4", **more}
        result: dict[str, Any] = self.run_module(
            "data_disks",
            check=check,
            volumes={"cache": volume},
            devices=list(devices or self.devices),
            record=str(self.folder / "volumes.json"),
        )
        return result

    def killed(self, program: str, script: str, **more: Any) -> None:
        """Bring the volume with ``script`` in place of a program, in a process that the script ends with SIGKILL."""
        place = self.folder / "bin"
        place.mkdir(exist_ok=True)
        (place / program).write_text(f"#!/bin/sh\n{script}\nkill -9 $PPID\n")
        (place / program).chmod(0o755)
        child = os.fork()
        if not child:
            os.environ["PATH"] = f"{place}:{SBIN}"
            with contextlib.suppress(BaseException):
                self.have(**more)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        shutil.rmtree(place)

    def down(self) -> None:
        """Unmount, as a reboot does."""
        if os.path.ismount(self.mount):
            call("umount", str(self.mount))


@pytest.fixture
def yard(tmp_path: Path, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    made = Yard(tmp_path, run_module)
    monkeypatch.setattr(data_disks, "FSTAB", str(made.fstab))
    monkeypatch.setattr(data_disks, "_MEASURED_S", 0.05)
    try:
        made.disk(64)
    except (AssertionError, FileNotFoundError) as error:
        pytest.skip(f"there are no loop devices here: {error}")
    yield made
    made.down()
    if made.mount.exists():
        subprocess.run(["chattr", "-i", str(made.mount)], check=False, capture_output=True)
    for device in made.devices:
        call("losetup", "--detach", device)


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_disk_is_formatted_mounted_and_comes_back(yard: Yard) -> None:
    device = yard.devices[0]
    empty = content(yard.image(device))
    predicted = yard.have(check=True)
    assert predicted["actions"][0] == f"format {device} (0.06711 GB) with ext4 for volume cache"
    assert content(yard.image(device)) == empty and not yard.mount.exists() and not yard.fstab.exists()
    first = yard.have()
    assert first["actions"] == predicted["actions"] and os.path.ismount(yard.mount)
    assert first["volumes"]["cache"]["device"] == device and first["volumes"]["cache"]["read_mb_s"] > 0
    assert first["summary"][0].startswith("Volume cache: 0.05") and "MB/s" in first["summary"][0]
    line = yard.fstab.read_text()
    assert line.startswith(f"UUID={call('blkid', '-s', 'UUID', '-o', 'value', device)} {yard.mount} ext4 ")
    (yard.mount / "kept").write_text("data")
    again = yard.have()
    assert not again["changed"] and again["actions"] == [] and again["diff"]["before"] == again["diff"]["after"]
    assert again["volumes"]["cache"]["read_mb_s"] == first["volumes"]["cache"]["read_mb_s"]  # measured once
    yard.down()
    if subprocess.run(["chattr", "+i", yard.fstab], check=False).returncode == 0:  # not every file system can do that
        call("chattr", "-i", str(yard.fstab))
        with pytest.raises(PermissionError):
            (yard.mount / "lost").write_text("on the disk below")
    assert yard.have()["actions"] == [f"mount {device} at {yard.mount}"]
    assert (yard.mount / "kept").read_text() == "data" and yard.fstab.read_text() == line


def test_a_disk_with_data_survives_byte_for_byte(yard: Yard) -> None:
    swap, data, table, raw = yard.devices[0], yard.disk(64), yard.disk(64), yard.disk(64)
    call("mkswap", swap)
    call("mkfs.ext4", "-q", "-L", "mydata", data)
    with open(table, "r+b") as stream:  # one partition that begins at 1 MiB
        stream.seek(446)
        stream.write(bytes.fromhex("80 00 00 00 83 00 00 00 00 08 00 00 00 a0 00 00"))
        stream.seek(510)
        stream.write(b"\x55\xaa")
    with open(raw, "r+b") as stream:  # no signature, and nothing at its beginning and end
        stream.seek(32 << 20)
        stream.write(os.urandom(1 << 20))
    before = [content(yard.image(device)) for device in yard.devices]
    result = yard.have()
    assert result["failed"]
    for words in ("holds swap", "holds ext4 labelled mydata", "has a partition table (dos)", "content that no program"):
        assert words in result["msg"], result["msg"]
    empty = yard.disk(64)
    assert yard.have()["volumes"]["cache"]["device"] == empty
    assert [content(yard.image(device)) for device in yard.devices[:-1]] == before


def test_a_disk_that_the_kernel_holds_is_not_formatted(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is known of its content: what blkid and lsblk say may be wrong."""
    device = yard.devices[0]
    call("mkfs.ext4", "-q", "-L", "mydata", device)
    elsewhere = yard.folder / "elsewhere"
    elsewhere.mkdir()
    call("mount", device, str(elsewhere))
    before = content(yard.image(device))
    try:
        empty = (data_disks.Disk(device, "loop", 64 << 20),)
        monkeypatch.setattr(data_disks, "find_disks", lambda *_: empty)
        assert f"{device} is in use" in yard.have()["msg"]
        assert content(yard.image(device)) == before
    finally:
        call("umount", str(elsewhere))


def test_local_disks_that_were_changed_for_empty_ones_are_formatted_anew(yard: Yard) -> None:
    """As after a stop at a cloud whose local disks end with it: fstab names a file system that is gone."""
    yard.have()
    yard.down()
    changed = yard.disk(64)
    result = yard.have(changed)
    assert result["actions"][0].startswith(f"format {changed}") and os.path.ismount(yard.mount)
    [line] = yard.fstab.read_text().splitlines()
    assert line.startswith(f"UUID={call('blkid', '-s', 'UUID', '-o', 'value', changed)} ")


@pytest.mark.parametrize(
    ("program", "script"),
    [
        ("mount", ""),  # between mkfs and the mount
        ("mkfs.ext4", "dd if=/dev/urandom of=$6 bs=64k count=16 2> /dev/null"),  # in the middle of mkfs
        ("mkfs.ext4", '/usr/sbin/mkfs.ext4 "$@"; dd if=/dev/urandom of=$6 bs=1k seek=5 count=500 2> /dev/null'),
    ],
)
def test_cut_off_by_a_kill_the_next_run_repairs_it(yard: Yard, program: str, script: str) -> None:
    yard.killed(program, script)
    assert not os.path.ismount(yard.mount)
    result = yard.have()
    assert os.path.ismount(yard.mount), result
    assert yard.fstab.read_text().count("\n") == 1
    uuid = call("blkid", "-s", "UUID", "-o", "value", yard.devices[0])
    assert uuid in yard.fstab.read_text()
    assert not yard.have()["changed"]


def test_a_volume_that_has_grown_has_its_file_system_grown(yard: Yard) -> None:
    # ext4 needs CAP_SYS_RESOURCE to grow while it is mounted, which a container of a builder rarely has.
    if not shutil.which("mkfs.xfs", path=SBIN):
        pytest.skip("xfsprogs is not installed")
    device = yard.disk(320)
    yard.have(device, file_system="xfs")
    (yard.mount / "kept").write_text("data")
    before = os.statvfs(yard.mount).f_blocks
    with yard.image(device).open("r+b") as stream:
        stream.truncate(480 << 20)
    call("losetup", "--set-capacity", device)
    grown = yard.have(device, file_system="xfs")
    assert grown["actions"] == ["grow the file system of volume cache from 0.3355 GB"]
    assert os.statvfs(yard.mount).f_blocks > before * 1.4 and (yard.mount / "kept").read_text() == "data"
    assert not yard.have(device, file_system="xfs")["changed"]
    assert "file_system=ext4 is not what" in yard.have(device)["msg"]


def test_several_disks_become_one_array(yard: Yard) -> None:
    """RAID 0 of two, assembled again after a stop."""
    if not Path("/proc/mdstat").exists() or not shutil.which("mdadm", path=SBIN):
        pytest.skip("this kernel makes no arrays, or mdadm is not installed")
    yard.disk(64)
    made = yard.have(size_gb=0.1)
    (yard.mount / "kept").write_text("data")
    assert not yard.have(size_gb=0.1)["changed"]
    yard.down()
    call("mdadm", "--stop", made["volumes"]["cache"]["device"])
    back = yard.have(size_gb=0.1)
    assert back["actions"][0].startswith("assemble the RAID 0 of") and (yard.mount / "kept").read_text() == "data"
    yard.down()
    call("mdadm", "--stop", back["volumes"]["cache"]["device"])


def test_files_that_a_mount_would_hide_are_not_hidden(yard: Yard) -> None:
    yard.mount.mkdir()
    (yard.mount / "old").write_text("data")
    assert "mnt holds files of its own, which the volume would hide" in yard.have()["msg"]
    assert not os.path.ismount(yard.mount)


def test_what_is_missing_is_named_before_anything_is_touched(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = content(yard.image(yard.devices[0]))
    monkeypatch.setattr(data_disks.shutil, "which", lambda *_, **__: None)
    yard.disk(64)
    assert yard.have(check=True, size_gb=0.1, file_system="xfs")["packages"] == ["mdadm", "xfsprogs"]
    assert "mkfs.xfs is missing on this machine: install the package xfsprogs" in yard.have(file_system="xfs")["msg"]
    assert content(yard.image(yard.devices[0])) == empty


def test_in_a_container_a_folder_is_used(run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is mounted there, and the disks of its host are not looked at."""
    monkeypatch.setattr(data_disks, "why_no_mount", lambda: "it is a container")
    monkeypatch.setattr(data_disks, "find_disks", lambda *_: pytest.fail("looked at disks"))
    monkeypatch.setattr(data_disks, "_MEASURED_S", 0.05)
    place = tmp_path / "cache"

    def have(size_gb: float = 0.01, **more: Any) -> dict[str, Any]:
        volume = {"mount": str(place), "source": "attached", "size_gb": size_gb, "file_system": "ext4"}
        result: dict[str, Any] = run_module(
            "data_disks", volumes={"cache": volume}, record=str(tmp_path / "volumes.json"), **more
        )
        return result

    predicted = have(check=True)
    assert predicted["actions"] and not place.exists()
    made = have()
    assert made["actions"] == predicted["actions"] and place.is_dir() and made["volumes"]["cache"]["device"] == ""
    assert f"Volume cache: the folder {place} of this machine's disk, writes " in made["summary"][0]
    assert not have()["changed"]
    assert "it is a container), and where" in have(1e6)["msg"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mount": "cache"}, "mount=cache must be an absolute path"),
        ({"mount": "/etc"}, "mount=/etc is a folder that the system"),
        ({"size_gb": "much"}, "size_gb=much must be a positive number"),
        ({"file_system": "ntfs"}, "file_system=ntfs must be ext4 or xfs"),
        ({"colour": "red"}, "must say mount, source, size_gb and file_system"),
    ],
)
def test_options_that_cannot_be_are_named(run_module: Any, change: dict[str, Any], words: str) -> None:
    volume = {"mount": "/mnt/cache", "source": "attached", "size_gb": 1, "file_system": "ext4", **change}
    assert words in run_module("data_disks", volumes={"cache": volume})["msg"]
    assert "at most nine" in run_module("data_disks", volumes={"much-too-long": volume})["msg"]
