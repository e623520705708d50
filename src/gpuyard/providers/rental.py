"""Renting exactly once and ending for sure: the money-safe parts that are the same for every provider."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    CreditError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderError,
    ThrottledError,
)
from gpuyard.providers.base import CreateSpec, Instance, Progress, Provider, State

UNLISTED_S = 30.0
"""A new machine may be missing from its provider's list for that long."""
_GONE_FOR_GOOD = {State.FAILED, State.PREEMPTED}


@dataclass(frozen=True, slots=True)
class Waits:
    """How patiently lost answers and endings are followed up. Times are seconds."""

    unlisted: float = UNLISTED_S  # how long a machine is looked for whose create may have been carried out
    told_every: float = 10.0
    first_delay: float = 0.3
    factor: float = 2.0
    longest_delay: float = 3.0
    destroy_timeout: float = 90.0
    resend_every: float = 10.0  # a DELETE that seems to have had no effect
    throttled_tries: int = 4
    throttled_delay: float = 5.0
    between_creates: float = 4.6  # at Vast, which refuses the second of two within 4.5 s and names no Retry-After
    longest_throttle: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def delay(self, attempt: int) -> float:
        """Return the pause after look number ``attempt`` (from 0)."""
        return min(self.longest_delay, self.first_delay * self.factor**attempt)


def create_once(
    provider: Provider,
    spec: CreateSpec,
    send: Callable[[], Instance],
    *,
    waits: Waits,
    progress: Progress | None = None,
) -> Instance:
    """Run ``send``, which makes one create request, such that at most one machine comes of it.

    * A lost answer: the instance is looked up by its label, for as long as a new one may be unlisted, and adopted when
      it is there. When it is not, :class:`AmbiguousError` says so: no second request is sent.
    * An error that names an instance: that instance is destroyed, then the error is raised, as
      :class:`NoCapacityError` unless it is about the key, the credit or the account.
    * A refusal for asking too often may have rented all the same: the instance is looked up as after a lost answer, and
      only when it is not there is the request sent again.
    """
    tell = progress or _silent
    for attempt in range(waits.throttled_tries):
        spec.before_request()
        sent = waits.clock()
        try:
            return send()
        except AmbiguousError as error:
            if (found := _look(provider, spec, error, waits, tell)) is not None:
                return found
            raise AmbiguousError(
                _nothing_found(provider, spec, error), provider=provider.name, status=error.status
            ) from None
        except ThrottledError as error:
            if (found := _look(provider, spec, error, waits, tell)) is not None:
                return found
            pause = waits.throttled_delay if error.retry_after is None else error.retry_after
            if attempt + 1 == waits.throttled_tries or pause > waits.longest_throttle:
                raise
            tell(f"{provider.title} has rented nothing; asking again.")
            waits.sleep(max(0.0, sent + pause - waits.clock()))
        except ProviderError as error:
            if error.instance_id is None:
                raise
            tell(f"{provider.title} refused and rented all the same; destroying instance {error.instance_id}.")
            provider.destroy(error.instance_id, progress=progress)
            if isinstance(error, NoCapacityError) or not _may_be_the_offer(error):
                raise
            raise NoCapacityError(str(error), provider=error.provider, status=error.status, code=error.code) from None
    raise AssertionError("the last try returns or raises")


def lookup(provider: Provider, spec: CreateSpec) -> list[Instance]:
    """Return the run's instances that did not exist before, leaving out those that have already failed."""
    return [
        instance
        for instance in provider.instances()
        if instance.ref == spec.ref and instance.id not in spec.known_ids and instance.state not in _GONE_FOR_GOOD
    ]


def destroy_surely(
    provider: Provider,
    instance_id: str,
    send: Callable[[], None],
    *,
    waits: Waits,
    progress: Progress | None = None,
) -> None:
    """Run ``send``, which asks for the end of the rental, until the provider says that the instance is gone.

    Raises :class:`LeakError` with the id and the place to look when that does not happen within the time allowed.
    """
    tell = progress or _silent
    start = waits.clock()
    next_send = start
    attempt = 0
    reason = "it is still listed"
    while True:
        try:
            if waits.clock() >= next_send:
                next_send = waits.clock() + waits.resend_every
                _send_end(send)
            if provider.instance(instance_id) is None:
                tell(f"{provider.title}: instance {instance_id} is gone.")
                return
            reason = "it is still listed"
        except ProviderError as error:
            reason = str(error)
            if isinstance(error, AuthenticationError):
                break
            # Another refusal may pass: an instance that is still being installed is locked.
            next_send = min(next_send, waits.clock() + waits.longest_delay)
        if waits.clock() - start >= waits.destroy_timeout:
            break
        waits.sleep(waits.delay(attempt))
        attempt += 1
    raise LeakError(
        f"{provider.title} instance {instance_id} could not be confirmed destroyed and may keep billing ({reason}). "
        f"Look at {provider.console_url} and destroy it there, or run the teardown again.",
        provider=provider.name,
        instance_id=instance_id,
    )


def _send_end(send: Callable[[], None]) -> None:
    try:
        send()
    except NotFoundError:
        return  # already gone is success; the look that follows confirms it


def _look(provider: Provider, spec: CreateSpec, lost: ProviderError, waits: Waits, tell: Progress) -> Instance | None:
    """Look for the instance of a create whose fate is unknown until it can no longer be unlisted.

    Raises :class:`AmbiguousError` when the provider's list cannot be had at the end.
    """
    end = waits.clock() + waits.unlisted
    tell(f"{lost} Looking for the instance by its label for {waits.unlisted:.0f} s.")
    told = waits.clock()
    attempt = 0
    while True:
        left = end - waits.clock()
        waits.sleep(min(waits.delay(attempt), max(0.0, left)))
        attempt += 1
        trouble: ProviderError | None = None
        try:
            found = _only(provider, spec, lookup(provider, spec))
        except LeakError:
            raise
        except ProviderError as error:
            trouble = error
        else:
            if found is not None:
                tell(f"{provider.title} had rented it: instance {found.id}.")
                return found
        left = end - waits.clock()
        if left <= 0 and trouble is None:
            return None
        if left <= 0:
            raise AmbiguousError(
                _nothing_found(provider, spec, lost, f" Looking for it failed too: {trouble}"),
                provider=provider.name,
                status=lost.status,
            )
        if waits.clock() - told >= waits.told_every:
            told = waits.clock()
            tell(f"Looking for it for {waits.unlisted:.0f} s; {left:.0f} s are left.")


def _nothing_found(provider: Provider, spec: CreateSpec, lost: ProviderError, trouble: str = "") -> str:
    return (
        f"{lost}{trouble} No instance of run {spec.ref.run} has shown up. Nothing else was rented; the same command "
        f"takes it over if it appears, and {provider.console_url} shows whether it did."
    )


def _only(provider: Provider, spec: CreateSpec, found: list[Instance]) -> Instance | None:
    if len(found) > 1:
        ids = ", ".join(instance.id for instance in found)
        raise LeakError(
            f"{provider.title} has {len(found)} instances of run {spec.ref.run}: {ids}. One was to be rented; all "
            f"of them bill. Destroy those that are too many at {provider.console_url} or tear the run down.",
            provider=provider.name,
        )
    return found[0] if found else None


def _may_be_the_offer(error: ProviderError) -> bool:
    """Say whether another offer may fare better after ``error``, whose instance has been destroyed."""
    return not isinstance(error, AuthenticationError | CreditError)


def _silent(_: str) -> None:
    """Tell nobody."""
