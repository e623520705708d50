#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_packages
short_description: Have a list of Debian or Ubuntu packages, quickly
description:
  - Asks dpkg for all packages at once, which takes a few hundredths of a second, and installs what is missing in one
    transaction.
  - Fetches the package lists only when something is missing, and they are too old or, as in many container images, not
    there at all although the folder looks fresh. That is where P(ansible.builtin.apt#module) with a C(cache_valid_time)
    fails.
  - Waits for a package manager that is already at work, as on a cloud machine that upgrades itself at first boot.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  names:
    description: The packages. V(name=version) asks for a version, in which V(*) stands for anything.
    type: list
    elements: str
    required: true
  cache_valid_time:
    description: The age in seconds beyond which the package lists are fetched again before something is installed.
    type: int
    default: 86400
  lock_timeout:
    description: How long to wait for another package manager run to end, in seconds.
    type: int
    default: 600
  install_recommends:
    description: Whether to install what the packages merely recommend.
    type: bool
    default: false
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
  gpuyard.cloud.debian_packages:
    names: [build-essential, tmux]
"""

RETURN = r"""
installed:
  description: The packages that were missing and are installed now, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [tmux]
"""

import fnmatch
import re
import shutil
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

LISTS = Path("/var/lib/apt/lists")
LOCK_POLL_S = 5.0
QUERY = "${binary:Package}\\t${db:Status-Status}\\t${Version}\\t${Provides}\\n"


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
    times = [file.stat().st_mtime for file in LISTS.glob("*_Packages*")]
    # apt keeps the server's time on the lists; the folder has the time of the last update.
    return time.time() - max(LISTS.stat().st_mtime, *times) if times else float("inf")


def run_apt(module: AnsibleModule, command: list[str], *, purpose: str, lock_timeout: float) -> None:
    """Run apt-get, and run it again for as long as another one holds a lock.

    ``DPkg::Lock::Timeout`` covers dpkg's locks only, not the one on the package lists, which ``update`` takes.
    """
    environment = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C.UTF-8"}
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            _box.run(module, command, purpose=purpose, environment=environment)
            return
        except _box.BoxError as error:
            if "Could not get lock" not in str(error) or time.monotonic() >= deadline:
                raise explain(error) from error
        time.sleep(min(LOCK_POLL_S, max(0.0, deadline - time.monotonic())))


def explain(error: _box.BoxError) -> _box.BoxError:
    """Return the sentence that apt's last lines come down to."""
    unknown = re.findall(r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate", str(error))
    if unknown:
        names = ", ".join(sorted({name for pair in unknown for name in pair if name}))
        return _box.BoxError(f"The package sources of this machine have no package {names}.")
    if "Could not get lock" in str(error):
        return _box.BoxError("Another package manager run did not end in time: look for apt or dpkg on the machine.")
    return error


def work(module: AnsibleModule) -> dict[str, Any]:
    """Install what is missing, or in check mode say what that is."""
    options = module.params
    names = list(dict.fromkeys(options["names"]))
    if not names:
        return {"changed": False, "installed": []}
    if not shutil.which("apt-get") or not shutil.which("dpkg-query"):
        raise _box.BoxError(
            f"This machine has no apt, and only Debian and Ubuntu are served: install {', '.join(names)} otherwise "
            "and leave them out of the list."
        )
    purpose = "Asking dpkg for the installed packages"
    before = parse(_box.run(module, ["dpkg-query", "--show", f"--showformat={QUERY}"], purpose=purpose))
    lacking = missing(names, before)
    if lacking and not module.check_mode:
        apt = [
            "apt-get",
            "-q",
            "-y",
            "-o",
            f"DPkg::Lock::Timeout={options['lock_timeout']}",
            "-o",
            "Acquire::Retries=3",
        ]
        recommends = "--install-recommends" if options["install_recommends"] else "--no-install-recommends"
        timeout = options["lock_timeout"]
        if lists_age_s() > options["cache_valid_time"]:
            run_apt(module, [*apt, "update"], purpose="Fetching package lists", lock_timeout=timeout)
        purpose = f"Installing {', '.join(lacking)}"
        run_apt(module, [*apt, "install", recommends, "--", *lacking], purpose=purpose, lock_timeout=timeout)
    return {
        "changed": bool(lacking),
        "installed": lacking,
        "diff": {
            "before": {"missing": lacking},
            "after": {"missing": []},
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "cache_valid_time": {"type": "int", "default": 86400},
            "lock_timeout": {"type": "int", "default": 600},
            "install_recommends": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
