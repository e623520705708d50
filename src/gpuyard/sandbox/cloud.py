"""The life of a rental, whatever its provider: renting, booting, stopping, ending, being taken away, and its bill.

The API modules translate between this and their provider's words. Containers are handled in threads, one rental
at a time; the event loop never waits for the engine except where the API's answer depends on it.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpuyard.sandbox import bill, boxes, catalogue, faults, services
from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.engine import Engine, EngineError
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Fault, Holding, Json, Phase, ProviderName, Rental, World
from gpuyard.sandbox.settings import Settings

LOG = logging.getLogger("gpuyard.sandbox")
GPU_LINE = "gpu"
DISK_LINE = "disk"
INSTANCE_LINE = "instance"
_RELET_S = 900.0  # how long somebody else keeps a machine that was taken from us
_STOP_GRACE_S = 10
_ADDRESS_ATTEMPTS = 5
_LOOK_S = 2.0  # the engine is asked no more often which boxes run
_TAKEN = ("already in use", "already allocated", "cannot assign")


class Cloud:
    """All rentals of one sandbox."""

    def __init__(
        self, engine: Engine, settings: Settings, state: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.engine = engine
        self.settings = settings
        self._clock = clock
        self._file = state / "state.json"
        self.world = World.load(self._file)
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_at = float("-inf")
        self._booting: set[asyncio.Event] = set()
        self._bucket_stops = 0  # how often it was told to be gone

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Return the clouds' time, in seconds since 1970: this machine's, and as far ahead as it was set."""
        return self._clock() + self.world.clock_ahead_s

    @functools.cached_property
    def vast_records(self) -> list[Json]:
        """Vast's machines: the catalogue's, and as many more as the settings say."""
        return [*catalogue.vast_records(), *catalogue.vast_market(self.settings.offers, self.settings.seed)]

    def advance(self, seconds: float) -> None:
        """Set the clouds' clock forward: what bills has billed so much longer, and what boots has booted."""
        self.world.clock_ahead_s += seconds
        self.save()
        for waiting in self._booting:
            waiting.set()

    def save(self) -> None:
        """Keep the present state over a restart."""
        self.world.save(self._file)

    def statement(self) -> Json:
        """Return the bill so far."""
        return bill.statement([*self.world.rentals, *self.world.holdings], self.clock())

    def boot_fraction(self, rental: Rental) -> float:
        """Return how far a booting rental is, from 0 to 1."""
        if self.settings.boot_seconds <= 0:
            return 1.0
        return min(1.0, (self.clock() - rental.phase_since) / self.settings.boot_seconds)

    def machine_taken(self, machine: str) -> bool:
        """Return whether a Vast machine is rented, by us or, after a preemption, by somebody else."""
        now = self.clock()
        return any(
            rental.item == machine
            and (rental.phase is not Phase.GONE or (rental.relet and now - (rental.ended_at or 0) < _RELET_S))
            for rental in self.world.rentals
            if rental.provider == "vast"
        )

    async def release_storage(self, holding: Holding) -> None:
        """End a volume or file system for good, with what boxes have stored in it."""
        await self.release(holding)
        try:
            await asyncio.to_thread(self.engine.remove_volume, boxes.volume(self.settings, holding.id))
        except EngineError as error:
            LOG.warning("%s %s: what was stored in it stays behind: %s", holding.provider, holding.id, error)

    def reprice(self, holding: Holding, price_per_hour_usd: float) -> None:
        """Let something cost another price from now on."""
        now = self.clock()
        holding.close_lines(now)
        holding.open_line(holding.kind, price_per_hour_usd, now)
        self.save()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lock(self, rental: Rental) -> asyncio.Lock:
        return self._locks.setdefault(rental.container, asyncio.Lock())

    # -- life ----------------------------------------------------------------------------------------------------------

    def rent(self, rental: Rental, *, started: bool = True) -> None:
        """Take a rental on: from now on it is listed and billed. Its container starts in the background."""
        self.world.rentals.append(rental)
        if not started:
            rental.phase, rental.intended = Phase.STOPPED, "stopped"
        self.save()
        LOG.info("%s %s rented: %s, label %r", rental.provider, rental.id, rental.item, rental.label)
        if started:
            self._background(self._boot(rental))

    async def _boot(self, rental: Rental) -> None:
        since = rental.phase_since
        async with self._lock(rental):
            if rental.phase is not Phase.BOOTING:
                return
            try:
                bad_gpu, slow_disk, no_key, stuck = (
                    not rental.made and self.take_fault(rental.provider, kind) is not None
                    for kind in ("bad-gpu", "slow-disk", "no-key", "stuck-boot")
                )
                if no_key:
                    rental.public_keys = []
                await asyncio.to_thread(self._start_container, rental, bad_gpu=bad_gpu, slow_disk=slow_disk)
            except Exception as error:
                # Whatever it is, the rental must not stay in its boot for ever.
                LOG.warning("%s %s cannot start: %s", rental.provider, rental.id, error, exc_info=_unforeseen(error))
                if rental.phase is Phase.BOOTING:
                    rental.phase, rental.status_text = Phase.FAILED, f"OCI runtime create failed: {error}"
                    self.save()
                return
        rental.made = True
        self.save()
        if stuck:
            return
        await self._until(since + self.settings.boot_seconds)
        if rental.phase is not Phase.BOOTING or rental.phase_since != since:
            return
        rental.phase, rental.phase_since = Phase.RUNNING, self.clock()
        emulated = EMULATED[rental.provider]
        if emulated.bills_gpus:
            rental.open_line(GPU_LINE, emulated.gpu_price(rental), rental.phase_since)
        self.save()
        LOG.info("%s %s runs at %s", rental.provider, rental.id, rental.address)

    async def _until(self, moment: float) -> None:
        """Wait for a moment of the clouds' clock, which may be set forward meanwhile."""
        moved = asyncio.Event()
        self._booting.add(moved)
        try:
            while (left := moment - self.clock()) > 0:
                moved.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(moved.wait(), left)
        finally:
            self._booting.discard(moved)

    def _start_container(self, rental: Rental, *, bad_gpu: bool = False, slow_disk: bool = False) -> None:
        if rental.made:
            if rental.boot == "reboot":
                self.engine.stop(rental.container, grace_s=_STOP_GRACE_S)
            boxes.start(self.engine, rental)
            return
        self.engine.remove(rental.container)  # a half that an interrupted making left behind
        for attempt in range(_ADDRESS_ATTEMPTS):
            # It names the address.
            boot = EMULATED[rental.provider].boot(rental, self._own_key(rental))
            try:
                boxes.make(
                    self.engine,
                    self.settings,
                    rental,
                    gpu={**boot.gpu, "count": 0} if bad_gpu else boot.gpu,
                    environment=boot.environment,
                    onstart=boot.onstart,
                    user_data=boot.user_data,
                    slow_disk=slow_disk,
                )
            except EngineError as error:
                last = attempt == _ADDRESS_ATTEMPTS - 1
                if last or not any(text in str(error) for text in _TAKEN):
                    raise
                # Another sandbox was faster with this address between our look and the engine's.
                self.engine.remove(rental.container)
                number = self.world.next_number()
                rental.address = boxes.choose_address(self.settings.name, number, *rental.ports.values())
            else:
                return

    def _own_key(self, rental: Rental) -> str:
        gives = EMULATED[rental.provider].gives_own_keys
        return self.settings.instance_key(rental.provider, rental.id) if gives else ""

    def owner(self, provider: ProviderName, key: str) -> Rental | None:
        """Return the living instance whose own key this is, ``None`` for a key that is nobody's."""
        return next((one for one in self.world.living(provider) if hmac.compare_digest(self._own_key(one), key)), None)

    def look(self) -> None:
        """Have the engine asked, in the background, whether boxes ended by themselves; the next answers show it."""
        now = self.clock()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._background(self._look())

    async def _look(self) -> None:
        expected = [rental for rental in self.world.rentals if rental.phase is Phase.RUNNING]
        if not expected:
            return
        try:
            running = await asyncio.to_thread(self.engine.running, self.settings.name)
            for rental in expected:
                if rental.container not in running:
                    await self._notice_end(rental)
        except EngineError as error:
            LOG.warning("The container engine does not say what runs: %s", error)

    async def _notice_end(self, rental: Rental) -> None:
        """Look whether a box that should run does, once nothing else is done to it any more."""
        async with self._lock(rental):
            if rental.phase is not Phase.RUNNING:
                return
            state = await asyncio.to_thread(self.engine.state, rental.container)
            if rental.phase is not Phase.RUNNING or (state is not None and state.running):
                return
            if state is None:
                self._mark_lost(rental)
            else:
                # Nobody stopped the machine: it is rented as before, and its price runs on.
                rental.phase, rental.phase_since = Phase.EXITED, self.clock()
            LOG.info("%s %s ended by itself", rental.provider, rental.id)
            self.save()

    def _mark_lost(self, rental: Rental) -> None:
        rental.phase, rental.status_text = Phase.FAILED, "The container was lost."
        rental.close_lines(self.clock(), GPU_LINE)

    async def start(self, rental: Rental, kind: str = "start") -> None:
        """Start a stopped rental, or reboot a running one (``kind="reboot"``)."""
        rental.intended = "running"
        if rental.phase is Phase.RUNNING and kind == "start":
            await self._notice_end(rental)
        if rental.phase in (Phase.BOOTING, Phase.FAILED) or (rental.phase is Phase.RUNNING and kind == "start"):
            self.save()
            return
        now = self.clock()
        rental.close_lines(now, GPU_LINE)
        rental.boot = "reboot" if kind == "reboot" else "start"
        rental.phase, rental.phase_since, rental.preempted = Phase.BOOTING, now, False
        self.save()
        self._background(self._boot(rental))

    async def rebid(self, rental: Rental, price: float) -> None:
        """Take another bid at Vast, which bills from now on; whether it is high enough decides if the machine runs."""
        rental.bid = price
        if rental.phase is Phase.RUNNING:
            now = self.clock()
            rental.close_lines(now, GPU_LINE)
            rental.open_line(GPU_LINE, EMULATED[rental.provider].gpu_price(rental), now)
        if price < float(rental.item_record["min_bid"]):
            if rental.phase is not Phase.STOPPED:
                rental.preempted = True
                self._mark_stopped(rental)
                self._background(self._stop_container(rental, 0))
        elif rental.preempted:
            rental.relet = False
            await self.start(rental)
        self.save()

    async def stop(self, rental: Rental) -> None:
        """Stop a rental as its user; the processes get SIGTERM and ten seconds."""
        rental.intended = "stopped"
        if rental.phase in (Phase.RUNNING, Phase.BOOTING, Phase.EXITED):
            self._mark_stopped(rental)
            self._background(self._stop_container(rental, _STOP_GRACE_S))
        self.save()

    def _mark_stopped(self, rental: Rental) -> None:
        now = self.clock()
        rental.phase, rental.phase_since = Phase.STOPPED, now
        rental.close_lines(now, GPU_LINE)

    async def _stop_container(self, rental: Rental, grace_s: int) -> None:
        async with self._lock(rental):
            if rental.phase is not Phase.STOPPED:
                return
            try:
                await asyncio.to_thread(self.engine.stop, rental.container, grace_s=grace_s)
            except EngineError as error:
                LOG.warning("%s %s cannot stop: %s", rental.provider, rental.id, error)

    async def destroy(self, rental: Rental) -> None:
        """End a rental for good; comes back when its container is removed."""
        now = self.clock()
        rental.phase, rental.phase_since, rental.ended_at = Phase.GONE, now, now
        rental.close_lines(now)
        EMULATED[rental.provider].ended(rental, self.world)
        self.save()
        LOG.info("%s %s destroyed", rental.provider, rental.id)
        async with self._lock(rental):
            try:
                await asyncio.to_thread(self.engine.remove, rental.container)
            except EngineError as error:
                LOG.warning("%s %s: its container stays behind: %s", rental.provider, rental.id, error)

    async def write_keys(self, rental: Rental) -> None:
        """Bring a running box's authorised keys to what the rental says."""
        self.save()
        async with self._lock(rental):
            if rental.phase is Phase.RUNNING:
                try:
                    await asyncio.to_thread(boxes.write_keys, self.engine, rental)
                except EngineError as error:
                    LOG.warning("%s %s cannot be given its keys: %s", rental.provider, rental.id, error)

    # -- volumes, file systems, variables ------------------------------------------------------------------------------

    def hold(self, holding: Holding, price_per_hour_usd: float = 0.0) -> None:
        """Take on what an account holds beside rentals; from now on it is listed and, where it costs, billed."""
        if price_per_hour_usd:
            holding.open_line(holding.kind, price_per_hour_usd, self.clock())
        self.world.holdings.append(holding)
        self.save()
        LOG.info("%s %s %s made", holding.provider, holding.kind, holding.id)

    async def release(self, holding: Holding) -> None:
        """End something for good, with what is stored in it."""
        holding.ended_at = self.clock()
        holding.close_lines(holding.ended_at)
        self.save()
        LOG.info("%s %s %s deleted", holding.provider, holding.kind, holding.id)

    # -- what goes wrong on command ------------------------------------------------------------------------------------

    async def preempt(self, rental: Rental, *, notice_s: float, outcome: str) -> None:
        """Take a machine away. Without notice its processes are killed at once; with notice they first get SIGTERM.

        Outcomes: ``stopped`` and ``outbid`` (Vast; they differ in ``intended_status``, docs/reference/vast.md),
        ``gone`` and ``suspended`` (Vultr, where the real behaviour is not documented).
        """
        async with self._lock(rental):
            if notice_s > 0:
                await asyncio.to_thread(self.engine.stop, rental.container, grace_s=round(notice_s))
            else:
                await asyncio.to_thread(self.engine.kill, rental.container)
        rental.preempted = True
        LOG.info("%s %s preempted (%s)", rental.provider, rental.id, outcome)
        if outcome == "gone":
            await self.destroy(rental)
            return
        if outcome == "suspended":
            rental.suspended = True
            rental.phase, rental.phase_since = Phase.STOPPED, self.clock()
        else:
            rental.intended = "running" if outcome == "outbid" else "stopped"
            rental.relet = True
            self._mark_stopped(rental)
        self.save()

    def preempt_later(self, rental: Rental, *, notice_s: float, outcome: str) -> None:
        """Begin a preemption with notice; the caller does not wait for its end."""
        self._background(self.preempt(rental, notice_s=notice_s, outcome=outcome))

    def add_fault(self, fault: Fault) -> None:
        """Let something go wrong the next times."""
        self.world.faults.append(fault)
        self.save()

    def take_fault(self, provider: ProviderName, kind: str, place: str = "") -> Fault | None:
        """Return the fault that strikes now, and count it; ``place`` says what kind of request it would strike."""
        if not self.world.faults:
            return None
        struck = faults.take(self.world.faults, provider, kind, place, self.clock())
        self.save()
        return struck

    async def stop_bucket(self, for_s: float) -> None:
        """End the bucket's server at once, with what it holds kept; after ``for_s`` seconds of real time it is back."""
        self._bucket_stops += 1
        stop = self._bucket_stops
        await asyncio.to_thread(self.engine.kill, services.container(self.settings, "bucket"))

        async def later() -> None:
            await asyncio.sleep(for_s)
            if stop == self._bucket_stops:  # a later stop has its own end
                await self._end_bucket_stop()

        self._background(later())

    async def _end_bucket_stop(self) -> None:
        """Let the bucket's server run again, if it was told to be gone."""
        if not self._bucket_stops:
            return
        name = services.container(self.settings, "bucket")
        state = await asyncio.to_thread(self.engine.state, name)
        if state is not None and not state.running:
            await asyncio.to_thread(self.engine.start, name)

    async def clear_faults(self) -> None:
        """Forget all faults; machines that were taken away are free again, queued starts happen, the bucket is back."""
        self.world.faults.clear()
        await self._end_bucket_stop()
        for rental in self.world.rentals:
            if rental.relet:
                rental.relet = False
                if rental.phase is Phase.STOPPED and rental.intended == "running":
                    await self.start(rental)
        self.save()

    async def reset(self) -> None:
        """Make the clouds as they were at first: nothing rented, no keys, no faults, no bill, the clock right.

        Ids and addresses that were given out are not given out again.
        """
        living = [rental for rental in self.world.rentals if rental.phase is not Phase.GONE]
        await asyncio.gather(*map(self.destroy, living))
        stored = [
            held for held in self.world.holdings if held.ended_at is None and held.kind in ("volume", "filesystem")
        ]
        await asyncio.gather(*map(self.release_storage, stored))
        await self._end_bucket_stop()
        self.world = World(counter=self.world.counter, listings=self.world.listings)
        self.save()

    # -- the sandbox's own beginning and end ---------------------------------------------------------------------------

    async def resume(self) -> None:
        """Go on after a restart: boots are finished, boxes that ended with the machine are started again."""
        known = {rental.container for rental in self.world.rentals if rental.phase is not Phase.GONE}
        for name in await asyncio.to_thread(self.engine.containers, self.settings.name):
            state = await asyncio.to_thread(self.engine.state, name)
            if state is not None and boxes.INSTANCE_LABEL in state.labels and name not in known:
                await asyncio.to_thread(self.engine.remove, name)
        for rental in self.world.rentals:
            if rental.phase is Phase.BOOTING and (rental.boot == "rent" or not rental.made):
                # Nobody has been in it yet. Half a box, without its keys, would never let anybody in.
                rental.made = False
                self._background(self._boot(rental))
                continue
            if rental.phase not in (Phase.BOOTING, Phase.RUNNING, Phase.STOPPED) or not rental.made:
                continue
            state = await asyncio.to_thread(self.engine.state, rental.container)
            if rental.phase is Phase.STOPPED:
                if state is not None and state.running:
                    self._background(self._stop_container(rental, _STOP_GRACE_S))
            elif state is None:
                self._mark_lost(rental)
            elif rental.phase is Phase.BOOTING:
                rental.boot = "start"
                self._background(self._boot(rental))
            elif not state.running:
                try:
                    await asyncio.to_thread(boxes.start, self.engine, rental)
                except EngineError as error:
                    # The others must not wait for it.
                    rental.phase, rental.status_text = Phase.FAILED, f"OCI runtime create failed: {error}"
                    rental.close_lines(self.clock(), GPU_LINE)
        self.save()

    async def close(self) -> None:
        """End background work; the containers go on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _unforeseen(error: Exception) -> bool:
    """Return whether an error is a mistake of the sandbox, so that the log tells where it was made."""
    return not isinstance(error, EngineError | BadField)
