"""Stopping a run so that its machine stays, and starting it again.

Stopping ends the stages in good order, looks whether the checkpoint that they publish is whole in the bucket, and only
then stops the machine at its cloud. What a stopped machine costs is in the ledger from that moment on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpuyard import pace, records, ssh
from gpuyard.api.end import Change
from gpuyard.api.site import Site
from gpuyard.errors import (
    NoCapacityError,
    NotSavedError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import FIRST_NODE, check_name
from gpuyard.hosts import host_name
from gpuyard.providers.base import Instance, Progress, Provider, State
from gpuyard.remedies import option, remedy
from gpuyard.renting import ending, leaving, machine, survey, together
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

STOPPED_WITHIN_S = 180.0
"""How long a cloud has to stop a machine (seconds)."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Which run is to stop.

    ``force``: also where stopping saves nothing, since its cloud bills a stopped machine in full, and where not
    everything is in the bucket, so that the machine's disk holds the only copy. ``wait_s``: how long the stages have to
    end (seconds); ``None``: as long as the running stage's own grace time and publishing need.
    """

    run: str
    force: bool = False
    wait_s: float | None = None

    def check(self) -> None:
        """Raise :class:`UsageError` for an option that cannot work."""
        if self.run:
            check_name(self.run)
        if self.wait_s is not None and not (math.isfinite(self.wait_s) and self.wait_s > 0):
            raise UsageError(f"wait_s={self.wait_s:g} must be a number of seconds above 0.")


def stop(
    site: Site, request: StopRequest, *, check: bool = False, progress: Progress, clock: pace.Clock | None = None
) -> Change:
    """End the stages of a run in good order, and stop its machines at their clouds. No machine is destroyed.

    Raises :class:`UsageError` and :class:`UnsupportedError` before anything is touched where a machine cannot be
    stopped or stopping saves nothing, and :class:`NotSavedError` when the bucket then does not hold all.
    """
    request.check()
    clouds, key, store = site.clouds(), site.key(), site.shared_store()
    held = _machines(clouds, request.run, "stop")
    lasting = [one for one in held if one.state is State.STOPPED]
    to_stop = [one for one in held if one.state is not State.STOPPED]
    for one in to_stop:
        _refuse_to_stop(clouds, one, request)
    before = [machine.describe(one) for one in held]
    actions = [
        f"end the stages on {one.provider} {one.id} in good order" + ("" if one.way else ", and stop it")
        for one in to_stop
    ]
    if check:
        text = records.planned_text(actions, [])
        return Change(bool(actions), {"machines": before}, {"machines": before}, actions, [], text)
    boxes = ending.OverSsh(key, clouds)

    def end_stages(one: Instance, tell: Progress) -> tuple[bool, str]:
        return leaving.end_stages(boxes, store, one, wait_s=request.wait_s, tell=tell)

    whys = together.at_once(end_stages, to_stop, progress)
    unsaved = [(one, why) for one, (safe, why) in zip(to_stop, whys, strict=True) if not safe]
    for _, why in whys:
        progress(why)
    if unsaved and not request.force:
        raise NotSavedError(
            " ".join(
                f"{why} So {machine.describe(one)} is not stopped, and {machine.costs(one)}." for one, why in unsaved
            )
            + f" `{remedy('launch', run=request.run)}` goes on there, and "
            f"`{remedy('stop', run=request.run, force=True)}` stops it all the same: what is not in the bucket is then "
            "on its disk only."
        )
    ledger = Ledger(Notebook(site.shared_store), progress)
    after = list(lasting)
    for one in to_stop:
        if one.way is None:
            ssh.end_shared_connection(one, key)
            node = one.ref.node if one.ref else FIRST_NODE
            machine.stopped(clouds, request.run, node=node, ledger=ledger, progress=progress)
            after.append(_await_stopped(_cloud(clouds, one), one, clock or pace.Clock()))
        else:
            after.append(one)
    return Change(
        bool(to_stop),
        {"machines": before},
        {"machines": [machine.describe(one) for one in after]},
        actions,
        text=_stopped_text(request.run, after),
    )


def start(site: Site, run: str, *, timeout_s: float = 900.0, check: bool = False, progress: Progress) -> Change:
    """Start the machines of a run that are stopped, and wait until each answers. Its stages are not started.

    Raises :class:`UsageError` for a run without a machine, :class:`NoCapacityError` when somebody else has got the GPU
    of a stopped one, and :class:`UnreachableError` when one does not come up; each with the way out.
    """
    if run:
        check_name(run)
    clouds = site.clouds()
    held = _machines(clouds, run, "start")
    resting = [one for one in held if one.state is State.STOPPED]
    before = [machine.describe(one) for one in held]
    actions = [f"start {one.provider} {one.id}" for one in resting]
    after = before
    if not check:
        ledger = Ledger(Notebook(site.shared_store), progress)

        def work(one: Instance, tell: Progress) -> Instance:
            return _started(clouds, one, run, site, ledger, timeout_s, tell)

        up = together.at_once(work, resting, progress)
        after = [machine.describe(one) for one in [*up, *(one for one in held if one not in resting)]]
    text = [] if resting else [f"No machine of run {run} is stopped: {'; '.join(before)}."]
    if check:
        text += records.planned_text(actions, [])
    return Change(bool(actions), {"machines": before}, {"machines": after}, actions, [] if check else None, text)


def _machines(clouds: Sequence[Provider], run: str, verb: str) -> list[Instance]:
    """Return the living machines of a run; raises :class:`UsageError` when there is none."""
    seen = survey.owned(survey.take(clouds).complete())
    names = sorted({one.ref.run for one in seen if one.ref and one.alive})
    if not run:
        raise UsageError(
            f"Name the run to {verb} with {option('run')}; the runs with machines are: {', '.join(names) or 'none'}."
        )
    held = survey.owned(seen, run)
    living = [one for one in held if one.alive]
    if living:
        if silent := next((one for one in living if one.silent), None):
            raise UsageError(f"{machine.describe(silent)} does not answer: {silent.status_text}.")
        return living
    if held:
        raise UsageError(
            f"Run {run} has lost its machine ({machine.describe(held[0])}): `{remedy('resume', run=run)}` goes on from "
            f"its newest checkpoint on another one, `{remedy('teardown', run=run)}` gives it up."
        )
    raise UsageError(
        f"Run {run} has no machine to {verb}; the runs with machines are: {', '.join(names) or 'none'}. "
        f"`{remedy('resume', run=run)}` goes on with a run on another machine."
    )


def _cloud(clouds: Sequence[Provider], one: Instance) -> Provider:
    return next(cloud for cloud in clouds if cloud.name == one.provider)


def _refuse_to_stop(clouds: Sequence[Provider], one: Instance, request: StopRequest) -> None:
    """Raise the error of a machine that cannot be stopped, or that costs as much when it is."""
    if one.way:
        return
    cloud = _cloud(clouds, one)
    ends = f"`{remedy('teardown', run=request.run)}` saves the run's work and ends the rental; it goes on later with "
    ends += f"`{remedy('resume', run=request.run)}` on another machine"
    if type(cloud).stop is Provider.stop:
        raise UnsupportedError(
            f"{cloud.title} cannot stop an instance without destroying it, so nothing of run {request.run} was "
            f"stopped. {ends}.",
            provider=cloud.name,
        )
    if one.idle_price >= one.price_per_hour_usd and not request.force:
        raise UsageError(
            f"{cloud.title} bills a stopped machine in full ({one.idle_price:.4f} USD an hour), so stopping "
            f"{one.provider} {one.id} saves nothing, and nothing was stopped. {ends}. With {option('force', True)} it "
            "is stopped all the same."
        )


def _await_stopped(cloud: Provider, one: Instance, clock: pace.Clock) -> Instance:
    """Wait until a machine's cloud says that it is stopped, and return it so."""
    began = clock.now()
    for delay in clock.delays():
        now = cloud.instance(one.id)
        if now is None:
            raise UnreachableError(f"{one.provider} {one.id} was to stop, and {cloud.title} does not list it any more.")
        if now.state is State.STOPPED:
            return now
        if clock.now() - began > STOPPED_WITHIN_S:
            run = one.ref.run if one.ref else ""
            raise UnreachableError(
                f"{one.provider} {one.id} was asked to stop and is still {now.status_text} after "
                f"{STOPPED_WITHIN_S:.0f} s, so it may bill in full; its stages have ended and all is saved. "
                f"`{remedy('status', run=run)}` shows it, `{remedy('teardown', run=run)}` ends it."
            )
        clock.sleep(delay)
    raise AssertionError("the delays never end")


