"""The machine of a node, brought into a state: there and reachable, stopped, or gone.

Each function first looks at what the clouds list, then does the least that leads to the wanted state. With ``check`` it
says what it would do, down to the writing API calls, and does none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from gpuyard import market, pace, registry, ssh
from gpuyard.config import SshKey
from gpuyard.errors import (
    AmbiguousError,
    DiskFullError,
    GpuyardError,
    LeakError,
    ProviderError,
    UnreachableError,
    UsageError,
)
from gpuyard.formats.label import FIRST_NODE, RunRef, check_name
from gpuyard.providers.base import OWN, CreateSpec, Instance, Offer, PlannedCall, Progress, Provider, State
from gpuyard.remedies import option, remedy
from gpuyard.renting import claim, destroy, ready, rent, rivals, survey
from gpuyard.renting.acceptance import Acceptance
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.pending import PendingNotes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or with ``check`` would be: in words, as API calls, and the node's machine before and after."""

    before: list[str]
    after: list[str]
    actions: list[str] = field(default_factory=list)
    planned: list[PlannedCall] = field(default_factory=list)
    instance: Instance | None = None
    rented: bool = False  # whether the machine is one that has just been rented, and holds no work yet

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        return bool(self.actions)


@dataclass(frozen=True, slots=True)
class Order:
    """How a machine is to be rented and waited for."""

    run: str
    workload: str | None  # only needed when a machine has to be rented
    offers: Callable[[], Sequence[Offer]]  # asked only when a machine has to be rented; best first
    key: SshKey
    disk_gb: float = 20.0
    image: str = ""
    limited_user: bool = False
    planned: bool = False  # the caller has seen already that the run has no machine
    replace_preempted: bool = False
    node: str = FIRST_NODE
    wait: bool = True
    timeout_s: float = 900.0
    loading_s: float | None = None  # until its cloud calls it running; None: timeout_s
    ssh_s: float | None = None  # from then on until it answers; None: timeout_s
    limits: rent.Limits = field(default_factory=rent.Limits)
    everywhere: Sequence[Provider] = ()  # every cloud that is configured, those asked for or not
    notes: PendingNotes = field(default_factory=PendingNotes)
    ledger: Ledger = field(default_factory=Ledger)
    claims: claim.Claims = field(default_factory=claim.Claims)  # held while a machine that was planned is rented
    keep: Callable[[], None] = lambda: None  # writes into the bucket what the run is made of, before anything is rented
    clock: pace.Clock = field(default_factory=pace.Clock)
    shared: rent.Shared = field(default_factory=rent.Shared)  # with the nodes that are rented at the same time
    lease_end: int | None = None  # for the label of a new machine, in seconds since 1970; None: none, or in the bucket
    acceptance: Acceptance | None = None  # what a new machine has to pass once it answers; None: nothing
    mounting: rent.Mounting | None = None  # what a new machine is created with; None: nothing
    spent: rent.Spent = field(default_factory=rent.Spent)  # towards the limits, brought up to date

    @property
    def whose(self) -> str:
        """For whom the machine is, in words."""
        return whose(self.run, self.node)


def whose(run: str, node: str) -> str:
    """Return a node of a run in words: the run, where it is the one that names no pools."""
    return f"Run {run}" if node == FIRST_NODE else f"Node {node} of run {run}"


def describe(instance: Instance) -> str:
    """Return an instance in a few words: ``vast 1234567, RTX 4090 in SE, running``."""
    place = f" in {instance.region}" if instance.region else ""
    emulated = ", emulated" if instance.emulated else ""
    return f"{instance.provider} {instance.id}, {instance.gpu_name or 'GPU'}{place}, {instance.state}{emulated}"


def costs(instance: Instance) -> str:
    """Return what a machine costs as it is, in words that follow its name."""
    return "costs nothing" if instance.way else f"bills {instance.cost_now_per_hour_usd:.4f} USD an hour"


