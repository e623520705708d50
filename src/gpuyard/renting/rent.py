"""From a ranked list of offers to a machine that answers over SSH, and back to nothing; the same for every cloud.

At most one machine a run: :func:`rent` looks for the run's instances first, tries one offer after another only where
the last one was refused for lack of capacity, and never sends a second create while the first one's fate is unknown.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from gpuyard import ssh
from gpuyard.errors import (
    AmbiguousError,
    LeakError,
    NoCapacityError,
    ProviderError,
    UsageError,
)
from gpuyard.formats.label import FIRST_NODE, RunRef
from gpuyard.market import describe
from gpuyard.pace import Clock
from gpuyard.providers.base import CreateSpec, Instance, Offer, Progress, Provider, State
from gpuyard.providers.rental import UNLISTED_S
from gpuyard.renting import survey
from gpuyard.renting.pending import Note, PendingNotes

MOST_OFFERS = 8  # tried in one rent; Vast allows one create in 4.5 s
MOST_AT_ONE_CLOUD = 3  # tried there before the other clouds have their turn
_LIVE = (State.PENDING, State.RUNNING, State.UNKNOWN)
_TOLD_EVERY_S = 10.0


def rent(
    providers: Sequence[Provider],
    offers: Sequence[Offer],
    spec: CreateSpec,
    *,
    notes: PendingNotes | None = None,
    progress: Progress | None = None,
) -> Instance:
    """Return a new machine for the run, from the first offer that can be had.

    ``offers`` are in order of preference; ``notes`` keep each request until its answer is certain. When the run has a
    machine, :class:`UsageError` says so: one that lives is enough, and the disk of one that was preempted, failed or
    was stopped may hold what no checkpoint has. Raises :class:`NoCapacityError` when all offers are gone, and whatever
    :meth:`Provider.create` raises.
    """
    tell = progress or _silent
    existing = survey.find(providers, spec.ref.run, spec.ref.node)
    live = [instance for instance in existing if instance.state in _LIVE]
    if len(live) > 1:
        names = ", ".join(_name(instance) for instance in live)
        raise LeakError(
            f"Run {spec.ref.run} has {len(live)} machines, and all of them bill: {names}. "
            f"Destroy those that are too many, or tear the run down.",
            provider=live[0].provider,
        )
    if live:
        raise UsageError(
            f"Run {spec.ref.run} has got {_name(live[0])} from another command meanwhile, and nothing more is rented: "
            "the next launch finds that machine."
        )
    if existing:
        names = ", ".join(f"{_name(instance)} ({instance.state})" for instance in existing)
        raise UsageError(
            f"Run {spec.ref.run} still has {names}, whose disk may hold what no checkpoint has. Resume the run to "
            "replace it, or tear the run down to destroy it."
        )
    return _first_to_be_had(providers, offers, spec, notes or PendingNotes(), tell)


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
    return [*first, *later][:MOST_OFFERS]


def _first_to_be_had(
    providers: Sequence[Provider], offers: Sequence[Offer], spec: CreateSpec, notes: PendingNotes, tell: Progress
) -> Instance:
    if not offers:
        raise UsageError("There is no offer to rent.")
    by_name = {provider.name: provider for provider in providers}
    refusals: list[NoCapacityError] = []
    for offer in worth_trying(offers):
        tell(f"Renting {describe(offer)}.")
        provider = by_name[offer.provider]
        try:
            instance = _create(provider, offer, spec, notes, tell)
        except NoCapacityError as refusal:
            tell(f"Not to be had any more: {refusal}")
            refusals.append(refusal)
            continue
        # Ids of a sandbox that is gone may come again, and a pin of theirs would make this machine a stranger.
        with suppress(OSError):
            ssh.forget_host_key(instance)
            if spec.ref.node == FIRST_NODE:  # else a machine that the run leaves has yet to say that all is saved
                ssh.forget_run(spec.ref.run, providers)
        tell(
            f"Rented {_name(instance)} for run {spec.ref.run}; it bills until `ansible-playbook teardown.yml "
            f"-e run={spec.ref.run}` ends that."
        )
        return instance
    raise NoCapacityError(
        f"None of the {len(refusals)} best offers could be had; the last answer: {refusals[-1]} Nothing was rented.",
        provider=refusals[-1].provider,
    )


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
    providers: Sequence[Provider], run: str, notes: PendingNotes, *, progress: Progress | None = None, clock: Clock
) -> list[Instance]:
    """Wait while a request that another command has sent for ``run``, and not seen answered, may still show a machine.

    Comes back with the run's machines as soon as one lives, and with none when a machine of the last such request can
    no longer be unlisted. Raises the error of a cloud that cannot be asked at that moment.
    """
    tell = progress or _silent
    by_name = {provider.name: provider for provider in providers}
    waiting: list[Note] = []
    for one in notes.read(run):
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
    # The machine of another node is no answer to these requests.
    nodes = {ref.node for one in waiting if (ref := RunRef.from_label(one.label))}
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
            if one.state in _LIVE and (not nodes or (one.ref and one.ref.node in nodes))
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
