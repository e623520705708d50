#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lean_toolchain
short_description: Bring an exact Lean 4 toolchain to a machine with elan
description:
  - Installs C(elan) from its pinned and checksummed release, never by piping a script into a shell, or uses the one
    that a package has installed (O(elan)).
  - Installs one toolchain, makes it the default, and checks what C(lean) says.
  - A toolchain whose checksum is known is fetched by the module itself, goes on after an interruption, is checked, and
    is put where C(elan) looks for it. C(elan) fetches any other one from Lean's own servers, and verifies no checksum.
  - Puts small launchers for C(elan), C(lean) and C(lake) onto PATH, which work in every kind of shell.
version_added: "0.2.0"
author: gpuyard contributors (@gpuyard)
options:
  toolchain:
    description:
      - The exact toolchain, such as V(leanprover/lean4:v4.27.0), or V(v4.27.0) for short.
      - A channel such as V(stable) is refused, because it names another toolchain every month.
    type: str
  file:
    description: A C(lean-toolchain) file on the machine that holds the toolchain, in place of O(toolchain).
    type: path
  archive:
    description:
      - An archive of the toolchain, in place of the release. A path on the machine, or an C(http) or C(https) address.
      - Its content lies in one folder, as in Lean's own releases. Needs O(sha256).
    type: str
  sha256:
    description: The SHA-256 of the toolchain's archive.
    type: str
  known_sha256:
    description: The accepted SHA-256 sums of releases, by toolchain and by machine, such as V(x86_64).
    type: dict
    default: {}
  mirror:
    description:
      - The server of the releases of C(elan) and Lean, or a mirror of it with the same paths.
      - C(elan) itself can be given no mirror, so from a mirror only toolchains with a known checksum are installed.
    type: str
    default: https://github.com
  elan:
    description: The C(elan) program of a package, such as V(/usr/bin/elan), in place of the pinned release.
    type: path
  elan_version:
    description: The release of C(elan).
    type: str
  elan_sha256:
    description: The accepted SHA-256 sums of the release's archive by machine, such as V(x86_64).
    type: dict
    default: {}
  root:
    description: The folder for E(ELAN_HOME) and for downloads.
    type: path
    default: /opt/gpuyard/lean
  bin_dir:
    description: The folder for the launchers. It should be on PATH.
    type: path
    default: /usr/local/bin
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
notes:
  - Lean's archives are compressed with zstd, so the machine needs the program C(zstd).
"""

EXAMPLES = r"""
- name: Have the toolchain that a repository names
  gpuyard.cloud.lean_toolchain:
    file: /opt/gpuyard/src/prover/lean-toolchain
    elan_version: 4.2.3
    elan_sha256:
      x86_64: [df0b2b3a439961ffcbb3985214365ffe40f49bc871df04dff268c7d8e21ca8b2]

- name: Have a toolchain without a network, with Debian's elan
  gpuyard.cloud.lean_toolchain:
    toolchain: leanprover/lean4:v4.27.0
    archive: /mnt/persistent/lean-4.27.0-linux.tar.zst
    sha256: 056e2dc8564fc064a801e69f3eb18c044b9b546bc8b0e5a2c00247f8a1cb8ce6
    elan: /usr/bin/elan
"""

RETURN = r"""
toolchain:
  description: The toolchain by its whole name.
  type: str
  returned: success
  sample: leanprover/lean4:v4.27.0
lean:
  description: What C(lean --version) says; empty in check mode on a machine without it.
  type: str
  returned: success
  sample: Lean (version 4.27.0, x86_64-unknown-linux-gnu, Release)
