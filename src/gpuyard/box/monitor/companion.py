"""The runner's side of the monitor: starts it, starts it again when it is lost, and ends it before the last checkpoint.

It is a process of its own, so that nothing that hangs or breaks there (a driver, a mail server, a full memory) reaches
the runner. A pipe from the runner is its standard input, so it ends with the runner, however that ends.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence

END = b"end\n"
"""What the runner says when it ends. Without it, the runner was killed."""
# A run that ends at once needs nobody who looks at it.
FIRST_LOOK_S = 5.0
_AGAIN_S = 60.0
# A mail server that hangs must not cost a stopped run its last checkpoint.
_END_S = 5.0


class Companion:
    """A monitor that lives from :meth:`start` to :meth:`close`. ``command`` starts it, ``every_s`` is how often it
    looks."""

    def __init__(self, command: Sequence[str], every_s: float) -> None:
        self._command = command
        self._first_s = min(FIRST_LOOK_S, every_s)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="monitor", daemon=True)

    def start(self) -> None:
        """Have it start in a moment; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End it, and return when it writes nothing any more."""
        self._closing.set()
        with self._lock:
            process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            assert process.stdin is not None  # it was asked for at its start
            process.stdin.write(END)
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _keep(self) -> None:
        wait_s = self._first_s
        while not self._closing.wait(wait_s):
            with self._lock:
                if self._closing.is_set():
                    return
                try:
                    # In a session of its own: Ctrl-C in the window is for the runner.
                    self._process = subprocess.Popen(
                        self._command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True
                    )
                except OSError:
                    return  # no memory, say: the run goes on without it
            self._process.wait()
            wait_s = _AGAIN_S
