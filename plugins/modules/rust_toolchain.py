#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rust_toolchain
short_description: Bring a Rust toolchain to a pinned version with rustup
description:
  - Installs C(rustup) from its pinned and checksummed C(rustup-init) program, never by piping a script into a shell.
  - Installs one toolchain with the wanted profile and components, makes it the default, and checks what C(cargo) says.
  - Puts small launchers for C(cargo), C(rustc), C(rustdoc) and C(rustup) onto PATH, which work in every kind of shell,
    because they bring the settings that rustup needs with them.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  version:
    description: The toolchain, a version such as V(1.96.0), or a channel such as V(stable).
    type: str
    required: true
  minimum:
    description: The oldest C(cargo) that will do. An older O(version) is refused before anything is installed.
    type: str
    default: "1.85"
  profile:
    description: Which set of components rustup installs.
    type: str
    choices: [minimal, default, complete]
    default: minimal
  components:
    description: Further components, such as V(clippy).
    type: list
    elements: str
    default: []
  root:
    description: The folder for rustup's and cargo's files.
    type: path
    default: /opt/gpuyard/rust
  bin_dir:
    description: The folder for the launchers. It should be on PATH.
    type: path
    default: /usr/local/bin
  dist_server:
    description: The server, or a mirror of it, that has the toolchains and C(rustup-init).
    type: str
    default: https://static.rust-lang.org
  wait:
    description:
      - Whether the task waits until the toolchain is installed. Without, it only begins that, and a later task that
        waits follows it to its end and does the rest.
    type: bool
    default: true
  rustup_version:
    description: The version of rustup.
    type: str
    required: true
  rustup_sha256:
    description:
      - The accepted SHA-256 sums of C(rustup-init) by target, such as V(x86_64-unknown-linux-gnu).
      - Each value is a list, because more than one trusted build of the same version exists.
    type: dict
    required: true
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have Rust 1.96.0 with clippy
  gpuyard.cloud.rust_toolchain:
    version: 1.96.0
    components: [clippy]
    rustup_version: 1.29.1
    rustup_sha256:
      x86_64-unknown-linux-gnu: [dda7234360b7f578ca8b0ddcb80145646fa61a67c1720a5abc7051b35c9fcb71]
"""

RETURN = r"""
under_way:
  description: Whether the toolchain is being installed, see O(wait).
  type: bool
  returned: success
cargo:
  description: What C(cargo --version) says; empty in check mode on a machine without it.
  type: str
  returned: success
  sample: cargo 1.96.0 (30a34c682 2026-05-25)
rustc:
  description: What C(rustc --version) says; empty in check mode on a machine without it.
  type: str
  returned: success
  sample: rustc 1.96.0 (ac68faa20 2026-05-25)
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [install rustup 1.29.1, install toolchain 1.96.0]
"""

import platform
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils import _download

LAUNCHED = ("cargo", "rustc", "rustdoc", "rustup")


class Toolchain:
    """The toolchain as it is on this machine, and the steps to the wanted one."""

    def __init__(self, module: AnsibleModule) -> None:
        options: dict[str, Any] = module.params
        self.module, self.options = module, options
        self.root = Path(options["root"])
        self.cargo_home = self.root / "cargo"
        self.server = options["dist_server"].rstrip("/")
        self.target = f"{platform.machine()}-unknown-linux-gnu"
        self.environment = {
            "RUSTUP_HOME": str(self.root / "rustup"),
            "CARGO_HOME": str(self.cargo_home),
            "RUSTUP_DIST_SERVER": self.server,
            "RUSTUP_UPDATE_ROOT": f"{self.server}/rustup",
            # A rustup or cargo that is already on PATH is none of our business.
            "RUSTUP_INIT_SKIP_PATH_CHECK": "yes",
            "RUSTUP_TERM_COLOR": "never",
            # A question about a toolchain must not install it.
            "RUSTUP_AUTO_INSTALL": "0",
        }

    def program(self, name: str) -> Path:
        """Return the path of one of rustup's programs."""
        return self.cargo_home / "bin" / name

    def run(self, command: list[str], purpose: str) -> str:
        """Run one of rustup's programs with its environment, see :func:`_box.run`."""
        return _box.run(self.module, command, purpose=purpose, environment=self.environment)

    def ask(self, *command: str) -> str:
        """Return what one of rustup's programs prints; empty when it is missing or fails."""
        if not self.program(command[0]).exists():
            return ""
        try:
            return self.run([str(self.program(command[0])), *command[1:]], command[0]).strip()
        except _box.BoxError:
            return ""

    def state(self) -> dict[str, Any]:
        """Return what there is, in the words in which it is wanted."""
        version = self.options["version"]
        rustup = self.ask("rustup", "--version").split()
        installed = self.ask("rustup", "component", "list", "--installed", "--toolchain", version).split()
        default = self.ask("rustup", "default").split()
        present = bool(installed) and bool(self.ask("cargo", f"+{version}", "--version"))
        return {
            "rustup": rustup[1] if len(rustup) > 1 else None,
            "toolchain": version if present else None,
            "components": sorted(name for name in self.options["components"] if self.has(name, installed)),
            "default": version if default and default[0] in (version, f"{version}-{self.target}") else None,
            "launchers": sorted(name for name in LAUNCHED if self.launcher_is_right(name)),
        }

    def wanted(self) -> dict[str, Any]:
        """Return the wanted state."""
        return {
            "rustup": self.options["rustup_version"],
            "toolchain": self.options["version"],
            "components": sorted(set(self.options["components"])),
            "default": self.options["version"],
            "launchers": sorted(LAUNCHED),
        }

    def has(self, component: str, installed: list[str]) -> bool:
        """Return whether ``component`` is among ``installed``, which may carry the target in their names."""
        return component in installed or f"{component}-{self.target}" in installed

    def launcher(self, name: str) -> str:
        """Return the text of the launcher that lies on PATH."""
        return (
            "#!/bin/sh\n"
            "# Made by gpuyard.cloud.rust_toolchain: rustup's programs need to know where their files are.\n"
            f': "${{RUSTUP_HOME:={self.environment["RUSTUP_HOME"]}}}" "${{CARGO_HOME:={self.cargo_home}}}"\n'
            "export RUSTUP_HOME CARGO_HOME\n"
            f'exec "{self.program(name)}" "$@"\n'
        )

    def launcher_is_right(self, name: str) -> bool:
        """Return whether the launcher is there with exactly the wanted text."""
        return _box.has_program(Path(self.options["bin_dir"], name), self.launcher(name))

    def install_rustup(self) -> None:
        """Fetch, check and run rustup-init; toolchains come afterwards."""
        accepted = self.options["rustup_sha256"].get(self.target)
        if not accepted:
            known = ", ".join(sorted(self.options["rustup_sha256"]))
            raise _box.BoxError(f"rustup_sha256 has no checksum for this machine's {self.target}, only for: {known}.")
        version = self.options["rustup_version"]
        with tempfile.TemporaryDirectory() as scratch:
            # The program decides by its own name what it is.
            program = Path(scratch, "rustup-init")
            _download.fetch(f"{self.server}/rustup/archive/{version}/{self.target}/rustup-init", program, accepted)
            program.chmod(0o755)
            command = [str(program), "-y", "--no-modify-path", "--profile", "minimal", "--default-toolchain", "none"]
            self.run(command, f"Installing rustup {version}")

    @property
    def slot(self) -> str:
        """What names the installation that goes on without this module."""
        return f"rust {self.root}"

    @property
    def key(self) -> list[Any]:
        """What decides about the toolchain's installation."""
        return [self.server, *(self.options[name] for name in ("version", "profile", "components", "rustup_version"))]

    def install_toolchain(self, *, wait: bool = True) -> None:
        """Let rustup install the toolchain and its components, or only begin to."""
        version = self.options["version"]
        command = [str(self.program("rustup")), "toolchain", "install", version, "--no-self-update"]
        command += ["--profile", self.options["profile"]]
        for component in self.options["components"]:
            command += ["--component", component]
        purpose = f"Installing Rust {version} from {self.server}"
        _box.detached(command, slot=self.slot, key=self.key, purpose=purpose, environment=self.environment, wait=wait)

    def make_default(self) -> None:
        """Make the toolchain the one that is used without a choice."""
        command = [str(self.program("rustup")), "default", self.options["version"]]
        self.run(command, f"Making Rust {self.options['version']} the default")

    def write_launchers(self) -> None:
        """Write the launchers that differ; a link to another toolchain is replaced, not written through."""
        for name in LAUNCHED:
            if not self.launcher_is_right(name):
                _box.write_file(Path(self.options["bin_dir"], name), self.launcher(name), 0o755)