def _stopped_text(run: str, held: Sequence[Instance]) -> list[str]:
    nodes = [one.ref.node for one in held if one.ref]
    lines = []
    for one in held:
        name = host_name(run, one.ref.node if one.ref else FIRST_NODE, nodes)
        if one.way:
            lines.append(f"The stages of {name} have ended on own box {one.way.name}, which stays on and is the run's.")
        else:
            lines.append(
                f"{name} is stopped ({one.provider} {one.id}), and bills {one.idle_price:.4f} USD an hour in place of "
                f"{one.price_per_hour_usd:.4f}, for its disk as long as it is kept."
                if one.idle_price < one.price_per_hour_usd
                else f"{name} is stopped ({one.provider} {one.id}), and still bills {one.idle_price:.4f} USD an hour."
            )
    return [*lines, f"{remedy('start', run=run)}", f"  goes on with it; {remedy('teardown', run=run)} ends it."]


def _started(
    clouds: Sequence[Provider],
    one: Instance,
    run: str,
    site: Site,
    ledger: Ledger,
    timeout_s: float,
    tell: Progress,
) -> Instance:
    """Start one machine and wait for it; the errors say what to do about one that does not come."""
    order = machine.Order(
        run=run,
        node=one.ref.node if one.ref else FIRST_NODE,
        workload=None,
        offers=list,
        key=site.key(),
        timeout_s=timeout_s,
        ledger=ledger,
    )
    moves = f"`{remedy('move', run=run, provider='…')}` goes on from the newest checkpoint elsewhere"
    try:
        done = machine.started(clouds, order, progress=tell)
    except NoCapacityError as error:
        raise NoCapacityError(
            f"{error} So {machine.describe(one)} stays stopped, and {machine.costs(one)}: "
            f"`{remedy('start', run=run)}` tries again later, {moves}.",
            provider=one.provider,
        ) from error
    except UnreachableError as error:
        raise UnreachableError(f"{error} `{remedy('start', run=run)}` tries again, {moves}.") from error
    assert done.instance is not None  # it has one, or raises
    return done.instance