def get_verb(offer: Offer) -> str:
    """Return what is done to get the machine of ``offer``."""
    return "claim" if offer.provider == OWN else "rent"


def end_verb(instance: Instance) -> str:
    """Return what ends that a run has this machine."""
    return "free" if instance.way else "destroy"


def ended(gone: Sequence[Instance]) -> list[str]:
    """Return in sentences which machines a run has no more."""
    free = "; ".join(describe(one) for one in gone if one.way)
    destroyed = "; ".join(describe(one) for one in gone if not one.way)
    return [f"Free again: {free}."] * bool(free) + [f"Destroyed, and confirmed gone: {destroyed}."] * bool(destroyed)


def following(run: str, held: Sequence[Instance]) -> str:
    """Return what is said when somebody begins to follow a run."""
    bills = "" if all(one.way for one in held) else ", and its machine bills"
    return f"Following run {run}; Ctrl-C ends the following only: the run goes on{bills}."


def present(
    providers: Sequence[Provider], order: Order, *, check: bool = False, progress: Progress | None = None
) -> Outcome:
    """Make the node have a machine that runs and, with ``order.wait``, answers over SSH under its pinned host key.

    A machine that it has is kept, and started when it was stopped. One that was taken away is replaced only with
    ``order.replace_preempted``; otherwise :class:`UsageError` says what to do. A new machine that never becomes usable,
    or does not pass ``order.acceptance``, is destroyed, and the next offer is taken.
    """
    check_name(order.run)
    if check:
        return present_alone(providers, order, check=True, progress=progress)
    with claim.alone(order.run, order.claims if order.planned else None, progress) as waited:
        if waited:
            refuse_after_another(providers, order)
        order.keep()
        return present_alone(providers, order, progress=progress)


def refuse_after_another(providers: Sequence[Provider], order: Order) -> None:
    """Refuse what was planned before another command, for which this one has waited, rented for the same node."""
    if order.planned and (current := _current(order, survey.find(providers, order.run))):
        raise UsageError(
            f"Another command has just rented {describe(current)} for run {order.run}, and brings it into shape. "
            f"`{remedy('logs', run=order.run)}` shows what it does; for a machine beside it, name "
            f"another run with {option('run')}."
        )


def present_alone(
    providers: Sequence[Provider], order: Order, *, check: bool = False, progress: Progress | None = None
) -> Outcome:
    """Do what :func:`present` does, for a caller that is the only one on this controller who rents for the run."""
    held = _held(providers, order, progress)
    current = _current(order, held)
    if current is None and not check and _noted(providers, order, progress):
        held = _held(providers, order, progress)
        current = _current(order, held)
    if current and current.state is State.STOPPED:
        return started(providers, order, check=check, progress=progress)
    if current:
        instance = current if check else _usable(providers, current, order, progress)
        return Outcome(_words(held), _words(held), instance=instance)
    if held and not order.replace_preempted:
        raise UsageError(
            f"{order.whose} has lost its machine ({describe(held[0])}), whose disk may hold what no checkpoint has. "
            f"`{remedy('resume', run=order.run)}` goes on from its newest checkpoint on another "
            f"machine, `{remedy('teardown', run=order.run)}` gives it up."
        )
    if not order.workload:
        raise UsageError(f"{order.whose} has no machine, and to rent one its workload has to be named.")
    spec = CreateSpec(
        ref=RunRef(order.run, order.workload, order.node, order.lease_end),
        ssh_public_key=order.key.public_text,
        disk_gb=order.disk_gb,
        image=order.image,
        limited_user=order.limited_user,
        image_login=registry.login(order.image, os.environ),
        known_ids=frozenset(instance.id for instance in held),
    )
    offers = list(order.offers())
    if not offers:
        # Before anything is destroyed to make room for a machine that then cannot be had.
        raise UsageError("There is no offer to rent.")
    if check:
        return _plan(providers, held, offers, spec)
    actions = [f"{end_verb(instance)} {describe(instance)}" for instance in held]
    destroy.destroy_all(providers, held, ledger=order.ledger, progress=progress)
    order.ledger.gone(order.run, [], [provider.name for provider in providers], node=order.node)
    instance = _new(providers, offers, spec, order, progress)
    actions.append(f"{'claim' if instance.way else 'rent'} {describe(instance)}")
    return Outcome(_words(held), [describe(instance)], actions, instance=instance, rented=True)


