"""Plays from Python: a thin front over ansible-runner.

It starts a playbook of the collection in a private folder that is removed afterwards (ansible-runner writes the whole
process environment into it, keys included), and turns its events into a few plain ones.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ansible_runner

from gpuyard.fingerprint import collection_root

_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a play did.

    ``kind`` is ``task`` (one begins), ``skipped``, ``line`` (a plugin printed a line), ``changed``, or ``failed``;
    ``text`` is the task's name, the line, or the failure's message; ``role`` the task's role, if any; ``seconds`` how
    long it took.
    """

    kind: str
    text: str
    role: str = ""
    seconds: float = 0.0


def _translate(raw: Mapping[str, object]) -> Event | None:
    data = raw.get("event_data")
    details: Mapping[str, object] = data if isinstance(data, Mapping) else {}
    task, role = str(details.get("task") or ""), str(details.get("role") or "").removeprefix("gpuyard.cloud.")
    seconds = details.get("duration")
    took = float(seconds) if isinstance(seconds, int | float) else 0.0
    result = details.get("res")
    answer: Mapping[str, object] = result if isinstance(result, Mapping) else {}
    match raw.get("event"):
        case "playbook_on_task_start":
            return Event("task", task, role)
        case "verbose" | "warning" | "error" | "system_warning" if str(raw.get("stdout") or "").strip():
            return Event("line", str(raw["stdout"]))
        case "runner_on_ok" if answer.get("changed"):
            return Event("changed", task, role, took)
        case "runner_on_skipped":
            return Event("skipped", task, role, took)
        case "runner_on_failed" | "runner_on_unreachable" if not details.get("ignore_errors"):
            return Event("failed", str(answer.get("msg") or answer), role, took)
        case _:
            return None


def run_playbook(
    verb: str,
    variables: Mapping[str, object],
    *,
    on_event: Callable[[Event], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run the collection's playbook ``verb`` (``launch``, ``teardown``, …) and return its exit status.

    ``variables`` become extra vars, which end on disk for as long as the play runs: never put a secret into them.
    """

    def handle(raw: Mapping[str, object]) -> bool:
        event = _translate(raw)
        if event:
            on_event(event)
        return False  # keeps ansible-runner from writing a file an event

    # ansible-playbook is next to this Python, which need not be an activated environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    envvars = {"ANSIBLE_NOCOLOR": "1", "PATH": path, **(environment or {})}
    root = collection_root()
    if root and (root / "ansible.cfg").is_file() and "ANSIBLE_CONFIG" not in os.environ:
        envvars["ANSIBLE_CONFIG"] = str(root / "ansible.cfg")
    with _interruptible() as interrupted, tempfile.TemporaryDirectory(prefix="gpuyard-play-") as private:
        outcome = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(Path.cwd()),
            playbook=f"gpuyard.cloud.{verb}",
            extravars=dict(variables),
            envvars=envvars,
            event_handler=handle,
            cancel_callback=interrupted,
            quiet=True,
        )
    return int(outcome.rc)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end the play and then do what it does without one; yield whether it came.

    The play has a terminal of its own, so it does not hear it. ansible-runner's own handlers would stay after the play,
    and make every later Ctrl-C do nothing.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDING}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
