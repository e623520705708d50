"""Supervising: runs are kept at work until they end, with nobody at the keyboard.

One survey of all clouds a round serves all runs, and each run is acted on in a thread of its own. Where each stands is
in the clouds, the bucket and the labels, so a supervisor may be killed, and another one may go on from anywhere.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from gpuyard import pace
from gpuyard.api import follow
from gpuyard.api.notices import Notices
from gpuyard.api.site import Site
from gpuyard.api.supervision import Look, Rules, Watch
from gpuyard.box.checkpoints import Store, answer_soon
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.config import SshKey
from gpuyard.errors import BucketError, CheckpointError, GpuyardError, MissingObjectError, UsageError
from gpuyard.formats.label import RUN_NAME, check_form
from gpuyard.formats.supervision import Supervision, supervision_key
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.remedies import option
from gpuyard.renting import access, claim, ending, runs, survey, watch
from gpuyard.renting.claim import Lease
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.survey import Survey

INTERVAL_S = 5.0
"""How often the clouds are asked what is rented (seconds)."""
SURVEY_S = 10.0
"""How long they have to answer, all together (seconds)."""
WANTED_S = 15.0
"""How often the bucket is asked which runs are to be supervised, where none are named (seconds)."""
HEARTBEATS = "heartbeat"
"""The folder of a run in the bucket where its machines show that they are alive."""
_TOLD_S = 0.1
_SITE = ("sandbox", "sandbox_state", "bucket", "bucket_endpoint", "ssh_key")


@dataclass(frozen=True, slots=True)
class Supervise:
    """Which runs are supervised, and how.

    ``runs``: their names; without any, all that a supervisor has begun to watch and that have not ended. ``stay``:
    whether to go on when none is left, and to take up what is named to another supervisor. ``interval_s`` is the time
    between two looks at the clouds, in seconds; the rest is as in :class:`Rules`, in minutes where it says so.
    """

    runs: Sequence[str] = ()
    stay: bool = False
    shutdown: bool | None = None
    stage: str | None = None
    interval_s: float = INTERVAL_S
    losses_before_on_demand: int = 3
    silent_minutes: float = 10.0

    def check(self) -> None:
        """Raise :class:`UsageError` for what cannot work."""
        for name in self.runs:
            check_form(name)
        if twice := sorted({name for name in self.runs if list(self.runs).count(name) > 1}):
            raise UsageError(f"run={','.join(self.runs)} names {', '.join(twice)} twice: name each run once.")
        if not (math.isfinite(self.interval_s) and self.interval_s >= 1):
            raise UsageError(f"interval_s={self.interval_s:g} must be a number of seconds from 1 on.")
        if self.losses_before_on_demand < 0:
            raise UsageError(
                f"losses_before_on_demand={self.losses_before_on_demand} must be a number from 0 on; 0 is never."
            )
        if not (math.isfinite(self.silent_minutes) and (self.silent_minutes == 0 or self.silent_minutes >= 1)):
            raise UsageError(
                f"silent_minutes={self.silent_minutes:g} must be a number of minutes from 1 on, or 0 for never."
            )


@dataclass(frozen=True, slots=True)
class Supervised:
    """How the runs have ended: by their names, why each needs no supervisor any more, and which of them have failed."""

    ended: Mapping[str, str]
    failed: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        words = [f"Run {name}: {why}." for name, why in self.ended.items()] or ["No run is to be supervised."]
        return {"ended": dict(self.ended), "failed_runs": list(self.failed), "text": "\n".join(words)}


def supervise(site: Site, request: Supervise, *, check: bool = False, progress: Progress) -> Supervised:
    """Keep the runs at work until each has ended, or, with ``stay``, until this is interrupted.

    With ``check`` it is only seen whether that can be. Raises :class:`UsageError` for a run that nobody knows, and
    without a bucket that other controllers see.
    """
    request.check()
    if site.provider:
        site = dataclasses.replace(site, provider=None)  # a run may go on anywhere
    store = site.shared_store()
    if store is None:
        raise UsageError(
            "A supervisor needs a bucket that other controllers see, since without one nobody could take over from it, "
            f"nor a run go on on another machine: name one with {option('bucket', 's3://…')}."
        )
    runs.check_answers(store)
    lines: SimpleQueue[str] = SimpleQueue()
    notices = Notices(store, lines.put)
    world = Real(site, lines.put, clouds=site.clouds(), store=store, key=site.key(), notices=notices)
    supervisor = Supervisor(world, request, launch_options(site), store)
    supervisor.check_known()
    if check:
        return Supervised({})
    stop = threading.Event()
    telling = threading.Thread(target=notices.serve, args=(stop,), name="notices", daemon=True)
    telling.start()
    try:
        return supervisor.serve(lines, progress)
    finally:
        stop.set()
        telling.join(SURVEY_S)


def launch_options(site: Site) -> dict[str, Any]:
    """Return the options of a play that say what ``site`` says."""
    return {name: value for name in _SITE if (value := getattr(site, name)) is not None}


def give_over(site: Site, run: str, *, progress: Progress) -> None:
    """Tell the supervisor of ``run`` that it is ended on purpose, before a machine of it goes.

    A bucket that does not answer is told, and hinders no end.
    """
    if not RUN_NAME.fullmatch(run):
        return  # told by whoever ends it
    try:
        store = site.shared_store()
    except UsageError:
        return  # likewise
    if store is None:
        return
    try:
        known = answer_soon(lambda: _find(store, run), store.url)
        if known is not None and known.state != "ended":
            ended = dataclasses.replace(known, state="ended", outcome="it was torn down")
            store.put(supervision_key(run), ended.to_bytes())
    except CheckpointError as error:
        progress(f"A supervisor of run {run} could not be told that it ends, and may rent for it again: {error}")


def _find(store: Store, run: str) -> Supervision | None:
    key = supervision_key(run)
    try:
        return Supervision.from_bytes(store.get(key), where=f"{store.url}/{key}")
    except MissingObjectError:
        return None


def wanted(store: Store) -> list[str]:
    """Return the runs that a supervisor has begun to watch and that have not ended."""

    def watched(name: str) -> str:
        try:
            found = _find(store, name)
        except BucketError:
            raise
        except CheckpointError:
            return name  # whoever watches it says what is wrong with it
        return name if found is not None and found.state != "ended" else ""

    return [name for name in in_parallel(watched, filter(RUN_NAME.fullmatch, store.folders())) if name]


class Supervisor:
    """Looks at all runs in rounds."""

    def __init__(
        self,
        world: Real,
        request: Supervise,
        options: Mapping[str, Any],
        store: Store,
        clock: pace.Clock | None = None,
    ) -> None:
        self._world, self._request, self._store = world, request, store
        self._clock = clock or pace.Clock()
        self._rules = Rules(
            request.shutdown,
            request.stage,
            request.losses_before_on_demand,
            request.silent_minutes * 60,
            dict(options),
        )
        self._watches: dict[str, Watch] = {}
        self._busy: dict[str, threading.Thread] = {}
        self._wanted_at = float("-inf")
        self._cloudless = False  # whether none of the clouds has answered the last time

    def check_known(self) -> None:
        """Raise :class:`UsageError` for a named run that neither a cloud nor the bucket knows."""
        if not self._request.runs:
            return
        seen = self._world.survey()
        known = runs.join(seen.instances, runs.stored(self._store))
        for name in self._request.runs:
            if name not in [run.name for run in known]:
                seen.complete()  # it may be at the cloud that does not answer
                watch.choose(known, name)

    def serve(self, lines: SimpleQueue[str], progress: Progress) -> Supervised:
        """Look in rounds until no run is left; what is put into ``lines`` is told from here."""
        try:
            while True:
                self._take_up(lines.put)
                if not (self._request.stay or self._open()):
                    break
                self._round(lines.put)
                self._show(lines, progress, self._request.interval_s)
        finally:
            self._leave(lines, progress)
        ended = {name: one.over for name, one in sorted(self._watches.items()) if one.over}
        return Supervised(ended, [name for name in ended if self._watches[name].failed])

    def _open(self) -> list[Watch]:
        return [one for one in self._watches.values() if not one.over]

    def _take_up(self, say: Progress) -> None:
        """Begin to watch what is to be watched and is not yet."""
        names: Collection[str] = self._request.runs
        if not names:
            if self._clock.now() - self._wanted_at < WANTED_S:
                return
            self._wanted_at = self._clock.now()
            try:
                names = wanted(self._store)
            except CheckpointError as error:
                say(f"Which runs are to be supervised is not known now: {error}")
                return
        for name in names:
            before = self._watches.get(name)
            # One that ended and is wanted once more has been named to another supervisor since.
            if before is None or (before.over and not self._request.runs):
                self._watches[name] = self._watch(name, say)

    def _watch(self, name: str, say: Progress) -> Watch:
        def prefixed(line: str) -> None:
            say(f"{name}: {line}")

        world = dataclasses.replace(self._world, progress=prefixed)
        return Watch(name, self._rules, world, Lease(self._store, name), prefixed)

    def _round(self, say: Progress) -> None:
        """Ask the clouds once, and let each run that nothing is being done for be looked at."""
        free = [one for one in self._open() if not self._is_busy(one.name)]
        if not free:
            return
        try:
            seen = self._world.survey()
        except GpuyardError as error:
            if not self._cloudless:
                say(f"The clouds cannot be asked now, so nothing is known of any machine: {error}")
            self._cloudless = True
            return
        self._cloudless = False

        def step(one: Watch) -> None:
            try:
                one.step(seen)
            except Exception as error:  # whatever it is: the other runs go on, and the next look may be better
                say(f"Run {one.name} could not be looked at: {error!r}")

        for one in free:
            thread = threading.Thread(target=step, args=(one,), name=f"run {one.name}", daemon=True)
            self._busy[one.name] = thread
            thread.start()

    def _is_busy(self, name: str) -> bool:
        return name in self._busy and self._busy[name].is_alive()

    def _show(self, lines: SimpleQueue[str], progress: Progress, seconds: float) -> None:
        """Tell what there is to tell for so many seconds, or until no run is left."""
        until = time.monotonic() + seconds
        while True:
            try:
                progress(lines.get(timeout=_TOLD_S))
            except Empty:
                if time.monotonic() >= until or not (self._request.stay or self._open()):
                    return

    def _leave(self, lines: SimpleQueue[str], progress: Progress) -> None:
        """Wait for what is being done, and let others have the runs."""
        if working := [name for name in self._busy if self._is_busy(name)]:
            progress(f"What is being done for {', '.join(working)} is seen through.")
        while any(map(self._is_busy, self._busy)) or not lines.empty():
            try:
                progress(lines.get(timeout=_TOLD_S))
            except Empty:
                continue
        for one in self._watches.values():
            one.leave()


@dataclass(frozen=True, slots=True, kw_only=True)
class Real(follow.Real):
    """The way to the runs over clouds, bucket and SSH: what following needs, and what supervising adds."""

    clouds: Sequence[Provider]
    store: Store
    key: SshKey
    notices: Notices

    def survey(self) -> Survey:
        """Ask all clouds what is rented; raises :class:`GpuyardError` when none answers."""
        seen = survey.take(self.clouds, within_s=SURVEY_S)
        seen.answered()
        return seen

    def look(self, name: str, seen: Survey) -> Look:
        """Return the run as clouds, bucket and machines show it."""
        kept = runs.stored(self.store, run=name, costs=True)
        if why := kept.unlimited.get(name):
            raise CheckpointError(why)  # a limit that is not understood is not none
        answered = [cloud.name for cloud in self.clouds if cloud.name not in seen.errors]
        run = watch.choose(runs.join(seen.instances, kept, answered), name)
        living = [one for one in run.instances if one.alive]
        access.let_in(self.clouds, living, self.key, timeout_s=watch.ASK_S, progress=None)
        (run,) = watch.asked([run], self.key)
        beats = {item.key: f"{item.tag} {item.modified}" for item in self.store.objects(f"{name}/{HEARTBEATS}/")}
        signs = {}
        for node in run.nodes:
            # The one node of a run may have another name on each machine that it moves to.
            own: object = beats if len(run.nodes) == 1 else beats.get(f"{name}/{HEARTBEATS}/{node.name}.json")
            signs[node.name] = f"{own or ''} {node.manifest.sequence if node.manifest else ''}".strip()
        return Look(run, frozenset(seen.errors), signs)

    def status(self, instance: Instance) -> str:
        """Return the state of a machine's stages."""
        return str(watch.status(instance, self.key).get("state"))

    def end_returned(self, name: str, returned: Instance) -> None:
        """End a machine that has come back, unless another command rents for the run at this moment."""
        with claim.alone(name, claim.Claims(Notebook(lambda: self.store), self.progress)):
            living = [one for one in survey.owned(self.survey().instances, name) if one.alive]
            if returned.place in [one.place for one in living] and len(living) > 1:
                self.end(ending.Order(name, places=frozenset({returned.place})))

    def supervision(self, name: str) -> Supervision:
        """Return how the run is supervised."""
        return _find(self.store, name) or Supervision()

    def write(self, name: str, supervision: Supervision) -> None:
        """Write that into the bucket."""
        self.store.put(supervision_key(name), supervision.to_bytes())

    def tell(self, run: str, alert: str, text: str, *, warning: bool) -> None:
        """Tell people of the run."""
        self.notices.tell(run, alert, text, warning=warning)
