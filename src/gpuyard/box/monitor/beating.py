"""The machine's sign of life: its heartbeat into the bucket every minute, and a look at the run's limits there.

While stages run, a thread of the runner does it: it has a bucket's client loaded, which takes more memory than the
monitor may. Where no stage runs, the monitor has it done now and then by a process of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time

from gpuyard.box import machine
from gpuyard.box.checkpoints import Store
from gpuyard.box.monitor import known_limits
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.formats.heartbeat import EVERY_S, Heartbeat, heartbeat_key
from gpuyard.formats.journal import Journal
from gpuyard.formats.manifest import JOURNAL, timestamp

_LEDGER_EVERY_S = 300.0


def heartbeat(spec: BoxSpec, state: str) -> Heartbeat:
    """Return how this machine stands now."""
    progress = Journal(spec.root / JOURNAL).progress(spec.order)
    place = (progress.running if state == "running" else None) or progress.current
    disk = machine.disk(spec.root)
    provider, own_id = spec.instance.get("provider"), spec.instance.get("id")
    return Heartbeat(
        time=timestamp(),
        run=spec.run,
        node=spec.node,
        instance=f"{provider}/{own_id}" if provider and own_id else "",
        state=state,
        iteration=place[0] if place else None,
        stage=place[1] if place else None,
        done=len(progress.done),
        total=len(progress.order),
        checkpoint=(progress.last_published or {}).get("sequence"),
        gpu_use_percent=tuple(gpu.use_percent for gpu in machine.gpus() if gpu.use_percent is not None),
        disk_used_percent=disk.used_percent if disk else None,
        disk_free_gb=disk.free_gb if disk else None,
    )


def beat(spec: BoxSpec, store: Store, state: str, *, limits: bool = True) -> None:
    """Write the heartbeat, and with ``limits`` note the run's limits on the machine.

    Raises :class:`gpuyard.errors.GpuyardError` or ``OSError`` when the bucket or the disk does not take it.
    """
    store.put(heartbeat_key(spec.run, spec.node), heartbeat(spec, state).to_bytes())
    if limits:
        known_limits.write(spec.folder, known_limits.look(store, spec.run, time.time()))


class Beating:
    """A thread that does it from :meth:`start` to :meth:`close`. A bucket that fails, or hangs, holds up nobody."""

    def __init__(self, spec: BoxSpec, *, every_s: float = EVERY_S) -> None:
        self._spec = spec
        self._every_s = every_s
        self._closing = threading.Event()
        self._state = "running"
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin, where there is a bucket."""
        if self._spec.bucket:
            self._thread.start()

    def close(self, state: str) -> None:
        """End, and write once more, how the run stands at its end, without waiting for a bucket that hangs."""
        if self._spec.bucket and self._thread.is_alive():
            self._state = state
            self._closing.set()
            self._thread.join(5.0)

    def _keep(self) -> None:
        store: Store | None = None
        looked_at = float("-inf")
        wait_s = 0.0
        while True:
            last = self._closing.wait(wait_s)
            wait_s = self._every_s
            now = time.monotonic()
            with contextlib.suppress(Exception):  # whatever it is: the next one may get there
                store = store or self._spec.store()
                limits = now - looked_at >= _LEDGER_EVERY_S or not known_limits.read(self._spec.folder).budget_usd
                beat(self._spec, store, self._state, limits=limits)
                looked_at = now if limits else looked_at
            if last:
                return
