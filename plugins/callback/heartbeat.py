# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A sign of life from tasks that take long, and what to do when a run's machine gives none any more."""

from __future__ import annotations

DOCUMENTATION = r"""
name: heartbeat
type: notification
short_description: Say every few seconds that a long task is still at work
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Installing packages or building a program takes minutes in which Ansible prints nothing. This callback prints a
    line with the task's name and its time so far every few seconds, as long as the output is for people.
  - Tasks that show their own progress, such as M(gpuyard.cloud.instance) and M(gpuyard.cloud.base_system), are
    left alone. O(every) counts for theirs, too, where they work on a machine.
  - When the machine that a play works on does not answer any more, it may have been taken away. Ansible only prints
    what C(ssh) said; this callback adds what can be done about it.
requirements:
  - enabled in C(callbacks_enabled) of the configuration
options:
  every:
    description: Seconds between two lines.
    type: float
    default: 5
    env:
      - name: GPUYARD_HEARTBEAT
    ini:
      - section: callback_gpuyard
        key: heartbeat
"""

import gc
import threading
import time
from typing import Any

from ansible import constants as C
from ansible.playbook import Playbook
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import module_loader

# The group into which the plays put the machine that they work on.
TARGET = "gpuyard_target"
# What runs through an action of ours that meta/runtime.yml names tells what it does while it does it.
TELLING = "gpuyard.cloud."


def tells_itself(action: str) -> bool:
    """Return whether a task of this action shows what it does while it does it."""
    return (module_loader.find_plugin_with_context(action).action_plugin or "").startswith(TELLING)


class CallbackModule(CallbackBase):
    """Prints a line every few seconds while one task goes on."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "gpuyard.cloud.heartbeat"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._ended = threading.Event()
        self._quiet = "json" in C.DEFAULT_STDOUT_CALLBACK

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """Take what is loaded out of the collector's sight: the process of each task would look through all of it."""
        gc.freeze()

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Start the clock of this task, and stop that of the one before."""
        self._ended.set()
        if self._quiet or tells_itself(task.action):
            return
        self._ended = threading.Event()
        threading.Thread(target=self._beat, args=(task.get_name(), self._ended), daemon=True).start()

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Say what can be done about a run's machine that does not answer."""
        if self._quiet or result.task.ignore_unreachable or TARGET not in [group.name for group in result.host.groups]:
            return
        name = result.host.get_name()
        run = name.partition(".")[0]  # a node of several is <run>.<node>
        self._display.display(
            f"  {name} does not answer any more, and its machine may still bill. `ansible-playbook status.yml` shows "
            f"whether it was taken away: `ansible-playbook resume_search.yml -e run={run}` then goes on with another "
            f"one, and `ansible-playbook teardown.yml -e run={run}` ends the run."
        )

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Stop the clock of the last task."""
        self._ended.set()
        # A quarter of a second in which Python would search for cycles, of a play that ends now.
        gc.freeze()

    def _beat(self, name: str, ended: threading.Event) -> None:
        every, begun = float(self.get_option("every")), time.monotonic()
        while every > 0 and not ended.wait(every):
            self._display.display(f"  … {name} ({time.monotonic() - begun:.0f} s)")
