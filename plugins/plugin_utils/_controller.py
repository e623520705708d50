# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the plugins that run on the controller have in common. Private to this collection."""

from __future__ import annotations

import signal

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.utils.display import Display

from ansible_collections.gpuyard.cloud.plugins.module_utils._core import core_problem

display = Display()

_ENDING = (signal.SIGINT, signal.SIGTERM)


def require_core(error: type[AnsibleError]) -> None:
    """Raise ``error`` with one sentence when the Python package is missing or belongs to another collection."""
    if problem := core_problem():
        raise error(problem)


def show_line(line: str) -> None:
    """Show one line now. A callback that writes JSON owns the standard output."""
    # The line goes through a queue whose lock would stay taken if Ctrl-C ended this process in the middle of it, as
    # it may well do when somebody waits for that line: Ansible itself would then wait for the lock, for ever.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        display.display(f"  {line}", stderr="json" in C.DEFAULT_STDOUT_CALLBACK)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
