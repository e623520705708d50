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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import yaml
from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.parsing.splitter import split_args
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import GPUYARD_IMPORT_ERROR, Call, attempt

display = Display()

_ENDING = (signal.SIGINT, signal.SIGTERM)
_TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (boolean, "true or false"),
}


def lost_words(given: Sequence[str]) -> list[tuple[str, str]]:
    """Return the words of ``-e`` that belong to no variable, each with the ``name=value`` that it follows.

    Ansible splits what it is given at spaces, so of ``-e gpu_name=RTX 4090`` it takes ``gpu_name=RTX``.
    """
    found: list[tuple[str, str]] = []
    for text in given:
        if text.startswith(("@", "{", "[")):
            continue
        option, words = "", []
        for word in [*split_args(text), "="]:
            if "=" not in word:
                words.append(word)
                continue
            if words:
                found.append((option, " ".join(words)))
            option, words = word, []
    return found


def role_options() -> set[str]:
    """Return the documented options of this collection's roles, which extra variables can say as well."""
    found: set[str] = set()
    for file in Path(__file__).parents[2].glob("roles/*/meta/argument_specs.yml"):
        found.update(yaml.safe_load(file.read_bytes())["argument_specs"]["main"]["options"])
    return found


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
        self._check_options(task_vars or {})
        self._check_values()
        _result, options = self.validate_argument_spec(self.module.ARGUMENT_SPEC, **self.module.CONDITIONS)
        # The core gets the plain values that a module process would get, without Ansible's tags on them.
        plain = json.loads(json.dumps(options))
        result = attempt(self.module.run, Call(plain, self._task.check_mode, self._show))
        for line in str(result.get("text") or "").splitlines():
            self._show(line)
        return result

    def _check_options(self, variables: Mapping[str, Any]) -> None:
        """In a play of ours, which says its name, refuse every variable that it would take no notice of."""
        play = variables.get("gpuyard_play")
        if not play or GPUYARD_IMPORT_ERROR is not None:
            return
        from gpuyard import options
        from gpuyard.errors import UsageError

        values: dict[str, Any] = {}
        undefined: dict[str, str] = {}
        for name in (*options.taken_by(play), "gpuyard_other_variables"):
            try:
                # A play's default() would stand in for a value that is there but refers to something that is not.
                values[name] = self._templar.template(variables.get(name))
            except AnsibleError as error:
                undefined[name] = str(error.message).rstrip(".") + "."
        others = values.get("gpuyard_other_variables") or []
        extra = load_extra_vars(self._loader)
        try:
            options.check(
                play,
                extra=[name for name in extra if name != "_raw_params"],
                lost=lost_words(context.CLIARGS.get("extra_vars") or ()),
                configured=[name for name in variables if name not in extra],
                environment=os.environ,
                undefined=undefined,
                run=values.get("run"),
                others=others if isinstance(others, list) else str(others).replace(",", " ").split(),
                role_options=role_options,
            )
        except UsageError as error:
            raise AnsibleActionFail(str(error)) from None

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
