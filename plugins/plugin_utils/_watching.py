# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module on a machine does, shown in the play while it does it. Private to this collection.

The module writes how far it is into a file on the machine (:mod:`_progress`). A thread beside the task looks into it
over the connection that Ansible holds open.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import FILE
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import show_line

HEARTBEAT = "gpuyard.cloud.heartbeat"
_EVERY_S = 5.0
_LOOK_S = 10.0  # a look that takes longer is given up
_STALE_S = 10.0  # by the machine's clock: a killed module leaves its file behind
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def in_words(name: str, record: Mapping[str, Any]) -> str:
    """Return one line for people: ``run-0: weights base: 1.2 of 4.1 GB, 85 MB/s, 34 s left``.

    ``record`` has what :class:`_progress.Progress` writes.
    """
    line = str(record.get("line") or "")
    begin = f"{name}: {record['what']}" + (f": {line}" if line else "")
    if "done" not in record:
        return f"{begin} ({record['seconds']:.0f} s)"
    done, total, speed = record["done"], record.get("total") or 0, record.get("bytes_per_s") or 0
    unit, size = next(((unit, size) for unit, size in _UNITS if max(done, total) >= size), ("bytes", 1.0))
    digits = 1 if unit == "GB" else 0
    amount = f"{done / size:.{digits}f}" + (f" of {total / size:.{digits}f}" if total else "")
    parts = [f"{amount} {unit}"]
    if speed:
        parts.append(_speed(speed))
        if total > done:
            parts.append(f"{_duration((total - done) / speed)} left")
    return f"{begin}: {', '.join(parts)}"


def _speed(bytes_per_s: float) -> str:
    unit, size = next(((unit, size) for unit, size in _UNITS[1:] if bytes_per_s >= size), ("kB", 1e3))
    value = bytes_per_s / size
    return f"{value:.{0 if value >= 10 else 1}f} {unit}/s"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


@contextmanager
def watching(action: ActionBase, variables: Mapping[str, Any] | None) -> Iterator[None]:
    """Show every few seconds how far the module is that runs on the machine meanwhile. Never fails the task."""
    watch = _Watch(action, str((variables or {}).get("inventory_hostname") or "machine"))
    if watch.every_s <= 0:
        yield
        return
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        yield
    finally:
        watch.end()


class _Watch:
    """Looks at one machine while one task goes on."""

    def __init__(self, action: ActionBase, name: str) -> None:
        self.name = name
        self._action = action
        self._ended = threading.Event()
        # What shows a line, or starts a program, is let through by the end of the task, and by nothing after it.
        self._lock = threading.Lock()
        self._looking: subprocess.Popen[str] | None = None
        try:
            self.every_s = float(C.config.get_config_value("every", plugin_type="callback", plugin_name=HEARTBEAT))
        except AnsibleError:  # the callback, whose setting this is, is not in use
            self.every_s = _EVERY_S

    def run(self) -> None:
        """Show a line every few seconds."""
        begun = time.monotonic()
        task = self._action._task
        while not self._ended.wait(self.every_s):
            # What does not tell how far it is has the task's name.
            line = f"{self.name}: {task.get_name()} ({time.monotonic() - begun:.0f} s)"
            if not task.no_log:
                with suppress(Exception):  # whatever it is, the task goes on, and so does its line
                    line = in_words(self.name, self._look())
            with self._lock:
                if not self._ended.is_set():
                    show_line(line)

    def end(self) -> None:
        """Show nothing any more; a look that is on its way is given up."""
        self._ended.set()
        with self._lock:
            if self._looking:
                self._looking.kill()

    def _look(self) -> Mapping[str, Any]:
        """Return what the module has written; raise any error when it has written nothing lately."""
        command = self._command()
        with self._lock:
            if self._ended.is_set():
                raise ValueError("the task has ended")
            self._looking = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        try:
            written, now = self._looking.communicate(timeout=_LOOK_S)[0].splitlines()
        finally:
            self._looking.kill()
        record: Mapping[str, Any] = json.loads(written)
        if abs(float(now) - record["at"]) > _STALE_S:
            raise ValueError("left behind by a module that was killed")
        return record

    def _command(self) -> list[str]:
        """Return the command that prints the file and the machine's time; raise an error where there can be none."""
        connection = self._action._connection
        words = ["sh", "-c", f"cat {FILE} && echo && date +%s"]
        if self._action._play_context.become:
            words = ["sudo", "-n", *words]
        if connection.transport == "local":
            return words
        if connection.transport != "ssh":
            raise ValueError(f"nothing is known of connections by {connection.transport}")
        program, *options = connection._build_command(connection.get_option("ssh_executable"), "ssh")
        if b"ControlPath=none" in options:
            raise ValueError("the task has a connection of its own")
        # Only the connection that is there: this is no reason to open one, or to ask for a password.
        first = ["-o", "ControlMaster=no", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        host = connection.get_option("host")
        return [program.decode(), *first, *(option.decode() for option in options), host, shlex.join(words)]
