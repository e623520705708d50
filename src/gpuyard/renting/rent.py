"""From a ranked list of offers to a machine; the same for every cloud.

At most one machine a node: :func:`rent` looks for the node's instances first, tries one offer after another only where
the last one was refused for lack of capacity or its machine was given back, and never sends a second create while the
first one's fate is unknown.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from gpuyard import ssh
from gpuyard.errors import (
    AmbiguousError,
    DiskFullError,
    GpuyardError,
    LeakError,
    NoCapacityError,
    ProviderError,
    UnfitError,
    UnreachableError,
    UsageError,
)
from gpuyard.market import describe
from gpuyard.pace import Clock
from gpuyard.providers.base import OWN, CreateSpec, Instance, Offer, Progress, Provider
from gpuyard.providers.rental import UNLISTED_S
from gpuyard.remedies import remedy
from gpuyard.renting import survey
from gpuyard.renting.pending import Note, PendingNotes

MOST_OFFERS = 8  # tried in one rent, unless a workload says otherwise; Vast allows one create in 4.5 s
LARGER = 2.0  # how many times as large a disk is asked for after one that was full
MOST_AT_ONE_CLOUD = 3  # tried there before the other clouds have their turn
GAVE_UP = "Another node of the run cannot be had, so no further offer was tried for this one."
_TOLD_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """When to try no further offer, and what an offer may cost once a larger disk is asked for.

    ``usd`` is what was paid for machines that went back, ``seconds`` counts from the first attempt.
    """

    attempts: int = MOST_OFFERS
    seconds: float | None = None
    usd: float | None = None
    max_price_per_hour_usd: float | None = None


@dataclasses.dataclass(slots=True)
class Spent:
    """What renting has taken so far; of a launch that begins anew since a disk was full, with what it took before.

    ``rented_at``: when the machine was rented that it led to, in seconds since 1970.
    """

    attempts: int = 0
    usd: float = 0.0  # for machines that went back
    seconds: float = 0.0
    rented_at: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spent:
        """Return what a launch has said in its result; Ansible's templates may have made texts of numbers."""
        numbers = {entry.name: float(values.get(entry.name) or 0) for entry in dataclasses.fields(cls)}
        return cls(**{**numbers, "attempts": int(numbers["attempts"])})  # type: ignore[arg-type]

    def give_up(self, limits: Limits, elapsed: float) -> str:
        """Return which limit is reached after ``elapsed`` seconds, in words, ``""`` for none."""
        if self.attempts >= limits.attempts:
            return f"limits.attempts={limits.attempts} is reached"
        if limits.seconds is not None and elapsed >= limits.seconds:
            return f"limits.minutes={limits.seconds / 60:g} is reached after {elapsed / 60:.1f} minutes"
        if limits.usd is not None and self.usd >= limits.usd:
            return f"limits.usd={limits.usd:g} is reached: ${self.usd:.4f} were paid for machines that went back"
        return ""


class Mounting(Protocol):
    """What a machine is created with; :class:`gpuyard.api.storage.AtCreation` is one."""

    def mounts(self, offer: Offer) -> tuple[tuple[str, str], ...]:
        """Return what the machine of ``offer`` is created with, as :attr:`CreateSpec.mounts` has it."""

    def give_back(self) -> None:
        """End what was made for a machine that is not there."""


