# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action of :mod:`stage_session`: where only the state is asked for, one short command has it."""

from __future__ import annotations

import json
import posixpath
import shlex
from typing import Any

from ansible_collections.gpuyard.cloud.plugins.action.watched import ActionModule as WatchedActionModule

DEFAULT_SETTINGS = "/opt/gpuyard/run"
DEFAULT_PYTHON = "/opt/gpuyard/venv/bin/python"


class ActionModule(WatchedActionModule):
    """Ask for the state by a command; send the module for everything else, and where the command is not answered."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        if self._task.args.get("state") == "status" and (session := self._at_a_glance()):
            return {"changed": False, "session": session}
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result

    def _at_a_glance(self) -> dict[str, Any] | None:
        """Return where the run stands, in half of the module's time; ``None`` where that takes the module to tell."""
        settings = str(self._task.args.get("settings") or DEFAULT_SETTINGS)
        python = str(self._task.args.get("python") or DEFAULT_PYTHON)
        known = shlex.quote(posixpath.join(settings, "settings.json"))
        words = shlex.join([python, "-I", "-m", "gpuyard.box.stages", "status", "--json", "--settings", settings])
        answer = self._low_level_execute_command(f"test -e {known} && {words}")
        try:
            found = json.loads(answer["stdout"]) if answer["rc"] == 0 else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