elan:
  description: The version of elan; empty in check mode on a machine without it.
  type: str
  returned: success
  sample: 4.2.3
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [install elan 4.2.3, 'install leanprover/lean4:v4.27.0', 'make leanprover/lean4:v4.27.0 the default']
"""

import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils import _download

LAUNCHED = ("elan", "lake", "lean")
# As elan reads a name, but with a version or a date in it (src/elan-dist/src/dist.rs of leanprover/elan 4.2.3).
EXACT = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+:[A-Za-z0-9.-]*\d[A-Za-z0-9.-]*")
SHORT = re.compile(r"v?(\d+\.\d+\.\d+[A-Za-z0-9.-]*)")
OFFICIAL = "leanprover/lean4"
OFFICIAL_SERVER = "https://github.com"


def exact_name(text: str, place: str) -> str:
    """Return the whole name of the toolchain that ``text`` says; ``place`` is where it comes from."""
    if short := SHORT.fullmatch(text):
        return f"{OFFICIAL}:v{short[1]}"
    if not EXACT.fullmatch(text):
        raise _box.BoxError(
            f"{place} is {text[:60]!r}, which is no exact toolchain; write one such as {OFFICIAL}:v4.27.0."
        )
    return text


def wanted_name(options: dict[str, Any]) -> str:
    """Return the whole name of the toolchain that the options ask for."""
    if options["toolchain"]:
        return exact_name(options["toolchain"].strip(), "toolchain")
    file = Path(options["file"])
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        raise _box.BoxError(f"There is no file {file}: file must name the lean-toolchain file of a project.") from None
    return exact_name(text, str(file))


class Toolchain:
    """The toolchain as it is on this machine, and the steps to the wanted one."""

    def __init__(self, module: AnsibleModule) -> None:
        options: dict[str, Any] = module.params
        self.module, self.options = module, options
        self.name = wanted_name(options)
        self.root = Path(options["root"])
        self.home = self.root / "elan"
        self.downloads = self.root / "downloads"
        self.mirror = options["mirror"].rstrip("/")
        self.machine = platform.machine()
        self.programs = Path(options["elan"]).parent if options["elan"] else self.home / "bin"
        # elan puts a toolchain into a folder of this name.
        self.folder = self.home / "toolchains" / self.name.replace("/", "--").replace(":", "---")
        self.unfinished = self.root / f"{self.folder.name}.unfinished"
        self.environment = {
            "ELAN_HOME": str(self.home),
            # A Lean that is already on PATH is none of our business.
            "ELAN_INIT_SKIP_PATH_CHECK": "yes",
            "ELAN_INIT_SKIP_SUDO_CHECK": "yes",
        }

    def run(self, command: list[str], purpose: str) -> str:
        """Run one of elan's programs with its environment, see :func:`_box.run`."""
        return _box.run(self.module, command, purpose=purpose, environment=self.environment)

    def ask(self, *command: str) -> str:
        """Return what a program prints; empty when it is missing or fails."""
        if not Path(command[0]).exists():
            return ""
        try:
            return self.run(list(command), command[0]).strip()
        except _box.BoxError:
            return ""

    def elan(self) -> str | None:
        """Return the version of elan that is here."""
        words = self.ask(str(self.programs / "elan"), "--version").split()
        return words[1] if len(words) > 1 else None

    def lean(self) -> str:
        """Return what the toolchain's ``lean --version`` says, by way of elan."""
        elan = str(self.programs / "elan")
        return self.ask(elan, "run", self.name, "lean", "--version") if self.is_whole() else ""

    def is_whole(self) -> bool:
        """Return whether the toolchain is here; older versions of elan leave a part when they are killed."""
        return (self.folder / "bin/lean").is_file() and not self.unfinished.exists()

    def default(self) -> str | None:
        """Return the toolchain that is used outside of projects."""
        try:
            settings = (self.home / "settings.toml").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r'^default_toolchain = "(.*)"$', settings, re.MULTILINE)
        return found[1] if found else None

    def state(self) -> dict[str, Any]:
        """Return what there is, in the words in which it is wanted."""
        return {
            "elan": self.elan(),
            "toolchain": self.name if self.is_whole() else None,
            "default": self.default(),
            "launchers": sorted(name for name in LAUNCHED if self.launcher_is_right(name)),
        }

    def wanted(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return the wanted state. A package's elan is of the version that it is."""
        if self.options["elan"] and not before["elan"]:
            raise _box.BoxError(f"There is no elan at {self.options['elan']}: have the package elan first.")
        return {
            "elan": before["elan"] if self.options["elan"] else self.options["elan_version"],
            "toolchain": self.name,
            "default": self.name,
            "launchers": sorted(LAUNCHED),
        }

    def launcher(self, name: str) -> str:
        """Return the text of the launcher that lies on PATH."""
        return (
            "#!/bin/sh\n"
            "# Made by gpuyard.cloud.lean_toolchain: elan needs to know where its toolchains are.\n"
            f': "${{ELAN_HOME:={self.home}}}"\n'
            "export ELAN_HOME\n"
            f'exec "{self.programs / name}" "$@"\n'
        )

    def launcher_is_right(self, name: str) -> bool:
        """Return whether the launcher is there with exactly the wanted text."""
        return _box.has_program(Path(self.options["bin_dir"], name), self.launcher(name))

    def install_elan(self) -> None:
        """Fetch, check, unpack and run elan-init; toolchains come afterwards."""
        version, accepted = self.options["elan_version"], self.options["elan_sha256"].get(self.machine)
        if not accepted:
            known = ", ".join(sorted(self.options["elan_sha256"])) or "none"
            raise _box.BoxError(f"elan_sha256 has no checksum for this machine's {self.machine}, only for: {known}.")
        name = f"elan-{self.machine}-unknown-linux-gnu.tar.gz"
        url = f"{self.mirror}/leanprover/elan/releases/download/v{version}/{name}"
        with tempfile.TemporaryDirectory() as scratch:
            _download.fetch(url, Path(scratch, name), accepted)
            self.run(["tar", "-xf", f"{scratch}/{name}", "-C", scratch], f"Unpacking {url}")
            # elan 1 to 3 would install their stable toolchain, were it not for the last two words.
            command = [f"{scratch}/elan-init", "-y", "--no-modify-path", "--default-toolchain", "none"]
            self.run(command, f"Installing elan {version}")

    def release_url(self) -> str | None:
        """Return where the archive of an official release lies; ``None`` for a toolchain of another kind."""
        origin, release = self.name.split(":")
        if origin != OFFICIAL or not SHORT.fullmatch(release):
            return None
        system = {"x86_64": "linux", "aarch64": "linux_aarch64"}.get(self.machine, f"linux_{self.machine}")
        return f"{self.mirror}/{origin}/releases/download/{release}/lean-{release[1:]}-{system}.tar.zst"

    def accepted(self) -> list[str]:
        """Return the checksums that the toolchain's archive may have; none when it is not known."""
        if self.options["sha256"]:
            return [self.options["sha256"].lower()]
        known = self.options["known_sha256"].get(self.name, {}).get(self.machine, [])
        return [] if self.options["archive"] else list(known)

    def check_source(self) -> None:
        """Raise :class:`BoxError` when it is not known how to have the toolchain, before anything is changed."""
        accepted = self.accepted()
        if self.options["archive"] and not accepted:
            raise _box.BoxError(f"archive={self.options['archive']} needs sha256, the checksum of that file.")
        if self.mirror != OFFICIAL_SERVER and not accepted:
            raise _box.BoxError(
                f"mirror={self.mirror} needs sha256, the checksum of the archive of {self.name}, which is not known "
                "here: elan itself can be given no mirror."
            )
        if accepted and not self.options["archive"] and not self.release_url():
            raise _box.BoxError(f"sha256 needs archive, because {self.name} is no release of {OFFICIAL}.")

    def install_toolchain(self) -> None:
        """Have the toolchain where elan looks for it."""
        if self.accepted():
            self.install_archive()
        else:
            self.let_elan_install()

    def let_elan_install(self) -> None:
        """Let elan fetch the toolchain from Lean's own servers."""
        self.unfinished.parent.mkdir(parents=True, exist_ok=True)
        if self.unfinished.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.unfinished.touch()
        self.run([str(self.programs / "elan"), "toolchain", "install", self.name], f"Installing {self.name} with elan")
        self.unfinished.unlink()

    def install_archive(self) -> None:
        """Fetch and check the archive, unpack it beside, and rename the folder once its Lean is the wanted one."""
        archive = self.fetched()
        # Not among the toolchains, where elan would take it for one after a kill.
        scratch = self.root / f"{self.folder.name}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            if archive.name.endswith(".zst") and not shutil.which("zstd"):
                raise _box.BoxError(f"{archive} cannot be unpacked without the program zstd: have the package zstd.")
            command = ["tar", "-xf", str(archive), "--strip-components=1", "--no-same-owner", "-C", str(scratch)]
            self.run(command, f"Unpacking {archive}")
            said = self.ask(str(scratch / "bin/lean"), "--version")
            if not self.is_version(said):
                held = said.splitlines()[0][:80] if said else "no bin/lean that runs"
                raise _box.BoxError(f"{archive} holds {held}, not {self.name}: nothing was installed.")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.unfinished.unlink(missing_ok=True)
            scratch.rename(self.folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if archive.parent == self.downloads:
            archive.unlink()

    def fetched(self) -> Path:
        """Return the checked archive of the toolchain."""
        source = str(self.options["archive"] or self.release_url())
        if not source.startswith(("http://", "https://")):
            archive = Path(source)
            if not archive.is_file():
                raise _box.BoxError(f"There is no file {archive}, which archive names.")
            if (found := _box.file_sha256(archive)) not in self.accepted():
                wanted = self.options["sha256"]
                raise _box.BoxError(
                    f"{archive} has the SHA-256 {found}, but {wanted} is pinned: nothing was installed."
                )
            return archive
        self.downloads.mkdir(parents=True, exist_ok=True)
        archive = self.downloads / source.rsplit("/", 1)[-1]
        _download.fetch(source, archive, self.accepted())
        return archive

    def is_version(self, said: str) -> bool:
        """Return whether ``said`` by Lean is the wanted version; of a nightly any is."""
        release = SHORT.fullmatch(self.name.split(":")[1])
        return bool(said) and (release is None or f"version {release[1]}," in said)

    def make_default(self) -> None:
        """Make the toolchain the one that is used outside of projects."""
        self.run([str(self.programs / "elan"), "default", self.name], f"Making {self.name} the default")

    def write_launchers(self) -> None:
        """Write the launchers that differ; a link to another program is replaced, not written through."""
        for name in LAUNCHED:
            if not self.launcher_is_right(name):
                _box.write_file(Path(self.options["bin_dir"], name), self.launcher(name), 0o755)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the toolchain to the wanted state, or in check mode say what that would take."""
    toolchain = Toolchain(module)
    before = toolchain.state()
    wanted = toolchain.wanted(before)
    missing = before["toolchain"] != wanted["toolchain"]
    if missing:
        toolchain.check_source()
    steps = [
        (before["elan"] != wanted["elan"], f"install elan {wanted['elan']}", toolchain.install_elan),
        (missing, f"install {wanted['toolchain']}", toolchain.install_toolchain),
        (before["default"] != wanted["default"], f"make {wanted['default']} the default", toolchain.make_default),
        (before["launchers"] != wanted["launchers"], "write launchers", toolchain.write_launchers),
    ]
    actions = [name for needed, name, _step in steps if needed]
    if not module.check_mode:
        for needed, _name, step in steps:
            if needed:
                step()
    lean = toolchain.lean()
    if not module.check_mode and not toolchain.is_version(lean):
        found = f"says {lean.splitlines()[0][:80]!r}" if lean else "does not run"
        raise _box.BoxError(f"{toolchain.name} was installed in {toolchain.folder}, but its lean {found}.")
    return {
        "changed": bool(actions),
        "actions": actions,
        "toolchain": toolchain.name,
        "lean": lean,
        "elan": toolchain.elan() or "",
        "diff": {"before": before, "after": wanted},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "toolchain": {"type": "str"},
            "file": {"type": "path"},
            "archive": {"type": "str"},
            "sha256": {"type": "str"},
            "known_sha256": {"type": "dict", "default": {}},
            "mirror": {"type": "str", "default": "https://github.com"},
            "elan": {"type": "path"},
            "elan_version": {"type": "str"},
            "elan_sha256": {"type": "dict", "default": {}},
            "root": {"type": "path", "default": "/opt/gpuyard/lean"},
            "bin_dir": {"type": "path", "default": "/usr/local/bin"},
        },
        mutually_exclusive=[("toolchain", "file"), ("elan", "elan_version")],
        required_one_of=[("toolchain", "file"), ("elan", "elan_version")],
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
