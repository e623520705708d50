# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action of every module that works on a machine and needs no other: it shows how far the module is.

``meta/runtime.yml`` sends the modules here.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action.normal import ActionModule as NormalActionModule

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._watching import watching


class ActionModule(NormalActionModule):
    """Run the module as any other one, and watch it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, beside it what shows its progress."""
        with watching(self, task_vars):
            result: dict[str, Any] = super().run(tmp, task_vars)
        return result
