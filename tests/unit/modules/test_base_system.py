# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is missing is found from dpkg's own words, apt's failures become sentences, and settings are put right once."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
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
    return importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.base_system")


def test_missing(module: Any) -> None:
    found = module.parse(LISTING)
    assert module.missing(["bash", "awk", "libc6", "libc6:amd64", "gawk=1:5.2*"], found) == []
    assert module.missing(["removed", "tmux", "gawk=2:*", "bash"], found) == ["removed", "tmux", "gawk=2:*"]


@pytest.fixture(autouse=True)
def root(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the machine's root folder, with no other programs on PATH than those that a test writes."""
    root = tmp_path / "root"
    for folder in ("etc/default", "etc/security/limits.d", "etc/profile.d", "root", "var/lib/apt/lists"):
        (root / folder).mkdir(parents=True)
    for zone in ("UTC", "Europe/Berlin"):
        (root / "usr/share/zoneinfo" / zone).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/share/zoneinfo" / zone).touch()
    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n")
    (root / "etc/security/limits.d/90-gpuyard.conf").write_text("* - nofile 64\nroot - nofile 64\n")
    (root / "var/lib/apt/lists/some_Packages.lz4").touch()
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "LOCK_POLL_S", 0.01)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return root


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that writes a STAND-IN for a program of the machine; each notes how it was called."""
    (tmp_path / "listing").write_text(LISTING)

    def write(name: str, text: str) -> Path:
        file = tmp_path / "bin" / name
        calls = tmp_path / f"{name}.calls"
        file.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{text}\n')
        file.chmod(0o755)
        return calls

    write("dpkg-query", f"/bin/cat {tmp_path}/listing")
    return write


def base(run_module: Any, *packages: str, **options: Any) -> Any:
    return run_module("base_system", **{"packages": list(packages), "open_files": 64, **options})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("E: Unable to locate package nosuch", "have no package nosuch: nothing was installed."),
        ("E: Version '9' for 'git' was not found", "have no package git: nothing was installed."),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", "The disk of this machine is full"),
        ("cannot copy: failed to write (No space left on device)", "The disk of this machine is full"),
        ("Err:1 x\n  Could not connect to mirror:80", "cannot be reached (Could not connect to mirror:80)"),
        (
            "E: Could not get lock /var/lib/dpkg/lock. It is held by process 12 (unattended-upgr)",
            "locked by process 12 (unattended-upgr), which did not end within 5 s",
        ),
        ("E: Could not get lock /x", "locked by another package manager run"),
        ("something else", "something else"),
    ],
)
def test_apt_failures_become_sentences(module: Any, said: str, sentence: str) -> None:
    """U6"""
    assert sentence in str(module.explain(module._box.BoxError(f"Installing x failed:\n{said}"), 5.0))


def test_a_machine_without_apt_is_told_so(run_module: Any) -> None:
    result = base(run_module, "tmux", "git")
    assert result["failed"] and "has no apt" in result["msg"] and "install tmux, git otherwise" in result["msg"]
    assert not base(run_module)["changed"]


def test_everything_in_one_transaction(run_module: Any, program: Any, root: Path) -> None:
    """B5, with stand-ins for apt-get and dpkg-query; the molecule scenario ``base`` has the real ones."""
    calls = program("apt-get", "")
    (root / "var/lib/apt/lists/some_Packages.lz4").unlink()
    predicted = base(run_module, "bash", "tmux", "git", check=True)
    assert predicted["installed"] == ["tmux", "git"] and not calls.exists()
    done = base(run_module, "bash", "tmux", "git", lock_timeout=7)
    assert done["installed"] == ["tmux", "git"] and done["actions"] == ["install tmux, git"]
    update, install = calls.read_text().splitlines()
    assert update.endswith(" update"), "the folder is fresh, but there are no lists in it"
    assert install.endswith(" install --no-install-recommends -- tmux git")
    assert "DPkg::Lock::Timeout=7" in install
    (root / "var/lib/apt/lists/some_Packages.lz4").touch()
    calls.unlink()
    base(run_module, "tmux")
    assert len(calls.read_text().splitlines()) == 1, "lists that are fresh are not fetched again"
    calls.unlink()
    assert not base(run_module, "bash")["changed"] and not calls.exists()


def test_another_apt_is_waited_for(run_module: Any, program: Any, tmp_path: Path) -> None:
    busy = 'echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)" >&2; exit 100'
    calls = program("apt-get", f"[ $(/usr/bin/wc -l < {tmp_path}/apt-get.calls) -gt 2 ] || {{ {busy}; }}")
    refused = base(run_module, "tmux", lock_timeout=0)
    assert refused["failed"] and "is locked by process 7 (apt), which did not end within 0 s" in refused["msg"]
    calls.unlink()
    assert base(run_module, "tmux", lock_timeout=30)["changed"]
    assert len(calls.read_text().splitlines()) == 3, "twice refused"


def test_an_interrupted_run_is_repaired(run_module: Any, program: Any, tmp_path: Path) -> None:
    broken = "echo \"E: dpkg was interrupted, you must manually run 'dpkg --configure -a'\" >&2; exit 100"
    apt = program("apt-get", f"[ -e {tmp_path}/dpkg.calls ] || {{ {broken}; }}")
    dpkg = program("dpkg", "")
    assert base(run_module, "tmux")["changed"]
    assert dpkg.read_text().endswith("--configure -a\n") and len(apt.read_text().splitlines()) == 2
    program("apt-get", broken)
    assert "dpkg was interrupted" in base(run_module, "tmux")["msg"], "it is tried once"


def test_lists_that_cannot_be_fetched_are_the_reason_for_an_unknown_package(
    run_module: Any, program: Any, root: Path
) -> None:
    (root / "var/lib/apt/lists/some_Packages.lz4").unlink()
    update = "echo 'W: Failed to fetch x  Could not resolve host: mirror'; exit 0"
    program(
        "apt-get", f'case "$*" in *update) {update} ;; *) echo "E: Unable to locate package tmux"; exit 100 ;; esac'
    )
    assert "cannot be reached (Could not resolve host: mirror)" in base(run_module, "tmux")["msg"]


def test_cloud_init_is_waited_for_and_not_for_ever(
    run_module: Any, program: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4, with a stand-in for cloud-init."""
    program("timeout", 'limit=$1; shift; exec /usr/bin/timeout "$limit" "$@"')
    calls = program("cloud-init", "/bin/sleep 0.3; echo status: done")
    assert not base(run_module, check=True)["changed"] and not calls.exists()
    begun = time.monotonic()
    assert not base(run_module)["changed"] and time.monotonic() - begun > 0.3
    program("cloud-init", "exec /bin/sleep 60")
    assert "cloud-init on this machine did not end within 1 s" in base(run_module, boot_timeout=1)["msg"]
    program("cloud-init", "echo status: error; exit 1")
    warnings: list[str] = []
    monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda self, text: warnings.append(text))
    assert not base(run_module)["changed"] and "ended with an error" in warnings[0]
    (root / "run/cloud-init").mkdir(parents=True)
    (root / "run/cloud-init/result.json").touch()
    calls.unlink()
    base(run_module)
    assert not calls.exists(), "it has ended long ago"