class Shared:
    """What the nodes that are rented side by side know of each other: which offers are taken, and whether to go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[tuple[str, str]] = set()
        self._failed = False

    def take(self, offer: Offer) -> bool:
        """Say whether an offer is this node's now; one that stands for a single machine is only one node's."""
        with self._lock:
            free = not offer.is_one_machine or (offer.provider, offer.id) not in self._taken
            self._taken.add((offer.provider, offer.id))
            return free

    def fail(self) -> None:
        """Say that a node could not be had, so that the others try no further offers."""
        self._failed = True

    @property
    def failed(self) -> bool:
        """Whether another node could not be had."""
        return self._failed


def rent(
    providers: Sequence[Provider],
    offers: Sequence[Offer],
    spec: CreateSpec,
    *,
    notes: PendingNotes | None = None,
    shared: Shared | None = None,
    limits: Limits | None = None,
    mounting: Mounting | None = None,
    spent: Spent | None = None,
    make_usable: Callable[[Instance], Instance] = lambda instance: instance,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Instance:
    """Return a new machine for the node, from the first offer that can be had and used, within ``limits``.

    ``offers`` are in order of preference; ``notes`` keep each request until its answer is certain. ``make_usable``
    returns a new machine as it is when it can be used, or gives it back and raises :class:`UnreachableError`, which
    leads to the next offer; after :class:`DiskFullError` the next ones are asked for a larger disk. ``mounting`` makes
    what a machine is created with. ``spent`` counts towards the limits, and is brought up to date. When the node has a
    machine, :class:`UsageError` says so: one that lives is enough, and the disk of one that was preempted, failed or
    was stopped may hold what no checkpoint has. Raises :class:`NoCapacityError` when all offers are gone, and whatever
    :meth:`Provider.create` and ``make_usable`` raise.
    """
    tell = progress or _silent
    between = shared or Shared()
    by_name = {provider.name: provider for provider in providers}
    trouble: list[GpuyardError] = []
    reached = ""
    unfit: set[tuple[str, str]] = set()
    time = clock or Clock()
    limits = limits or Limits()
    spent = spent or Spent()
    began = time.now() - spent.seconds
    first_disk_gb = spec.disk_gb
    for candidate in worth_trying(offers):
        spent.seconds = time.now() - began
        if between.failed or (reached := spent.give_up(limits, spent.seconds)):
            break
        offer = with_disk(candidate, first_disk_gb, spec.disk_gb)
        # A host may be on offer twice, at two prices.
        if (offer.provider, offer.machine_id) in unfit or _too_large(offer, spec, limits) or not between.take(offer):
            continue
        _check_has_none(providers, spec)
        spent.attempts += 1
        tell(f"{'Claiming' if offer.provider == OWN else 'Renting'} {describe(offer)}.")
        try:
            mounts = mounting.mounts(offer) if mounting else ()
            wanted = dataclasses.replace(spec, mounts=mounts)
            instance = _create(by_name[offer.provider], offer, wanted, notes or PendingNotes(), tell)
        except NoCapacityError as refusal:
            tell(f"Not to be had any more: {refusal}")
            trouble.append(refusal)
            continue
        rented_at, spent.rented_at = time.now(), time.date()
        # Ids of a sandbox that is gone may come again, and a pin of theirs would make this machine a stranger.
        with suppress(OSError):
            ssh.forget_host_key(instance)
            ssh.forget_run(spec.ref.run, providers, node=spec.ref.node)
        teardown = f"`{remedy('teardown', run=spec.ref.run)}`"
        tell(
            f"Own box {instance.way.name} is run {spec.ref.run}'s until {teardown} frees it; it costs nothing."
            if instance.way
            else f"Rented {_name(instance)} for run {spec.ref.run}; it bills until {teardown} ends that."
        )
        try:
            return make_usable(instance)
        except UnreachableError as error:
            trouble.append(error)
            spent.usd += offer.price_per_hour_usd * (time.now() - rented_at) / 3600
            if isinstance(error, UnfitError) and offer.machine_id:
                unfit.add((offer.provider, offer.machine_id))
            if isinstance(error, DiskFullError):
                spec = dataclasses.replace(spec, disk_gb=spec.disk_gb * LARGER)
                tell(f"The next machine is to have a disk of {spec.disk_gb:g} GB.")
    raise _none_to_be_had(offers, trouble, between, reached, spec.disk_gb if spec.disk_gb != first_disk_gb else None)


def with_disk(offer: Offer, before_gb: float, disk_gb: float) -> Offer:
    """Return ``offer``, asked for with a disk of ``before_gb``, at its price with another one."""
    if disk_gb == before_gb:
        return offer
    disk = offer.disk_price_per_hour_usd * disk_gb / before_gb
    price = offer.price_per_hour_usd - offer.disk_price_per_hour_usd + disk
    return dataclasses.replace(offer, price_per_hour_usd=price, disk_price_per_hour_usd=disk)


def _too_large(offer: Offer, spec: CreateSpec, limits: Limits) -> bool:
    """Say whether an offer cannot have the disk that is asked for by now, or not at the price that it may cost."""
    limit = limits.max_price_per_hour_usd
    return offer.disk_gb < spec.disk_gb or (limit is not None and offer.price_per_hour_usd > limit + 1e-9)


def _none_to_be_had(
    offers: Sequence[Offer],
    trouble: Sequence[GpuyardError],
    between: Shared,
    reached: str,
    larger_disk_gb: float | None,
) -> GpuyardError:
    """Return the error of a node for which every offer was tried, or as many as its limits allow."""
    if not offers:
        return UsageError("There is no offer to rent.")
    if between.failed:
        return NoCapacityError(GAVE_UP)
    if not trouble and reached:
        return NoCapacityError(f"No offer was tried, since {reached}. Nothing is rented.")
    if not trouble:
        return NoCapacityError("Every offer that fits has gone to another node of the run.")
    last = trouble[-1]
    if isinstance(last, DiskFullError) and larger_disk_gb:
        reached = reached or f"no further offer that fits has {larger_disk_gb:g} GB of disk"
    if len(trouble) == 1 and not reached:
        return last
    why = f" No further offer was tried, since {reached}." if reached else ""
    words = f"None of the {len(trouble)} best offers could be had; the last answer: {last}{why} Nothing is rented."
    if isinstance(last, NoCapacityError):
        return NoCapacityError(words, provider=last.provider)
    return UnreachableError(words)


def _check_has_none(providers: Sequence[Provider], spec: CreateSpec) -> None:
    """Refuse to rent for a node that has a machine, or whose last one may hold what no checkpoint has."""
    run = spec.ref.run
    existing = survey.find(providers, run, spec.ref.node)
    working = [instance for instance in existing if not instance.idle]
    if len(working) > 1:
        names = ", ".join(_name(instance) for instance in working)
        raise LeakError(
            f"Run {run} has {len(working)} machines, and all of them bill: {names}. "
            f"Destroy those that are too many, or tear the run down.",
            provider=working[0].provider,
        )
    if working:
        raise UsageError(
            f"Run {run} has got {_name(working[0])} from another command meanwhile, and nothing more is rented: "
            "the next launch finds that machine."
        )
    if existing:
        names = ", ".join(f"{_name(instance)} ({instance.state})" for instance in existing)
        raise UsageError(
            f"Run {run} still has {names}, whose disk may hold what no checkpoint has. Resume the run to "
            "replace it, or tear the run down to destroy it."
        )


def worth_trying(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers to try, in order, when each may turn out to be gone.

    They come best first. A cloud that has refused a few is likely to be sold out, whatever it lists, so the other
    clouds' offers come before the rest of its own.
    """
    seen: Counter[str] = Counter()
    first: list[Offer] = []
    later: list[Offer] = []
    for offer in offers:
        seen[offer.provider] += 1
        (first if seen[offer.provider] <= MOST_AT_ONE_CLOUD else later).append(offer)
    return [*first, *later]


