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
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

_NICENESS = 5


class Ahead:
    """Packs modules in a process beside this one; nobody waits for it.

    It has to be closed when nobody waits for the machine any more: from then on the tasks themselves need the
    processor, and a play that has ended removes the folder. What fails here is tried again, and told, by the task that
    needs the module.
    """

    def __init__(self, pack: Callable[[str], Any]) -> None:
        self._pack = pack
        self._names: int | None = None
        self._child = 0

    def pack(self, names: Iterable[str]) -> None:
        """Have these modules packed, after those that were named before. The first call starts the process.

        That one is made before other threads are, which a forked process would not have.
        """
        if self._names is None:
            reading, self._names = os.pipe()
            self._child = os.fork()
            if not self._child:
                os.close(self._names)
                self._work(reading)
            os.close(reading)
        with suppress(OSError):
            os.write(self._names, "".join(f"{name}\n" for name in names).encode())

    def leave(self) -> None:
        """Let the process pack what has been named, and end by itself: tasks follow that take longer than it."""
        if self._names is not None:
            os.close(self._names)
            self._names = None

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._names is not None:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            os.close(self._names)
            self._names = None

    def _work(self, reading: int) -> None:
        """Pack what is named, and end the process."""
        try:
            with suppress(OSError):
                os.nice(_NICENESS)  # the machine is what matters
            with open(reading, encoding="utf-8") as lines:
                for line in lines:
                    with suppress(Exception):
                        self._pack(line.strip())
        finally:
            os._exit(0)