def _held(providers: Sequence[Provider], order: Order, progress: Progress | None) -> list[Instance]:
    """Return the node's machines at ``providers``; one that it has at another cloud must not get company."""
    asked = [provider.name for provider in providers]
    seen = survey.take(order.everywhere or providers)
    for name, error in seen.errors.items():
        if name in asked:
            raise error
        if progress:
            progress(f"{name} was not asked for and does not answer, so a machine there would be overlooked: {error}")
    everything = survey.owned(seen.instances, order.run, order.node)
    current = _current(order, everything)
    if current and current.provider not in asked:
        raise UsageError(
            f"{order.whose} has a machine at another cloud ({describe(current)}), and nothing more is rented: leave "
            f"out provider={asked[0]}, name another run, or tear this one down."
        )
    return [one for one in everything if one.provider in asked]


def _noted(providers: Sequence[Provider], order: Order, progress: Progress | None) -> bool:
    """Say whether the node has got a machine from a request that another command has not seen answered."""
    everywhere = order.everywhere or providers
    return bool(
        rent.await_noted(everywhere, order.run, order.notes, node=order.node, progress=progress, clock=order.clock)
    )


def absent(
    providers: Sequence[Provider],
    run: str,
    *,
    ledger: Ledger | None = None,
    notes: PendingNotes | None = None,
    clock: pace.Clock | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Destroy every machine of the run, wherever it is, and come back when each is confirmed gone.

    A machine of a request that ``notes`` say is unanswered is waited for first, as long as it may be unlisted. What
    each has cost is written into ``ledger``. Raises :class:`LeakError` naming every machine that could not be
    confirmed, and every cloud that could not be asked, after all that can be seen was tried: a cloud that is down must
    not keep another one's machine billing.
    """
    check_name(run)
    if notes is not None and not check:
        # What does not answer now is told below, after all that can be seen is gone.
        with suppress(ProviderError):
            rent.await_noted(providers, run, notes, progress=progress, clock=clock or pace.Clock())
    seen = survey.take(providers)
    held = survey.owned(seen.answered(), run)
    others = sorted({one.ref.run for one in survey.owned(seen.instances) if one.ref and one.ref.run != run})
    if progress and others and not held:
        # A slip in the name would otherwise look like the end of a rental that goes on.
        progress(f"Runs that have machines: {', '.join(others)}.")
    planned = []
    trouble = []
    if check:
        by_name = {provider.name: provider for provider in providers}
        planned = [call for instance in held for call in by_name[instance.provider].plan_destroy(instance.id)]
    else:
        try:
            destroy.destroy_all(providers, held, ledger=ledger, progress=progress)
        except ProviderError as error:
            if not seen.errors:
                raise
            trouble.append(str(error))
        if not (seen.errors or trouble):
            # A machine whose end could not be confirmed the last time may be gone now, with nothing left to destroy.
            with suppress(OSError):
                ssh.forget_run(run, providers)
        if ledger is not None:
            ledger.gone(run, held, [provider.name for provider in providers if provider.name not in seen.errors])
    if seen.errors:
        if held and not check and not trouble:
            trouble += ended(held)
        trouble += seen.unanswered().values()
        raise LeakError(
            f"{' '.join(trouble)} Tear run {run} down again when all clouds answer.", provider=next(iter(seen.errors))
        )
    return Outcome(_words(held), [], [f"{end_verb(instance)} {describe(instance)}" for instance in held], planned)


def started(
    providers: Sequence[Provider], order: Order, *, check: bool = False, progress: Progress | None = None
) -> Outcome:
    """Start the node's machine when it is stopped; raises :class:`UsageError` when it has none."""
    held = survey.find(providers, order.run, order.node)
    current = _the_machine(order.run, order.node, held)
    if current.state is not State.STOPPED:
        instance = current if check else _usable(providers, current, order, progress)
        return Outcome(_words(held), _words(held), instance=instance)
    if not check:
        _of(providers, current).start(current.id)
        current = _usable(providers, current, order, progress)
    return Outcome(_words(held), [_as(current, State.RUNNING)], [f"start {current.provider} {current.id}"], [], current)


def stopped(
    providers: Sequence[Provider],
    run: str,
    *,
    node: str = FIRST_NODE,
    ledger: Ledger | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Stop the node's machine; raises :class:`UsageError` when it has none.

    Raises :class:`gpuyard.errors.UnsupportedError` where the cloud can only destroy.
    """
    held = survey.find(providers, run, node)
    current = _the_machine(run, node, held)
    if current.state is State.STOPPED:
        return Outcome(_words(held), _words(held), instance=current)
    if not check:
        _of(providers, current).stop(current.id)
        if ledger is not None:
            ledger.stopped(current)
        if progress:
            progress(f"{current.provider} {current.id} is asked to stop.")
    return Outcome(_words(held), [_as(current, State.STOPPED)], [f"stop {current.provider} {current.id}"], [], current)


def rebooted(
    providers: Sequence[Provider], order: Order, *, check: bool = False, progress: Progress | None = None
) -> Outcome:
    """Reboot the node's machine, and with ``order.wait`` come back when it has begun anew and answers.

    What runs on it ends, its stages too: a launch goes on with them. Raises :class:`UsageError` when it does not run,
    :class:`gpuyard.errors.UnsupportedError` where the cloud cannot, :class:`UnreachableError` when it stays away.
    """
    held = survey.find(providers, order.run, order.node)
    current = _the_machine(order.run, order.node, held)
    if current.state is not State.RUNNING:
        raise UsageError(f"{describe(current)} does not run, so it cannot be rebooted: state=started starts it.")
    if not check:
        # What it was before tells whether it has begun anew: its cloud may call it running all the time.
        seen = order.wait and ready.note_boot(current, order.key)
        _of(providers, current).reboot(current.id)
        if progress:
            progress(f"{current.provider} {current.id} is asked to reboot.")
        if seen:
            ready.wait_boot(current, order.key, timeout_s=order.timeout_s, clock=order.clock)
        current = _usable(providers, current, order, progress)
    return Outcome(_words(held), _words(held), [f"reboot {current.provider} {current.id}"], [], current)


def in_use(run: str, node: str, held: Sequence[Instance]) -> Instance | None:
    """Return the machine among ``held`` that the node uses, or could use again once started.

    Raises :class:`LeakError` when it has two that bill.
    """
    served = survey.owned(held, run, node)
    working = [instance for instance in served if not instance.idle]
    if len(working) > 1:
        raise LeakError(
            f"{whose(run, node)} has {len(working)} machines, and all of them bill: "
            f"{'; '.join(map(describe, working))}. Destroy those that are too many at their cloud, or tear the run "
            "down."
        )
    stopped_ones = [instance for instance in served if instance.state is State.STOPPED]
    return next(iter(working or stopped_ones), None)


def _current(order: Order, held: Sequence[Instance]) -> Instance | None:
    return in_use(order.run, order.node, held)


def _the_machine(run: str, node: str, held: Sequence[Instance]) -> Instance:
    current = in_use(check_name(run), node, held)
    if current is None:
        raise UsageError(f"{whose(run, node)} has no machine at the clouds that were asked.")
    return current


def _of(providers: Sequence[Provider], instance: Instance) -> Provider:
    return next(provider for provider in providers if provider.name == instance.provider)


def _words(held: Sequence[Instance]) -> list[str]:
    return [describe(instance) for instance in held]


def _as(instance: Instance, state: State) -> str:
    return describe(instance).replace(f", {instance.state}", f", {state}", 1)


def _usable(
    providers: Sequence[Provider], instance: Instance, order: Order, progress: Progress | None, *, new: bool = False
) -> Instance:
    """Wait, when asked to, until the instance runs and answers; without waiting, return it as it is."""
    if not order.wait:
        return instance
    provider = _of(providers, instance)
    if instance.state is not State.RUNNING or not instance.ssh_host:
        loading_s = order.timeout_s if order.loading_s is None else order.loading_s
        instance = ready.wait_ready(provider, instance, timeout_s=loading_s, progress=progress)
    order.ledger.running(instance)
    ready.wait_ssh(
        instance,
        order.key,
        new=new,
        account_keys=provider.ssh_keys,
        add_key=partial(provider.add_ssh_key, instance.id, order.key.public_text),
        timeout_s=order.timeout_s if order.ssh_s is None else order.ssh_s,
        progress=progress,
    )
    return instance


def _new(
    providers: Sequence[Provider],
    offers: Sequence[Offer],
    spec: CreateSpec,
    order: Order,
    progress: Progress | None,
) -> Instance:
    """Rent the first offer that can be had and becomes usable. What does not become usable is destroyed.

    Another command may rent for the node at the same moment, and lists lag: the clouds are asked for its machine right
    after renting and once more when the machine can be used.
    """
    everywhere = order.everywhere or providers
    known_ids = set(spec.known_ids)

    def make_usable(instance: Instance) -> Instance:
        order.ledger.rented(instance)
        rivals.settle(everywhere, instance, known_ids, ledger=order.ledger, last=not order.wait, progress=progress)
        try:
            usable = _usable(providers, instance, order, progress, new=True)
            if order.wait and order.acceptance:
                order.acceptance.check(usable, order.key, progress or (lambda _: None))
        except GpuyardError as error:
            if progress:
                progress(f"{error} Giving it back.")
            destroy.destroy_all(providers, [instance], ledger=order.ledger, progress=progress)
            known_ids.add(instance.id)
            if refused := registry.not_pulled(spec.image, str(error)):
                raise UsageError(refused) from None  # every other machine would be told the same
            if isinstance(error, UnreachableError) and registry.says_full(str(error)):
                raise DiskFullError(str(error)) from None
            raise
        if order.wait:
            rivals.settle(everywhere, usable, known_ids, ledger=order.ledger, last=True, progress=progress)
        return usable

    try:
        return rent.rent(
            providers,
            offers,
            spec,
            notes=order.notes,
            shared=order.shared,
            limits=order.limits,
            mounting=order.mounting,
            spent=order.spent,
            clock=order.clock,
            make_usable=make_usable,
            progress=progress,
        )
    except (AmbiguousError, LeakError):
        raise  # there may be a machine that has what was made for it
    except GpuyardError as error:
        give_back(order, error)
        raise


def give_back(order: Order, error: GpuyardError) -> None:
    """End what was made for a machine that could not be had; raises :class:`LeakError` with ``error`` when it stays."""
    try:
        if order.mounting:
            order.mounting.give_back()
    except ProviderError as left:
        raise LeakError(f"{error} {left}", provider=left.provider, instance_id=left.instance_id) from None


def _plan(
    providers: Sequence[Provider], held: Sequence[Instance], offers: Sequence[Offer], spec: CreateSpec
) -> Outcome:
    by_name = {provider.name: provider for provider in providers}
    best = offers[0]
    planned = [call for instance in held for call in by_name[instance.provider].plan_destroy(instance.id)]
    planned += by_name[best.provider].plan_create(best, spec)
    actions = [f"{end_verb(instance)} {describe(instance)}" for instance in held]
    actions.append(f"{get_verb(best)} {market.describe(best)}")
    return Outcome(_words(held), [market.describe(best)], actions, planned)