@pytest.mark.parametrize(("off_s", "words"), [(-660, "11 minutes ahead of"), (660, "11 minutes behind")])
def test_a_wrong_clock_is_a_sentence(run_module: Any, off_s: float, words: str) -> None:
    refused = base(run_module, now=time.time() + off_s)
    assert f"is {words} the controller's, and more than 5 make TLS and S3 fail" in refused["msg"]
    assert not base(run_module, now=time.time() + off_s / 3)["changed"]


def test_settings_are_put_right_once(run_module: Any, root: Path) -> None:
    (root / "etc/locale.conf").write_text("LANG=de_DE.UTF-8\nLC_TIME=C\n")
    (root / "etc/default/locale").unlink()
    (root / "etc/default/locale").symlink_to("../locale.conf")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/America/New_York")
    (root / "etc/timezone").write_text("America/New_York\n")
    (root / "etc/security/limits.d/90-gpuyard.conf").unlink()
    (root / "root/.bashrc").write_text("[ -e ~/.no_auto_tmux ] || exec tmux\n")
    predicted = base(run_module, check=True)
    first = base(run_module)
    assert first["actions"] == predicted["actions"] and len(first["actions"]) == 4
    assert (root / "etc/locale.conf").read_text() == "LC_TIME=C\nLANG=C.UTF-8\n"
    assert (root / "etc/localtime").readlink() == root / "usr/share/zoneinfo/UTC"
    assert (root / "etc/timezone").read_text() == "UTC\n"
    assert (root / "etc/security/limits.d/90-gpuyard.conf").read_text() == "* - nofile 64\nroot - nofile 64\n"
    assert (root / "root/.no_auto_tmux").exists()
    assert not base(run_module)["changed"]
    assert not base(run_module, locale="", timezone="", open_files=0)["changed"], "the machine's own are left alone"
    assert base(run_module, timezone="Europe/Berlin")["actions"] == ["set the time zone Europe/Berlin"]


def test_a_locale_that_is_missing_is_generated(run_module: Any, program: Any, root: Path, tmp_path: Path) -> None:
    (tmp_path / "listing").write_text(LISTING + "locales\tinstalled\t1\t\n")
    program("apt-get", "")
    program("locale", f"[ ! -e {tmp_path}/generated ] || echo en_US.utf8")
    program("locale-gen", f"/usr/bin/touch {tmp_path}/generated")
    assert base(run_module, locale="en_US.UTF-8")["changed"]
    assert (root / "etc/locale.gen").read_text() == "en_US.UTF-8 UTF-8\n"
    assert (root / "etc/default/locale").read_text() == "LANG=en_US.UTF-8\n"
    assert not base(run_module, locale="en_US.UTF-8")["changed"]


def test_a_limit_that_a_login_could_not_be_given_is_not_asked_for(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PAM would refuse the login."""
    hard = module.resource.getrlimit(module.resource.RLIMIT_NOFILE)[1]
    given = iter([(0, "", ""), (2, "", "Operation not permitted")])
    monkeypatch.setattr(module._box, "execute", lambda *_: next(given))
    monkeypatch.setattr(module, "read", lambda _: str(hard + 10))
    assert module.possible_open_files(None, 64) == 64
    assert module.possible_open_files(None, 2**40) == hard + 10, "no more than the kernel has"
    assert module.possible_open_files(None, 2**40) == hard
