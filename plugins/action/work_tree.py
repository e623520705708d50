# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of the module ``work_tree``: reads the folder, and sends what the machine asks for."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._watching import watching

with suppress(ImportError):  # told when the task runs
    from gpuyard import tree as source_tree
    from gpuyard.archive import pack
    from gpuyard.errors import GpuyardError


class ActionModule(ActionBase):
    """Describe the folder, let the module compare, and send the content only if it asks for it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, once or twice."""
        super().run(tmp, task_vars)
        with watching(self, task_vars):
            return self._bring({**self._task.args}, task_vars)

    def _bring(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module once, and once more with the content."""
        arguments.pop("tree", None)
        arguments.pop("archive", None)
        source = arguments.get("src")
        if not source or arguments.get("url"):
            return self._module(arguments, task_vars)
        root = Path(self._loader.path_dwim(source))
        if not root.is_dir():
            raise AnsibleActionFail(f"src={source} is not a folder on the controller ({root}).")
        require_core(AnsibleActionFail)
        rules = source_tree.Rules(
            include=tuple(arguments.get("include") or ()), submodules=boolean(arguments.get("submodules") or False)
        )
        try:
            tree = source_tree.describe(root, rules)
        except GpuyardError as error:
            raise AnsibleActionFail(str(error)) from None
        if not tree.files:
            raise AnsibleActionFail(f"src={source} holds no files ({root}).")
        arguments["tree"] = {"digest": tree.digest, "files": tree.files}
        result = self._module(arguments, task_vars)
        wanted = result.pop("needs_archive", None)
        if not wanted:
            return result
        shell = self._connection._shell
        if not shell.tmpdir:
            self._make_tmp_path()  # removed when the task ends
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch, "tree.tar.gz")
            pack(root, wanted, archive)
            remote = self._transfer_file(str(archive), shell.join_path(shell.tmpdir, "tree.tar.gz"))
        self._fixup_perms2([shell.tmpdir, remote])
        return self._module({**arguments, "archive": remote}, task_vars)

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module of the same name on the machine."""
        if (arguments.get("credentials") or {}).get("kind") == "agent":
            self._forward_agent()
        result: dict[str, Any] = self._execute_module(
            module_name="gpuyard.cloud.work_tree", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        return result

    def _forward_agent(self) -> None:
        """Let this task alone reach the controller's SSH agent; every task has a connection object of its own."""
        if self._connection.transport != "ssh":
            return
        more = self._connection.get_option("ssh_extra_args") or ""
        # A connection that other tasks share forwards nothing for one of them.
        words = f"{more} -o ForwardAgent=yes -o ControlPath=none"
        self._connection.set_option("ssh_extra_args", words.strip())
        become = self._connection.become
        if become is not None and become.name.rpartition(".")[2] == "sudo":
            flags = become.get_option("become_flags") or ""
            become.set_option("become_flags", f"{flags} --preserve-env=SSH_AUTH_SOCK".strip())
