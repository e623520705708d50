# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The data folders end up on the volume, and no file is ever lost on the way."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuyard.cloud.plugins.modules import persistent_links

from gpuyard.box.stages.folders import why_not


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    """Return the options for an empty volume and an empty repository."""
    (tmp_path / "repo").mkdir()
    return {
        "root": str(tmp_path / "volume"),
        "repository": str(tmp_path / "repo"),
        "directories": ["models", "data/out"],
    }


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_creates_and_links_and_is_idempotent(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    first = run_module("persistent_links", **places)
    assert first["changed"]
    assert (tmp_path / "repo/models").readlink() == tmp_path / "volume/models"
    assert (tmp_path / "repo/data/out").readlink() == tmp_path / "volume/data/out"
    write(tmp_path / "repo/models/policy.bin", "weights")
    assert (tmp_path / "volume/models/policy.bin").read_text() == "weights"
    second = run_module("persistent_links", **places)
    assert not second["changed"] and second["actions"] == []
    assert second["diff"]["before"] == second["diff"]["after"]


def test_check_mode_predicts_and_touches_nothing(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "repo/models/a", "1")
    predicted = run_module("persistent_links", check=True, **places)
    assert predicted["changed"] and not (tmp_path / "volume").exists()
    assert (tmp_path / "repo/models").is_dir() and not (tmp_path / "repo/models").is_symlink()
    done = run_module("persistent_links", **places)
    assert done["actions"] == predicted["actions"] and done["diff"] == predicted["diff"]


def test_a_real_folder_is_merged_without_overwriting(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "volume/models/policy.bin", "newer, from the volume")
    write(tmp_path / "volume/models/same.txt", "same")
    write(tmp_path / "volume/models/sub/one", "1")
    write(tmp_path / "repo/models/policy.bin", "older, from the repository")
    write(tmp_path / "repo/models/same.txt", "same")
    write(tmp_path / "repo/models/sub/two", "2")
    write(tmp_path / "repo/models/only-here", "3")
    result = run_module("persistent_links", **places)
    volume = tmp_path / "volume/models"
    found = {path.relative_to(volume).as_posix(): path.read_text() for path in volume.rglob("*") if path.is_file()}
    assert found == {
        "policy.bin": "newer, from the volume",
        "policy.bin.from-repository": "older, from the repository",
        "same.txt": "same",
        "sub/one": "1",
        "sub/two": "2",
        "only-here": "3",
    }
    assert result["conflicts"] == [str(volume / "policy.bin.from-repository")]
    assert (tmp_path / "repo/models").is_symlink()


def brought(tmp_path: Path) -> dict[str, str]:
    """Return the record of what the repository brought, with the file's text in place of a hash that is right."""
    found: dict[str, str] = json.loads((tmp_path / "volume/.gpuyard/brought.json").read_text())
    volume = tmp_path / "volume"
    return {name: text for name in found if found[name] == sha256(text := (volume / name).read_text())}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("source", ["folder", "git"])
def test_what_the_repository_brings_to_the_volume_is_noted(
    run_module: Any, places: dict[str, Any], tmp_path: Path, source: str
) -> None:
    tracked = ["models/conflict", "models/same", "models/sub/new", "data/out/deep/new", "elsewhere"]
    for name in [*tracked, "models/built"]:
        write(tmp_path / "repo" / name, name)
    (tmp_path / "repo/models/link").symlink_to("same")
    write(tmp_path / "volume/models/conflict", "the run's")
    write(tmp_path / "volume/models/same", "models/same")
    if source == "folder":
        write(tmp_path / ".repo.json", json.dumps({"files": dict.fromkeys([*tracked, "models/link"], "")}))
    else:
        for words in (["init", "-q"], ["add", *tracked, "models/link"]):
            subprocess.run(["git", "-C", str(tmp_path / "repo"), *words], check=True)
    assert run_module("persistent_links", check=True, **places)["changed"]
    assert not (tmp_path / "volume/.gpuyard").exists()
    run_module("persistent_links", **places)
    names = ["data/out/deep/new", "models/same", "models/sub/new"]
    assert brought(tmp_path) == {name: name for name in names}
    assert (tmp_path / "volume/models/built").exists()
    file = tmp_path / "volume/.gpuyard/brought.json"
    before = file.stat()
    assert not run_module("persistent_links", **places)["changed"] and file.stat() == before
    # A damaged record is an empty one.
    file.write_text("[" * 100_000)
    (tmp_path / "repo/models").unlink()
    write(tmp_path / "repo/models/same", "models/same")
    run_module("persistent_links", **places)
    assert brought(tmp_path) == {"models/same": "models/same"}


def test_a_merge_that_was_cut_off_has_noted_what_it_moved(
    run_module: Any, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models/a", "models/b"):
        write(tmp_path / "repo" / name, name)
    write(tmp_path / ".repo.json", json.dumps({"files": {"models/a": "", "models/b": ""}}))
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        assert run_module("persistent_links", **places)["failed"]
    run_module("persistent_links", **places)
    assert brought(tmp_path) == {"models/a": "models/a", "models/b": "models/b"}


def test_a_second_conflict_gets_a_name_of_its_own(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        if (tmp_path / "repo/models").is_symlink():
            (tmp_path / "repo/models").unlink()
        write(tmp_path / "repo/models/f", content)
        run_module("persistent_links", **places)
    kept = {path.name: path.read_text() for path in (tmp_path / "volume/models").iterdir()}
    assert kept == {"f": "one", "f.from-repository": "two", "f.from-repository-2": "three"}


def test_across_file_systems_nothing_is_lost(
    run_module: Any, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "repo/models/deep/file", "content")
    write(tmp_path / "repo/models/top", "content")
    (tmp_path / "repo/models/link").symlink_to("top")
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if "repo" in self.parts and "volume" in Path(target).parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    run_module("persistent_links", **places)
    volume = tmp_path / "volume/models"
    assert (volume / "deep/file").read_text() == (volume / "top").read_text() == "content"
    assert str((volume / "link").readlink()) == "top"
    assert sorted(path.name for path in volume.iterdir()) == ["deep", "link", "top"]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on another file system than the repository's, so that a move is a copy."""
    folder = tmp_path / "volume"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("when", ["copytree", "copy2", "fsync", "sync", "rename", "unlink", "rmtree"])
def test_a_move_to_a_real_volume_that_is_killed_loses_nothing(
    run_module: Any, places: dict[str, Any], tmp_path: Path, volume: Path, when: str
) -> None:
    """B16: killed at any of its steps, the next run at the second such step; the one after that brings the rest."""
    wanted = {f"models/{name}": name * 1000 for name in ("a", "deep/b", "deep/c", "deep/er/d", "e")}
    for name, text in wanted.items():
        write(tmp_path / "repo" / name, text)
    (tmp_path / "repo/models/0-link").symlink_to("a")
    owner: Any = {"fsync": os, "sync": os, "rename": Path, "unlink": Path}.get(when, shutil)
    step = getattr(owner, when)

    for number in (1, 2):
        left = iter(range(number - 1))

        def killing(*given: Any, left: Iterator[int] = left, **named: Any) -> Any:
            goes_on = next(left, None) is not None
            if goes_on or when in ("copytree", "copy2"):  # what is copied is there before the end
                result = step(*given, **named)
            if not goes_on:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        child = os.fork()
        if not child:
            setattr(owner, when, killing)
            with contextlib.suppress(BaseException):
                run_module("persistent_links", **places)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert number > 1 or os.WTERMSIG(status) == signal.SIGKILL
    assert not run_module("persistent_links", **places).get("failed")
    models = tmp_path / "repo/models"
    assert models.is_symlink()
    files = [file for file in (volume / "models").rglob("*") if file.is_file()]
    found = {file.relative_to(volume).as_posix(): file.read_text() for file in files}
    assert found == {**wanted, "models/0-link": wanted["models/a"]}
    assert (models / "0-link").is_symlink() and not list(volume.rglob(".*.moving"))


def test_a_root_on_a_volume_that_is_not_mounted_is_refused(
    run_module: Any, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B16: what was written there would lie on the disk below, hidden once the volume is mounted."""
    fstab = tmp_path / "fstab"
    fstab.write_text(f"UUID=a / ext4 defaults 0 1\nUUID=b {tmp_path}/volume ext4 defaults,nofail 0 2\n")
    monkeypatch.setattr(persistent_links, "FSTAB", str(fstab))
    write(tmp_path / "repo/models/a", "only here")
    for root in ("volume", "volume/run-0"):
        result = run_module("persistent_links", **{**places, "root": str(tmp_path / root)})
        assert result["failed"] and f"lies on the volume at {tmp_path}/volume, which" in result["msg"]
    assert not (tmp_path / "volume").exists() and (tmp_path / "repo/models/a").read_text() == "only here"
    assert run_module("persistent_links", **{**places, "root": str(tmp_path / "volumes")})["changed"]


def test_a_link_to_elsewhere_is_turned(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "other/kept", "still here")
    (tmp_path / "repo/models").symlink_to(tmp_path / "other")
    assert run_module("persistent_links", **places)["changed"]
    assert (tmp_path / "repo/models").readlink() == tmp_path / "volume/models"
    assert (tmp_path / "other/kept").read_text() == "still here"


@pytest.mark.parametrize(
    ("directories", "words"),
    [
        (["../models"], "must be a path inside the repository"),
        (["/models"], "must be a path inside the repository"),
        (["."], "must be a path inside the repository"),
        (["data", "data/out"], "'data/out' lies inside 'data'"),
    ],
)
def test_impossible_folders_are_refused(
    run_module: Any, places: dict[str, Any], directories: list[str], words: str
) -> None:
    result = run_module("persistent_links", **{**places, "directories": directories})
    assert result["failed"] and words in result["msg"]


def test_a_folder_below_a_link_to_the_volume_is_there_already(
    run_module: Any, places: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "volume/data/out/weights", "the only copy")
    (tmp_path / "repo/data").symlink_to(tmp_path / "volume/data")
    assert run_module("persistent_links", **places)["actions"] == [f"create {tmp_path}/volume/models", "link models"]
    assert (tmp_path / "repo/data/out/weights").read_text() == "the only copy"


def test_a_link_to_elsewhere_above_a_folder_is_named(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "repo/data").symlink_to("/workspace/data")
    result = run_module("persistent_links", **places)
    assert result["failed"] and "repo/data is a link to /workspace/data, so data/out cannot be linked" in result["msg"]


SYSTEM = [
    "/",
    "/etc",
    "//etc",
    "/etc/../etc",
    "/mnt/../etc/ssh",
    "/etc/ssh/",
    "/var/lib/dpkg",
    "/usr/local/x",
    "/lib64",
]
OTHERS = ["/opt", "/opt/gpuyard", "/opt/gpuyard/src/x", "/root", "/home", "/home/u", "/home/u/.ssh", "/root/.aws/x"]
TAKEN = ["/mnt/persistent", "/mnt", "/workspace", "/data", "/root/x", "/home/u/x", "/tmp/x", "/libra", "/opt/gpuyards"]


def test_a_folder_of_the_system_is_no_volume(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "hidden").symlink_to("/etc")
    refused = [*SYSTEM, *OTHERS, "/tmp", str(tmp_path / "hidden")]
    for root in refused:
        result = run_module("persistent_links", check=True, **{**places, "root": root})
        assert result["failed"] and "would go to the bucket" in result["msg"], root
    # The box's own part says the same of what it is told, and the core of what a workload says.
    assert [root for root in refused if not why_not(root)] == []
    assert [root for root in TAKEN if why_not(root)] == []
    for root in TAKEN:
        assert "failed" not in run_module("persistent_links", check=True, **{**places, "root": root}), root


def test_a_file_in_the_way_is_named(run_module: Any, places: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "repo/models", "a file")
    result = run_module("persistent_links", **places)
    assert result["failed"] and f"{tmp_path}/repo/models is a file" in result["msg"]
    assert (tmp_path / "repo/models").read_text() == "a file"


def test_a_missing_repository_is_named(run_module: Any, places: dict[str, Any]) -> None:
    result = run_module("persistent_links", **{**places, "repository": "/nowhere/at/all"})
    assert result["failed"] and "/nowhere/at/all does not exist" in result["msg"]
