"""What a supervisor tells people of a run: by mail, a webhook or ntfy, as the run's workload names them.

The channels are those of the monitor on the machine. Addresses and passwords that are secret come from the environment
of the supervisor, by the names of their variables. A channel that is slow delays nothing else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from gpuyard import pace
from gpuyard.box.checkpoints import Store
from gpuyard.box.monitor import notify
from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import timestamp
from gpuyard.providers.base import Progress
from gpuyard.renting import record

TRIES = 10
"""How often a notice is sent, at most, to a channel that does not take it."""
AGAIN_S = 30.0
"""The time between two tries (seconds)."""
_LOOK_S = 0.5

Channels = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Notice:
    """A notice that some channels have not got yet; ``channels`` is ``None`` before anybody has looked which."""

    run: str
    message: Mapping[str, Any]
    channels: Channels | None = None
    tries: int = 0
    next_at: float = 0.0


@dataclass
class Notices:
    """Tells what happens to the runs of the bucket ``store``. What cannot be sent is told by ``progress``."""

    store: Store
    progress: Progress
    secrets: Mapping[str, str] = field(default_factory=lambda: os.environ)
    send: Callable[[Channels, Mapping[str, Any], Mapping[str, str]], dict[str, str]] = notify.send_all
    clock: pace.Clock = field(default_factory=pace.Clock)
    _waiting: SimpleQueue[_Notice] = field(default_factory=SimpleQueue)
    _unsent: list[_Notice] = field(default_factory=list)
    _known: dict[str, tuple[str, Channels]] = field(default_factory=dict)

    def tell(self, run: str, alert: str, text: str, *, warning: bool) -> None:
        """Have a notice sent to every channel of the run's workload: ``alert`` is a word, ``text`` a sentence."""
        self._waiting.put(
            _Notice(
                run,
                {
                    "time": timestamp(),
                    "event": "warning" if warning else "news",
                    "alert": alert,
                    "text": text,
                    "run": run,
                    "node": "",
                    "title": f"{run}: {text}",
                },
            )
        )

    def serve(self, stop: threading.Event) -> None:
        """Send what is to be sent until ``stop`` is set, and then what is left."""
        while not stop.wait(_LOOK_S):
            self.send_waiting()
        self.send_waiting()

    def send_waiting(self) -> None:
        """Send what is new, and what a channel has not taken where it is time to try again."""
        now = self.clock.now()
        due = [notice for notice in self._unsent if notice.next_at <= now]
        self._unsent = [notice for notice in self._unsent if notice.next_at > now]
        while True:
            try:
                due.append(self._waiting.get_nowait())
            except Empty:
                break
        for notice in due:
            self._send(notice)

    def _send(self, notice: _Notice) -> None:
        workload, channels = self._channels(notice.run)
        if notice.channels is not None:
            channels = notice.channels
        if not channels:
            return
        message = {**notice.message, "workload": workload}
        failed = self.send(channels, message, self.secrets)
        if not failed:
            return
        tries = notice.tries + 1
        if tries in (1, TRIES):
            left = "is tried again" if tries < TRIES else "is not tried again"
            for channel, why in failed.items():
                self.progress(
                    f"Run {notice.run}: {channel} has not got the notice of {message['alert']} ({why}); it {left}."
                )
        if tries < TRIES:
            still = {name: options for name, options in channels.items() if name in failed}
            self._unsent.append(replace(notice, channels=still, tries=tries, next_at=self.clock.now() + AGAIN_S))

    def _channels(self, run: str) -> tuple[str, Channels]:
        """Return the workload's name and the channels of a run; none where the bucket cannot say."""
        if run not in self._known:
            try:
                kept = record.read(self.store, run)
                workload = record.resolved_of(kept.made_of, run).workload if kept.made_of else None
            except CheckpointError as error:
                self.progress(f"Who is to be told of run {run} is not known: {error}")
                return "", {}
            named = workload.monitoring.notify.model_dump(mode="json") if workload and workload.monitoring else {}
            channels = {name: options for name, options in named.items() if options}
            self._known[run] = (workload.name if workload else "", channels)
        return self._known[run]
