# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: container
short_description: Run tasks in a container of this machine
author: gpuyard contributors (@gpuyard)
version_added: "0.1.0"
description:
  - Runs each command with C(exec) of Podman or Docker, whichever answers on this machine.
  - It is how an image is brought into shape by the same roles as a rented machine.
extends_documentation_fragment:
  - connection_pipelining
options:
  remote_addr:
    description: The container's name.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
  remote_user:
    description: The user in the container.
    type: str
    default: root
    vars:
      - name: ansible_user
"""

import os
import shlex
import subprocess
from contextlib import suppress

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.connection import ConnectionBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core

with suppress(ImportError):  # told when the connection is used
    from gpuyard.errors import GpuyardError
    from gpuyard.sandbox import engine as engines


class Connection(ConnectionBase):
    """A container as a machine."""

    transport = "gpuyard.cloud.container"
    has_pipelining = True
    _connected: bool

    def _connect(self) -> Connection:
        """Find the engine."""
        if not self._connected:
            require_core(AnsibleError)
            try:
                self._engine = engines.find()
            except GpuyardError as error:
                raise AnsibleConnectionFailure(str(error)) from None
            self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a shell command in the container."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(["/bin/sh", "-c", cmd], in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into the container."""
        super().put_file(in_path, out_path)
        with open(in_path, "rb") as stream:
            code, _output, errors = self._run(["/bin/sh", "-c", f"cat > {shlex.quote(out_path)}"], stream.read())
        if code:
            raise AnsibleError(f"{out_path} cannot be written: {errors.decode(errors='replace').strip()}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of the container."""
        super().fetch_file(in_path, out_path)
        code, output, errors = self._run(["cat", in_path], b"")
        if code:
            raise AnsibleError(f"{in_path} cannot be read: {errors.decode(errors='replace').strip()}")
        with open(out_path, "wb") as stream:
            stream.write(output)

    def close(self) -> None:
        """There is nothing to close."""
        self._connected = False

    def _run(self, words: list[str], given: bytes) -> tuple[int, bytes, bytes]:
        self._connect()
        container, user = self.get_option("remote_addr"), self.get_option("remote_user")
        done = subprocess.run(
            [self._engine.binary, "exec", "--interactive", "--user", user, container, *words],
            input=given,
            capture_output=True,
            env={**os.environ, **self._engine.environment},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr
