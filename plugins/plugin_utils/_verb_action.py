# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The base of the action plugins: a verb runs in Ansible's own process and tells what it does while it does it.

A module process can answer only when it has ended, and renting a machine takes minutes. So each verb has an action
plugin that calls the function of the module of the same name here, with the display as its progress. Ansible runs
every task in a process forked for it, so a verb that hangs or changes its environment harms nobody else. Private to
this collection.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import Call, attempt

display = Display()

_ENDING = (signal.SIGINT, signal.SIGTERM)
_TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (boolean, "true or false"),
}


class VerbAction(ActionBase):
    """Runs the verb of ``module``, shows its progress line by line, and its ``text`` at the end."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False
    _requires_connection = False

    module: ClassVar[ModuleType]

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the verb and return its result, as a module's result would be."""
        super().run(tmp, task_vars)
        self._set_environment()
        self._check_values()
        _result, options = self.validate_argument_spec(self.module.ARGUMENT_SPEC, **self.module.CONDITIONS)
        # The core gets the plain values that a module process would get, without Ansible's tags on them.
        plain = json.loads(json.dumps(options))
        result = attempt(self.module.run, Call(plain, self._task.check_mode, self._show))
        for line in str(result.get("text") or "").splitlines():
            self._show(line)
        return result

    def _check_values(self) -> None:
        """Refuse what has not the type in a sentence with option and value; Ansible's own names its internal types."""
        for name, spec in self.module.ARGUMENT_SPEC.items():
            value = self._task.args.get(name)
            if spec["type"] not in _TYPES or value in (None, ""):
                continue
            convert, words = _TYPES[spec["type"]]
            try:
                convert(str(value))
            except (TypeError, ValueError):
                raise AnsibleActionFail(f"{name}={str(value)!r} must be {words}.") from None

    def _set_environment(self) -> None:
        """Give the verb what the task's ``environment`` says, as a module process would get it."""
        environment: dict[str, Any] = {}
        self._compute_environment_string(environment)
        os.environ.update({name: str(value) for name, value in environment.items()})

    def _show(self, line: str) -> None:
        """Show one line now, unless the task is secret."""
        if not self._task.no_log:
            show_line(line)


def show_line(line: str) -> None:
    """Show one line now. A callback that writes JSON owns the standard output."""
    # The line goes through a queue whose lock would stay taken if Ctrl-C ended this process in the middle of it, as
    # it may well do when somebody waits for that line: Ansible itself would then wait for the lock, for ever.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        display.display(f"  {line}", stderr="json" in C.DEFAULT_STDOUT_CALLBACK)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
