# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules made ready to be sent while a machine boots, so that the first tasks on it need not wait for that.

Ansible packs a module with all that it imports when a task first needs it, a fifth of a second each, and keeps it for
the rest of the play. Private to this collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

_NICENESS = 5


def pack_ahead(pack: Callable[[str], Any], names: Iterable[str]) -> int:
    """Call ``pack`` for each module in a process beside this one, and return its number; nobody waits for it.

    It stops when this process has ended: from then on the tasks themselves need the processor. What fails here is tried
    again, and told, by the task that needs the module.
    """
    waiting = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        with suppress(OSError):
            os.nice(_NICENESS)  # the machine is what matters
        for name in names:
            if os.getppid() != waiting:
                break
            with suppress(Exception):
                pack(name)
    finally:
        os._exit(0)
