#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: base_system
short_description: Bring a fresh Debian or Ubuntu machine to a base that the rest can rely on
description:
  - Waits for C(cloud-init) where there is one, and for a package manager that is already at work, as on a cloud machine
    that upgrades itself at first boot.
  - Asks dpkg for all packages at once, which takes a few hundredths of a second, and installs what is missing in one
    transaction. It goes on when the connection is lost, and the next run follows it.
  - Fetches the package lists only when something is missing, and they are too old or, as in many container images, not
    there at all although the folder looks fresh. That is where P(ansible.builtin.apt#module) with a C(cache_valid_time)
    fails.
  - Repairs a package manager run that was interrupted.
  - Sets locale, time zone and the limit of open files, and refuses a machine whose clock is wrong.
  - Where the machine's image puts logins into tmux, as those of Vast.ai do, switches that off.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  packages:
    description: The packages. V(name=version) asks for a version, in which V(*) stands for anything.
    type: list
    elements: str
    default: []
  cache_valid_time:
    description: The age in seconds beyond which the package lists are fetched again before something is installed.
    type: int
    default: 86400
  lock_timeout:
    description: How long to wait for another package manager run to end, in seconds.
    type: int
    default: 600
  boot_timeout:
    description: How long to wait for C(cloud-init) to end, in seconds.
    type: int
    default: 600
  install_recommends:
    description: Whether to install what the packages merely recommend.
    type: bool
    default: false
  locale:
    description:
      - The locale for logins, a UTF-8 one. One that the machine lacks is generated.
      - Empty leaves the machine's own.
    type: str
    default: C.UTF-8
  timezone:
    description: The time zone, such as V(UTC) or V(Europe/Berlin). Empty leaves the machine's own.
    type: str
    default: UTC
  open_files:
    description:
      - How many files a process may have open, for logins from then on. Never more than the machine allows. V(0) leaves
        the machine's own limit.
    type: int
    default: 1048576
  now:
    description:
      - The right time, in seconds since 1970. A machine whose clock differs by more than O(clock_tolerance) is refused.
      - Without it the clock is not looked at.
    type: float
  clock_tolerance:
    description: How far the clock may be off, in seconds.
    type: int
    default: 300
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have compilers and tmux
  gpuyard.cloud.base_system:
    packages: [build-essential, tmux]
    now: "{{ now().timestamp() }}"
"""

RETURN = r"""
installed:
  description: The packages that were missing and are installed now, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [tmux]
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [install tmux, set the time zone UTC]
"""

import fnmatch
import os
import pwd
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

ROOT = Path("/")
LOCK_POLL_S = 5.0
QUERY = "${binary:Package}\\t${db:Status-Status}\\t${Version}\\t${Provides}\\n"
APT_SLOT = "apt"
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C.UTF-8"}
UNKNOWN = re.compile(
    r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate"
    r"|Version '\S+' for '(\S+)' was not found|Couldn't find any package by \w+ '(\S+)'"
)
UNREACHABLE = re.compile(
    r"(?:Could not|Temporary failure) (?:resolve|resolving|connect to)[^\n]*|[^\n]*(?:Network is unreachable"
    r"|Connection refused|Connection timed out)[^\n]*"
)
FULL = re.compile(r"No space left on device|don't have enough free space")
HOLDER = re.compile(r"held by process (\d+)(?: \((.+?)\))?")
# What undoes an interrupted run, by what apt says of it.
REPAIRS = {
    "dpkg was interrupted": ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"],
    "--fix-broken install": ["apt-get", "-q", "-y", "--fix-broken", "install"],
}
# Where images decide that a login lands in tmux.
LOGIN_SCRIPTS = ("etc/bash.bashrc", "etc/profile", "etc/profile.d/*.sh")
HOME_SCRIPTS = (".bashrc", ".bash_profile", ".profile")
NO_TMUX = ".no_auto_tmux"


def parse(listing: str) -> dict[str, str]:
    """Return name → version of what is installed; a package that another one provides has the version ``""``."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, status, version, provides = line.split("\t")
        if status == "installed":
            found[name] = found[name.partition(":")[0]] = version
            for provided in provides.split(","):
                found.setdefault(provided.strip().partition(" ")[0], "")
    return found


def missing(names: list[str], found: dict[str, str]) -> list[str]:
    """Return those of ``names`` that ``found`` does not satisfy."""
    lacking = []
    for wanted in names:
        name, _sign, version = wanted.partition("=")
        if name not in found or (version and not fnmatch.fnmatch(found[name], version)):
            lacking.append(wanted)
    return lacking


def lists_age_s() -> float:
    """Return the age of the newest package list in seconds; infinite when there is none."""
    lists = ROOT / "var/lib/apt/lists"
    times = [file.stat().st_mtime for file in lists.glob("*_Packages*")]
    # apt keeps the server's time on the lists; the folder has the time of the last update.
    return time.time() - max(lists.stat().st_mtime, *times) if times else float("inf")


def run_apt(command: list[str], *, purpose: str, lock_timeout: float) -> str:
    """Run apt-get and return its output; repair an interrupted run first, and wait for as long as it is locked.

    ``DPkg::Lock::Timeout`` covers dpkg's locks only, not the one on the package lists, which ``update`` takes.
    """
    deadline = time.monotonic() + lock_timeout
    repaired: list[str] = []
    while True:
        try:
            return run_detached(command, purpose)
        except _box.BoxError as error:
            repair = next((sign for sign in REPAIRS if sign in str(error) and sign not in repaired), None)
            if repair:
                repaired.append(repair)
                run_detached(REPAIRS[repair], "Repairing an interrupted package manager run")
                continue
            if "Could not get lock" not in str(error) or time.monotonic() >= deadline:
                raise explain(error, lock_timeout) from error
        time.sleep(min(LOCK_POLL_S, max(0.0, deadline - time.monotonic())))


def run_detached(command: list[str], purpose: str) -> str:
    """Run a program of the package manager so that nothing ends it in the middle."""
    return _box.detached(
        command, slot=APT_SLOT, key=command, purpose=purpose, environment=ENVIRONMENT, may_be_ended=False
    )


def explain(error: _box.BoxError, lock_timeout: float = 0.0) -> _box.BoxError:
    """Return the sentence that apt's last lines come down to."""
    text = str(error)
    if "Could not get lock" in text:
        holder = HOLDER.search(text)
        process = f"process {holder[1]} ({holder[2] or 'unknown'})" if holder else "another package manager run"
        return _box.BoxError(
            f"The package manager of this machine is locked by {process}, which did not end within {lock_timeout:g} s: "
            "end it on the machine, or wait for its end."
        )
    if FULL.search(text):
        return _box.BoxError(
            "The disk of this machine is full, so its packages could not be installed: free some of it, or ask for "
            "more with disk_gb. The next run goes on from here.",
            disk_full=True,
        )
    names = sorted({name for groups in UNKNOWN.findall(text) for name in groups if name})
    if names:
        return _box.BoxError(
            f"The package sources of this machine have no package {', '.join(names)}: nothing was installed."
        )
    return explain_network(text) or error


def explain_network(text: str) -> _box.BoxError | None:
    """Return the sentence for package sources that cannot be reached, ``None`` where that is not what ``text`` says."""
    reason = UNREACHABLE.search(text)
    if not reason:
        return None
    return _box.BoxError(
        f"The package sources of this machine cannot be reached ({reason[0].strip().removeprefix('W: ')}): look at its "
        "network and at /etc/apt. Nothing was installed."
    )


def wait_for_boot(module: AnsibleModule) -> None:
    """Wait for cloud-init, where there is one that has not ended yet."""
    if (ROOT / "run/cloud-init/result.json").exists() or not shutil.which("cloud-init"):
        return
    timeout: int = module.params["boot_timeout"]
    code, output, errors = _box.execute(module, ["timeout", str(timeout), "cloud-init", "status", "--wait"])
    if code == 124:
        raise _box.BoxError(
            f"cloud-init on this machine did not end within {timeout} s: /var/log/cloud-init-output.log there says "
            "what it waits for."
        )
    if "status: error" in output:
        module.warn(f"cloud-init ended with an error on this machine, see /var/log/cloud-init.log: {errors.strip()}")


def check_clock(module: AnsibleModule) -> None:
    """Raise :class:`BoxError` for a clock that is off by too much."""
    now, tolerance = module.params["now"], module.params["clock_tolerance"]
    if now is None:
        return
    off_s = time.time() - now
    if abs(off_s) > tolerance:
        raise _box.BoxError(
            f"The clock of this machine is {abs(off_s) / 60:.0f} minutes {'ahead of' if off_s > 0 else 'behind'} the "
            f"controller's, and more than {tolerance / 60:g} make TLS and S3 fail: set whichever of the two is wrong."
        )


class Settings:
    """Locale, time zone, limits and logins as they are on this machine, and the steps to the wanted ones."""

    def __init__(self, module: AnsibleModule) -> None:
        options: dict[str, Any] = module.params
        self.module = module
        self.locale: str = options["locale"]
        self.timezone: str = options["timezone"]
        self.open_files = possible_open_files(module, options["open_files"]) if options["open_files"] else 0

    def packages(self) -> list[str]:
        """Return the packages that the wanted settings need."""
        needed = []
        if self.locale and not self.has_locale():
            needed.append("locales")
        if self.timezone and self.timezone_now() != self.timezone and not self.zone.exists():
            needed.append("tzdata")
        return needed

    def steps(self) -> list[tuple[str, Callable[[], None], str, str]]:
        """Return what differs: the action in words, the step, the state before, the state after."""
        steps = []
        if self.locale and (self.locale_now() != self.locale or not self.has_locale()):
            words = f"set the locale {self.locale}"
            steps.append((words, self.set_locale, f"locale {self.locale_now()}", f"locale {self.locale}"))
        if self.timezone and self.timezone_now() != self.timezone:
            words = f"set the time zone {self.timezone}"
            before, after = f"time zone {self.timezone_now()}", f"time zone {self.timezone}"
            steps.append((words, self.set_timezone, before, after))
        if self.open_files and self.limits.parent.is_dir() and self.limits_now() != self.limits_text:
            words = f"set the limit of open files to {self.open_files}"
            steps.append((words, self.set_limits, self.limits_now(), self.limits_text))
        if markers := self.missing_markers():
            words = "keep logins out of tmux"
            steps.append((words, self.set_markers, "", "\n".join(map(str, markers))))
        return steps

    @property
    def locale_file(self) -> Path:
        """The file with the locale for logins; a link to another one on newer releases."""
        return (ROOT / "etc/default/locale").resolve()

    def locale_now(self) -> str:
        """Return the locale for logins."""
        found = re.findall(r'^LANG="?([^"\n]*)"?$', read(self.locale_file), re.MULTILINE)
        return str(found[-1]) if found else ""

    def has_locale(self) -> bool:
        """Return whether the machine has the wanted locale."""
        if self.locale in ("C.UTF-8", "C", "POSIX"):
            return True
        listed = _box.execute(self.module, ["locale", "-a"])[1].split()
        return self.locale.replace("UTF-8", "utf8") in listed or self.locale in listed

    def set_locale(self) -> None:
        """Generate the locale where it is missing, and make it that of logins."""
        if not self.has_locale():
            if not re.fullmatch(r"[\w@.-]+\.UTF-8(@\w+)?", self.locale):
                raise _box.BoxError(f"locale={self.locale} must be C.UTF-8, or a name such as en_US.UTF-8.")
            place = ROOT / "etc/locale.gen"
            lines = read(place).splitlines()
            _box.write_file(place, "".join(f"{line}\n" for line in [*lines, f"{self.locale} UTF-8"]))
            _box.run(self.module, ["locale-gen"], purpose=f"Generating the locale {self.locale}")
            if not self.has_locale():
                raise _box.BoxError(f"locale={self.locale} does not exist on this machine: try C.UTF-8 or en_US.UTF-8.")
        others = [line for line in read(self.locale_file).splitlines() if not line.startswith("LANG=")]
        _box.write_file(self.locale_file, "".join(f"{line}\n" for line in [*others, f"LANG={self.locale}"]))

    @property
    def zone(self) -> Path:
        """The file that describes the wanted time zone."""
        return ROOT / "usr/share/zoneinfo" / self.timezone

    def timezone_now(self) -> str:
        """Return the time zone; a machine without any has UTC."""
        place = ROOT / "etc/localtime"
        if not os.path.lexists(place):
            return "UTC"
        name = str(place.readlink() if place.is_symlink() else place).rpartition("zoneinfo/")[2]
        return "UTC" if name in ("UTC", "Etc/UTC", "UCT", "Zulu", "Etc/UCT") else name

    def set_timezone(self) -> None:
        """Let ``/etc/localtime`` lead to the zone."""
        if not self.zone.is_file():
            raise _box.BoxError(f"timezone={self.timezone} is no time zone of this machine: UTC and Europe/Berlin are.")
        scratch = ROOT / "etc/.localtime.new"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(self.zone)
        scratch.replace(ROOT / "etc/localtime")
        if (ROOT / "etc/timezone").exists():
            _box.write_file(ROOT / "etc/timezone", f"{self.timezone}\n")

    @property
    def limits(self) -> Path:
        """The file with the limits of logins; its folder is there where PAM is."""
        return ROOT / "etc/security/limits.d/90-gpuyard.conf"

    @property
    def limits_text(self) -> str:
        """What the file says. A ``*`` does not mean root."""
        return "".join(f"{who} - nofile {self.open_files}\n" for who in ("*", "root"))

    def limits_now(self) -> str:
        """Return the content of the file."""
        return read(self.limits)

    def set_limits(self) -> None:
        """Write the file."""
        _box.write_file(self.limits, self.limits_text)

    def missing_markers(self) -> list[Path]:
        """Return the files that are missing in homes whose logins land in tmux."""
        users = [entry for entry in pwd.getpwall() if entry.pw_name in ("root", os.environ.get("SUDO_USER"))]
        homes = [ROOT / user.pw_dir.lstrip("/") for user in users]
        for_all = any(NO_TMUX in read(file) for pattern in LOGIN_SCRIPTS for file in ROOT.glob(pattern))
        return [
            home / NO_TMUX
            for home in homes
            if home.is_dir()
            and not (home / NO_TMUX).exists()
            and (for_all or any(NO_TMUX in read(home / name) for name in HOME_SCRIPTS))
        ]

    def set_markers(self) -> None:
        """Make the files, each with the owner of its home."""
        for marker in self.missing_markers():
            marker.touch()
            owner = marker.parent.stat()
            os.chown(marker, owner.st_uid, owner.st_gid)


def read(file: Path) -> str:
    """Return the content of a small text file; empty when there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def possible_open_files(module: AnsibleModule, wanted: int) -> int:
    """Return the largest limit of open files, up to ``wanted``, that a login can be given here.

    PAM refuses the login itself when it may not set what the file says, as in a container without that right.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = int(read(Path("/proc/sys/fs/nr_open")) or hard)
    possible = min(wanted, most)
    if possible <= hard or hard == resource.RLIM_INFINITY:
        return possible
    code = _box.execute(module, ["/bin/sh", "-c", f"ulimit -H -n {possible}"])[0]
    return possible if code == 0 else hard


def install(module: AnsibleModule, lacking: list[str]) -> None:
    """Fetch the package lists where they are old, and install all in one transaction."""
    options = module.params
    timeout = options["lock_timeout"]
    apt = ["apt-get", "-q", "-y", "-o", f"DPkg::Lock::Timeout={timeout}", "-o", "Acquire::Retries=3"]
    # What the packages would ask about files that somebody has changed: these stay.
    apt += ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    recommends = "--install-recommends" if options["install_recommends"] else "--no-install-recommends"
    fetched = ""
    if lists_age_s() > options["cache_valid_time"]:
        fetched = run_apt([*apt, "update"], purpose="Fetching package lists", lock_timeout=timeout)
    purpose = f"Installing {', '.join(lacking)}"
    try:
        run_apt([*apt, "install", recommends, "--", *lacking], purpose=purpose, lock_timeout=timeout)
    except _box.BoxError as error:
        # Lists that could not be fetched are no failure to apt, but why it does not know the packages.
        raise (explain_network(fetched) if "have no package" in str(error) else None) or error from None


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the base to the wanted state, or in check mode say what that would take."""
    check_clock(module)
    if not module.check_mode:
        wait_for_boot(module)
    settings = Settings(module)
    names = list(dict.fromkeys([*module.params["packages"], *settings.packages()]))
    lacking: list[str] = []
    if names:
        if not shutil.which("apt-get") or not shutil.which("dpkg-query"):
            raise _box.BoxError(
                f"This machine has no apt, and only Debian and Ubuntu are served: install {', '.join(names)} otherwise "
                "and leave them out of the list."
            )
        if not module.check_mode:
            _box.take_over(APT_SLOT, None)
        purpose = "Asking dpkg for the installed packages"
        found = _box.run(module, ["dpkg-query", "--show", f"--showformat={QUERY}"], purpose=purpose)
        lacking = missing(names, parse(found))
    if lacking and not module.check_mode:
        install(module, lacking)
    steps = settings.steps()
    if not module.check_mode:
        for _words, step, _before, _after in steps:
            step()
    return {
        "changed": bool(lacking or steps),
        "installed": lacking,
        "actions": [f"install {', '.join(lacking)}"] * bool(lacking) + [words for words, *_rest in steps],
        "diff": {
            "before": {"missing": lacking, "settings": [before for _words, _step, before, _after in steps]},
            "after": {"missing": [], "settings": [after for _words, _step, _before, after in steps]},
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "cache_valid_time": {"type": "int", "default": 86400},
            "lock_timeout": {"type": "int", "default": 600},
            "boot_timeout": {"type": "int", "default": 600},
            "install_recommends": {"type": "bool", "default": False},
            "locale": {"type": "str", "default": "C.UTF-8"},
            "timezone": {"type": "str", "default": "UTC"},
            "open_files": {"type": "int", "default": 1048576},
            "now": {"type": "float"},
            "clock_tolerance": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
