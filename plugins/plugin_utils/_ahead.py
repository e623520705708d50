# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules made ready to be sent while a machine boots, so that the first tasks on it need not wait for that.

Ansible packs a module with all that it imports when a task first needs it, a fifth of a second each, and keeps it for
the rest of the play. Private to this collection.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NICENESS = 5


@contextmanager
def packing_ahead(pack: Callable[[str], Any], names: Iterable[str]) -> Iterator[None]:
    """Call ``pack`` for each module in a process beside this one, which ends with the block.

    From then on the tasks themselves need the processor, and a play that has ended removes the folder. What fails here
    is tried again, and told, by the task that needs the module.
    """
    child = os.fork()
    if not child:
        try:
            with suppress(OSError):
                os.nice(_NICENESS)  # the machine is what matters
            for name in names:
                with suppress(Exception):
                    pack(name)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