def check_minimum(minimum: str, version: str, said: str) -> None:
    """Raise :class:`BoxError` when ``version`` is older than ``minimum``; ``said`` is where it comes from."""
    found = _box.version_tuple(version)
    if found and found < _box.version_tuple(minimum):
        raise _box.BoxError(f"{said} is older than the minimum {minimum}: ask for a newer version.")


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the toolchain to the wanted state, or in check mode say what that would take."""
    options = module.params
    check_minimum(options["minimum"], options["version"], f"Rust {options['version']}")
    toolchain = Toolchain(module)
    if not module.check_mode:
        _box.take_over(toolchain.slot, toolchain.key)
    before, wanted = toolchain.state(), toolchain.wanted()
    incomplete = any(before[key] != wanted[key] for key in ("toolchain", "components"))
    steps = [
        (before["rustup"] != wanted["rustup"], f"install rustup {wanted['rustup']}", toolchain.install_rustup),
        (incomplete, f"install toolchain {wanted['toolchain']}", toolchain.install_toolchain),
        (before["default"] != wanted["default"], f"make {wanted['default']} the default", toolchain.make_default),
        (before["launchers"] != wanted["launchers"], "write launchers", toolchain.write_launchers),
    ]
    actions = [name for needed, name, _step in steps if needed]
    under_way = incomplete and not options["wait"] and not module.check_mode
    if under_way:
        if before["rustup"] != wanted["rustup"]:
            toolchain.install_rustup()
        toolchain.install_toolchain(wait=False)
        return {"changed": True, "under_way": True, "actions": actions, "cargo": "", "rustc": "", "diff": {}}
    if not module.check_mode:
        for needed, _name, step in steps:
            if needed:
                step()
    cargo = toolchain.ask("cargo", "--version")
    if not module.check_mode:
        if not cargo:
            raise _box.BoxError(
                f"cargo of Rust {options['version']} was installed in {toolchain.root} but does not run."
            )
        check_minimum(options["minimum"], cargo.split()[1], cargo)
    return {
        "changed": bool(actions),
        "under_way": False,
        "actions": actions,
        "cargo": cargo,
        "rustc": toolchain.ask("rustc", "--version"),
        "diff": {"before": before, "after": wanted},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "minimum": {"type": "str", "default": "1.85"},
            "profile": {"type": "str", "choices": ["minimal", "default", "complete"], "default": "minimal"},
            "components": {"type": "list", "elements": "str", "default": []},
            "root": {"type": "path", "default": "/opt/gpuyard/rust"},
            "bin_dir": {"type": "path", "default": "/usr/local/bin"},
            "dist_server": {"type": "str", "default": "https://static.rust-lang.org"},
            "wait": {"type": "bool", "default": True},
            "rustup_version": {"type": "str", "required": True},
            "rustup_sha256": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
