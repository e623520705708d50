# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of the module ``convergence``: takes the machine's lock before anything changes there."""

from __future__ import annotations

import json
import os
import posixpath
import shlex
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core, show_line

with suppress(ImportError):  # told when the task runs
    from gpuyard import fingerprint
    from gpuyard.errors import GpuyardError
    from gpuyard.renting import converging

DEFAULT_PATH = "/opt/gpuyard/converged.json"
DEFAULT_SETTINGS = "/opt/gpuyard/run"


def _words(parts: list[str]) -> str:
    """Return the names of parts as people read them."""
    return ", ".join(fingerprint.WORDS.get(part, part) for part in parts)


class ActionModule(ActionBase):
    """Compare, and lock a machine that has to be changed until its new state is recorded."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, once or twice."""
        super().run(tmp, task_vars)
        require_core(AnsibleActionFail)
        arguments = {**self._task.args}
        name = str((task_vars or {}).get("inventory_hostname") or "machine")
        # Ansible runs each task in a process forked for it; the play's own process is the parent.
        play = os.getppid()
        state = arguments.get("state", "compared")
        if state == "recorded":
            result = self._module(arguments, task_vars)
            converging.release(name, play)
            return result
        glance = None if state != "compared" or self._task.check_mode else self._at_a_glance(arguments)
        result = glance or self._module(arguments, task_vars)
        if glance is None:
            if state != "compared" or result.get("failed"):
                return result
            self._tell(result, name)
        if not result["to_change"] or self._task.check_mode:
            return result
        if (command := self._command(arguments, name, task_vars or {})) is not None:
            try:
                converging.acquire(command, name, play, self._show)
            except GpuyardError as error:
                raise AnsibleActionFail(str(error)) from None
        # Whoever held the lock may have brought the machine into this very shape.
        result = self._module({**arguments, "state": "begun"}, task_vars)
        if result.get("failed") or not result["to_change"]:
            converging.release(name, play)
        return result

    def _at_a_glance(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer for a machine that matches, or plainly does not, in a tenth of the module's time.

        ``None`` where it takes the module to tell: another state while stages run, or volumes to look at. Where
        everything is to be looked at, volumes make no difference to the answer.
        """
        full = boolean(arguments.get("full", False))
        if not full and "volumes" in (arguments.get("parts") or {}):
            return None
        folder = str(arguments.get("settings") or DEFAULT_SETTINGS)
        lock, record = posixpath.join(folder, "runner.lock"), str(arguments.get("path") or DEFAULT_PATH)
        words = (
            f"test ! -e {shlex.quote(lock)} || flock --nonblock --shared {shlex.quote(lock)} true; "
            "case $? in 0) echo idle;; 1) echo running;; *) exit 9;; esac"
        )
        answer = self._low_level_execute_command(f"{words}; cat {shlex.quote(record)} 2>/dev/null || echo {{}}")
        said, _newline, written = answer["stdout"].partition("\n")
        if answer["rc"] != 0 or said.strip() not in ("idle", "running"):
            return None
        try:
            found = json.loads(written)
        except ValueError:
            found = {}
        if not isinstance(found, dict):
            return None
        running = said.strip() == "running"
        matches = bool(found) and found.get("fingerprint") == arguments["fingerprint"] and not full
        if running and not matches:
            return None
        return {
            "changed": False,
            "matches": matches,
            "running": running,
            "to_change": not matches,
            "todo": [],
            "waiting": [],
            "differs": [],
            "removed": [],
            "recorded": str(found.get("fingerprint") or ""),
            "repository": str(found.get("repository") or ""),
            "search_path": found.get("search_path") or [],
        }

    def _tell(self, result: dict[str, Any], name: str) -> None:
        """Say what happens to a machine on which stages run."""
        if not result["running"] or result["matches"]:
            return
        waiting = result["waiting"]
        beside = [part for part in result["differs"] if part not in waiting]
        if result["todo"]:
            self._show(f"Stages run on {name}. Prepared beside what the running stage uses: {_words(result['todo'])}.")
        elif beside:
            self._show(f"Stages run on {name}, nothing is changed. Here is another state of: {_words(beside)}.")
            self._show("-e update=true prepares it beside what the running stage uses, and the next stage takes it.")
        else:
            self._show(f"Stages run on {name}, nothing is changed.")
        if waiting:
            self._show(f"This waits until no stage runs: {_words(waiting)}.")

    def _command(self, arguments: dict[str, Any], name: str, task_vars: dict[str, Any]) -> list[str] | None:
        """Return the command that holds the lock; ``None`` for a connection over which none can be held."""
        folder = posixpath.dirname(str(arguments.get("path") or DEFAULT_PATH))
        local = self._connection.transport == "local"
        if not local and self._connection.transport != "ssh":
            return None
        python = str(task_vars.get("ansible_python_interpreter") or "python3")
        held = converging.box_command(
            folder,
            converging.owner_text(name),
            python=python if python.startswith("/") else "python3",
            become=bool(self._play_context.become),
        )
        if local:
            return held
        option = self._connection.get_option
        words = [
            word for key in ("ssh_args", "ssh_common_args", "ssh_extra_args") for word in shlex.split(option(key) or "")
        ]
        return converging.over_ssh(
            held,
            host=option("host"),
            port=option("port"),
            user=option("remote_user"),
            key=option("private_key_file"),
            options=words,
        )

    def _show(self, line: str) -> None:
        if not self._task.no_log:
            show_line(line)

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module of the same name on the machine."""
        result: dict[str, Any] = self._execute_module(
            module_name="gpuyard.cloud.convergence", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        return result