def _create(provider: Provider, offer: Offer, spec: CreateSpec, notes: PendingNotes, tell: Progress) -> Instance:
    """Rent ``offer``; whatever ends this program before the answer is certain leaves a note of the request."""
    written: list[Note | None] = []

    def note() -> None:
        written.append(notes.write(spec.ref, provider.name))
        notes.clear(*written[:-1])  # only the last request of several can be unanswered

    try:
        instance = provider.create(
            offer, dataclasses.replace(spec, market=offer.market, before_request=note), progress=tell
        )
    except AmbiguousError:
        raise
    except ProviderError:
        notes.clear(*written)
        raise
    notes.clear(*written)
    return instance


def await_noted(
    providers: Sequence[Provider],
    run: str,
    notes: PendingNotes,
    *,
    node: str | None = None,
    progress: Progress | None = None,
    clock: Clock,
) -> list[Instance]:
    """Wait while a request that another command has sent for ``run``, and not seen answered, may still show a machine.

    With ``node`` only that node's requests and machines count. Comes back with the machines as soon as one lives for
    which there is such a request, and with none when a machine of the last such request can no longer be unlisted.
    Raises the error of a cloud that cannot be asked at that moment.
    """
    tell = progress or _silent
    by_name = {provider.name: provider for provider in providers}
    waiting: list[Note] = []
    for one in notes.read(run):
        if node not in (None, one.node):
            continue
        if clock.date() - one.sent_at >= UNLISTED_S:
            notes.clear(one)
        elif one.provider not in by_name:
            tell(
                f"A command on {one.controller} has asked {one.provider} for a machine of run {run} and has noted no "
                f"answer. There is no key of {one.provider} here, so a machine there would be overlooked."
            )
        else:
            waiting.append(one)
    if not waiting:
        return []
    # A clock that is ahead makes no wait longer than this.
    left = min(UNLISTED_S, max(one.sent_at for one in waiting) + UNLISTED_S - clock.date())
    end = clock.now() + left
    asked = [by_name[name] for name in sorted({one.provider for one in waiting})]
    tell(
        f"A command on {waiting[-1].controller} has asked {waiting[-1].provider} for a machine of run {run} and has "
        f"noted no answer. Looking for that machine for {left:.0f} s before anything else."
    )
    told = clock.now()
    live: list[Instance] = []
    for delay in clock.delays():
        seen = survey.take(asked)
        live = [
            one
            for one in survey.owned(seen.instances, run)
            if not one.idle and one.ref and one.ref.node in {note.node for note in waiting}
        ]
        if live:
            tell(f"That request has rented {_name(live[0])}.")
            break
        if clock.now() >= end:
            seen.complete()
            tell("No such machine has shown up, so that request has rented nothing.")
            break
        if clock.now() - told >= _TOLD_EVERY_S:
            told = clock.now()
            tell(f"Looking for it; {end - clock.now():.0f} s are left.")
        clock.sleep(min(delay, end - clock.now()))
    notes.clear(*waiting)
    return live


def _name(instance: Instance) -> str:
    return f"{instance.provider} instance {instance.id}"


def _silent(_: str) -> None:
    """Tell nobody."""
