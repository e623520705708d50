# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is missing is found from dpkg's own words, and apt's failures become sentences."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

LISTING = """\
bash\tinstalled\t5.2.15-2+b8\t
gawk\tinstalled\t1:5.2.1-2\tawk, gawk-doc (= 1)
libc6:amd64\tinstalled\t2.36-9\tlibc6-2.36
removed\tconfig-files\t1.0\t
"""


@pytest.fixture
def module(run_module: Any) -> Any:
    return importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.debian_packages")


def test_missing(module: Any) -> None:
    found = module.parse(LISTING)
    assert module.missing(["bash", "awk", "libc6", "libc6:amd64", "gawk=1:5.2*"], found) == []
    assert module.missing(["removed", "tmux", "gawk=2:*", "bash"], found) == ["removed", "tmux", "gawk=2:*"]


def test_apt_failures_become_sentences(module: Any) -> None:
    box = module._box
    said = module.explain(box.BoxError("Installing x failed with exit code 100:\nE: Unable to locate package nosuch\n"))
    assert str(said) == "The package sources of this machine have no package nosuch."
    locked = module.explain(box.BoxError("E: Could not get lock /var/lib/dpkg/lock-frontend"))
    assert "did not end in time" in str(locked)
    other = box.BoxError("something else")
    assert module.explain(other) is other


def test_a_machine_without_apt_is_told_so(run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_module("debian_packages", names=["tmux", "git"])
    assert result["failed"] and "has no apt" in result["msg"] and "install tmux, git otherwise" in result["msg"]
    assert not run_module("debian_packages", names=[])["changed"]


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_everything_in_one_transaction(
    run_module: Any, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for apt-get and dpkg-query; the molecule scenario ``system_packages`` has the real ones."""
    (tmp_path / "listing").write_text(LISTING)
    write_program(tmp_path, "dpkg-query", f"/bin/cat {tmp_path}/listing")
    write_program(tmp_path, "apt-get", f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "LISTS", tmp_path / "lists")
    (tmp_path / "lists").mkdir()
    predicted = run_module("debian_packages", check=True, names=["bash", "tmux", "git"])
    assert predicted["installed"] == ["tmux", "git"] and not (tmp_path / "calls").exists()
    assert run_module("debian_packages", names=["bash", "tmux", "git"], lock_timeout=7)["installed"] == ["tmux", "git"]
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith(" update"), "the folder is fresh, but there are no lists in it"
    assert install.endswith(" install --no-install-recommends -- tmux git")
    assert "DPkg::Lock::Timeout=7" in install
    (tmp_path / "lists/some_Packages.lz4").touch()
    (tmp_path / "calls").unlink()
    run_module("debian_packages", names=["tmux"])
    assert len((tmp_path / "calls").read_text().splitlines()) == 1, "lists that are fresh are not fetched again"
    (tmp_path / "calls").unlink()
    assert not run_module("debian_packages", names=["bash"])["changed"] and not (tmp_path / "calls").exists()


def test_another_apt_is_waited_for(
    run_module: Any, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "listing").write_text(LISTING)
    write_program(tmp_path, "dpkg-query", f"/bin/cat {tmp_path}/listing")
    busy = 'echo "E: Could not get lock /var/lib/apt/lists/lock" >&2; exit 100'
    free_now = f"[ $(/usr/bin/wc -l < {tmp_path}/calls) -gt 2 ]"
    write_program(tmp_path, "apt-get", f"echo x >> {tmp_path}/calls; {free_now} || {{ {busy}; }}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "LISTS", tmp_path / "none")
    monkeypatch.setattr(module, "LOCK_POLL_S", 0.01)
    refused = run_module("debian_packages", names=["tmux"], lock_timeout=0)
    assert refused["failed"] and refused["msg"].startswith("Another package manager run did not end in time")
    (tmp_path / "calls").unlink()
    assert run_module("debian_packages", names=["tmux"], lock_timeout=30)["changed"]
    assert (tmp_path / "calls").read_text().count("x") == 4, "twice refused, then update and install"
