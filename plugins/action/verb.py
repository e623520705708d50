# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action of every verb: it runs in Ansible's own process and tells what it does while it does it.

A module process can answer only when it has ended, and renting a machine takes minutes. So ``meta/runtime.yml`` sends
each verb here, where the function of the module of that name is called, with the display as its progress. Ansible runs
every task in a process forked for it, so a verb that hangs harms nobody else.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import SITE_OPTIONS, Call, attempt
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._ahead import Ahead
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core, show_line
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._given import given_to, wrong_values
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._packed import Packed

with suppress(ImportError):  # told when the task runs
    from gpuyard import paths
    from gpuyard.errors import UsageError, listed

    importlib.import_module("gpuyard.records")  # nearly every verb needs it, and Ansible forks each from this process

_MODULES = "ansible_collections.gpuyard.cloud.plugins.modules"


class ActionModule(ActionBase):
    """Runs the verb that the task names, shows its progress line by line, and its ``text`` at the end."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the verb and return its result, as a module's result would be."""
        super().run(tmp, task_vars)
        require_core(AnsibleActionFail)
        name = str(self._task.resolved_action).rpartition(".")[2]
        module = importlib.import_module(f"{_MODULES}.{name}")
        with self._environment():
            self._take_options(module, task_vars or {})
            self._check_values(module)
            _result, options = self.validate_argument_spec(module.ARGUMENT_SPEC, **module.CONDITIONS)
            # The core gets the plain values that a module process would get, without Ansible's tags on them.
            plain = json.loads(json.dumps(options))
            call = Call(plain, self._task.check_mode, self._show)
            packed = Packed(paths.cache() / "modules")
            packed.bring()

            def pack(name: str) -> None:
                if not packed.has(name):
                    variables = {**(task_vars or {}), "ansible_python_interpreter": "/usr/bin/python3"}
                    self._configure_module(f"gpuyard.cloud.{name}", {}, variables)
                    packed.keep()

            with closing(Ahead(pack)) as ahead:
                if not self._task.check_mode:
                    call = replace(call, next_on_machines=ahead.pack)
                result = attempt(module.run, call)
                if plain.get("converge") == "full" and not result.get("failed"):
                    ahead.leave()  # all roles look at everything now
            packed.keep()
        for line in str(result.get("text") or "").splitlines():
            self._show(line)
        return result

    def _take_options(self, module: ModuleType, variables: dict[str, Any]) -> None:
        """In a play of ours, which says its name, check all that it was given.

        Where clouds, bucket and key are goes to each of its verbs, unless the task says otherwise.
        """
        if not (play := variables.get("gpuyard_play")):
            return
        try:
            given = given_to(play, variables, self._templar, self._loader)
        except UsageError as error:
            raise AnsibleActionFail(str(error)) from None
        where = {name: given[name] for name in SITE_OPTIONS if name in given and name in module.ARGUMENT_SPEC}
        self._task.args = where | self._task.args

    def _check_values(self, module: ModuleType) -> None:
        """Refuse what does not fit the module's specification, in our words."""
        if wrong := wrong_values(module.ARGUMENT_SPEC, self._task.args):
            raise AnsibleActionFail(listed(wrong))

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Give the verb what the task's ``environment`` says, as a module process would get it, and take it away again.

        The items of a loop run in one process, and the next one may be for another account.
        """
        wanted: dict[str, Any] = {}
        self._compute_environment_string(wanted)
        before = dict(os.environ)
        os.environ.update({name: str(value) for name, value in wanted.items()})
        try:
            yield
        finally:
            for name in wanted:
                if name in before:
                    os.environ[name] = before[name]
                else:
                    del os.environ[name]

    def _show(self, line: str) -> None:
        """Show one line now, unless the task is secret."""
        if not self._task.no_log:
            show_line(line)
