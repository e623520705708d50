# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lock, and a talk with a program that answers in lines: standard library only, Python 3.10 or newer.

Private to this collection.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from ansible_collections.gpuyard.cloud.plugins.module_utils._box import BoxError, tail


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold the kernel's lock on ``file``, and wait for whoever has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def talk(
    command: Sequence[str],
    request: Mapping[str, Any],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float,
) -> dict[str, Any]:
    """Start a program that says ``ready.``, send it one JSON line, and return the JSON object that it answers.

    An empty line ends it; after ``timeout_s`` seconds in all it is killed, with all that it has started. Raises
    :class:`BoxError`.
    """
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as errors:
        try:
            # Ansible's run_command waits for the end.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                list(command),
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise BoxError(f"Pantograph's REPL cannot be started: {command[0]}: {error.strerror}.") from error
        try:
            stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
            lines = _lines(stdout, deadline)
            first = next(lines, b"").decode(errors="replace").strip()
            if first != "ready.":
                errors.seek(0)
                said = tail(f"{first}\n{errors.read().decode(errors='replace')}")
                raise BoxError(f"Pantograph's REPL did not say 'ready.' within {timeout_s:g} s:\n{said}")
            with suppress(BrokenPipeError):
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            line = next(lines, b"").decode(errors="replace").strip()
            with suppress(BrokenPipeError):
                stdin.write(b"\n")
                stdin.flush()
        finally:
            _end(process)
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise BoxError(f"Pantograph's REPL answered {line[:200]!r} within {timeout_s:g} s, which is no JSON object.")
    return answer


def _lines(stream: IO[bytes], deadline: float) -> Iterator[bytes]:
    """Yield the lines of ``stream`` until it ends or ``deadline`` (of the monotonic clock) has come."""
    held = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            block = os.read(stream.fileno(), 1 << 16)
            if not block:
                break
            *whole, held = (held + block).split(b"\n")
            yield from whole


def _end(process: subprocess.Popen[bytes]) -> None:
    """Give the program a moment to end by itself, then kill it and what it has started."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.3)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
