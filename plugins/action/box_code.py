# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of the module ``box_code``: reads the archive, which travels with the module in one piece."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Send the archive with the module: copying it by itself would take three round trips more."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        super().run(tmp, task_vars)
        arguments = {**self._task.args}
        source = Path(str(arguments.get("src") or ""))
        try:
            arguments["content"] = base64.b64encode(source.read_bytes()).decode()
        except OSError as error:
            raise AnsibleActionFail(f"src: {source} cannot be read: {error.strerror}.") from None
        result: dict[str, Any] = self._execute_module(
            module_name="gpuyard.cloud.box_code", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        result.get("invocation", {}).get("module_args", {}).pop("content", None)
        return result
