"""Renting exactly once and ending for sure: the money-safe parts that are the same for every provider."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
from gpuyard.providers.resources import Resource, ResourceSpec, Shelf

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


class _Made(Protocol):
    """What a create request makes."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Order[T: _Made]:
    """One create request, and how what came of it is found and ended."""

    provider: str
    title: str
    console_url: str
    what: str  # "instance"
    of: str  # whose it is, in words that follow ``what``: "of run miniprover-0"
    send: Callable[[], T]
    find: Callable[[], Sequence[T]]  # those that this request may have made
    destroy: Callable[[str], None]
    before_request: Callable[[], None]


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
    order = _Order(
        provider.name,
        provider.title,
        provider.console_url,
        "instance",
        f"of run {spec.ref.run}",
        send,
        lambda: lookup(provider, spec),
        lambda instance_id: provider.destroy(instance_id, progress=progress),
        spec.before_request,
    )
    return _once(order, waits, progress or _silent)


def make_once(
    provider: Provider,
    shelf: Shelf,
    spec: ResourceSpec,
    send: Callable[[], Resource],
    *,
    waits: Waits,
    progress: Progress | None = None,
) -> Resource:
    """Do what :func:`create_once` does for a resource that is no instance: what came of it is found by its name."""
    order = _Order(
        provider.name,
        provider.title,
        provider.console_url,
        shelf.title or shelf.kind.value,
        f"of run {spec.ref.run}" if spec.ref else f"called {spec.name}",
        send,
        lambda: [one for one in shelf.all() if made_by(spec, one)],
        lambda resource_id: shelf.destroy(resource_id, progress=progress),
        spec.before_request,
    )
    return _once(order, waits, progress or _silent)


def made_by(spec: ResourceSpec, found: Resource) -> bool:
    """Return whether ``found`` may have come of ``spec``: it has its name, or its run, and was not there before."""
    same = found.ref == spec.ref if spec.ref else found.name == spec.name
    return same and found.id not in spec.known_ids


def _once[T: _Made](order: _Order[T], waits: Waits, tell: Progress) -> T:
    for attempt in range(waits.throttled_tries):
        order.before_request()
        sent = waits.clock()
        try:
            return order.send()
        except AmbiguousError as error:
            if (found := _look(order, error, waits, tell)) is not None:
                return found
            raise AmbiguousError(_nothing_found(order, error), provider=order.provider, status=error.status) from None
        except ThrottledError as error:
            if (found := _look(order, error, waits, tell)) is not None:
                return found
            pause = waits.throttled_delay if error.retry_after is None else error.retry_after
            if attempt + 1 == waits.throttled_tries or pause > waits.longest_throttle:
                raise
            tell(f"{order.title} has rented nothing; asking again.")
            waits.sleep(max(0.0, sent + pause - waits.clock()))
        except ProviderError as error:
            if error.instance_id is None:
                raise
            tell(f"{order.title} refused and rented all the same; destroying {order.what} {error.instance_id}.")
            order.destroy(error.instance_id)
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

    def gone() -> bool:
        return provider.instance(instance_id) is None

    _end(provider, "instance", instance_id, send, gone, waits, progress or _silent)


def end_surely(
    provider: Provider,
    shelf: Shelf,
    resource_id: str,
    send: Callable[[], None],
    *,
    waits: Waits,
    progress: Progress | None = None,
) -> None:
    """Do what :func:`destroy_surely` does for a resource that is no instance."""

    def gone() -> bool:
        return shelf.get(resource_id) is None

    _end(provider, shelf.title or shelf.kind.value, resource_id, send, gone, waits, progress or _silent)


def _end(
    provider: Provider,
    what: str,
    resource_id: str,
    send: Callable[[], None],
    gone: Callable[[], bool],
    waits: Waits,
    tell: Progress,
) -> None:
    start = waits.clock()
    next_send = start
    attempt = 0
    reason = "it is still listed"
    while True:
        try:
            if waits.clock() >= next_send:
                next_send = waits.clock() + waits.resend_every
                _send_end(send)
            if gone():
                tell(f"{provider.title}: {what} {resource_id} is gone.")
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
        f"{provider.title} {what} {resource_id} could not be confirmed destroyed and may keep billing ({reason}). "
        f"Look at {provider.console_url} and destroy it there, or run the teardown again.",
        provider=provider.name,
        instance_id=resource_id,
    )


def _send_end(send: Callable[[], None]) -> None:
    try:
        send()
    except NotFoundError:
        return  # already gone is success; the look that follows confirms it


def _look[T: _Made](order: _Order[T], lost: ProviderError, waits: Waits, tell: Progress) -> T | None:
    """Look for what came of a create whose fate is unknown until it can no longer be unlisted.

    Raises :class:`AmbiguousError` when the provider's list cannot be had at the end.
    """
    end = waits.clock() + waits.unlisted
    tell(f"{lost} Looking for the {order.what} by its label for {waits.unlisted:.0f} s.")
    told = waits.clock()
    attempt = 0
    while True:
        left = end - waits.clock()
        waits.sleep(min(waits.delay(attempt), max(0.0, left)))
        attempt += 1
        trouble: ProviderError | None = None
        try:
            found = _only(order, order.find())
        except LeakError:
            raise
        except ProviderError as error:
            trouble = error
        else:
            if found is not None:
                tell(f"{order.title} had rented it: {order.what} {found.id}.")
                return found
        left = end - waits.clock()
        if left <= 0 and trouble is None:
            return None
        if left <= 0:
            raise AmbiguousError(
                _nothing_found(order, lost, f" Looking for it failed too: {trouble}"),
                provider=order.provider,
                status=lost.status,
            )
        if waits.clock() - told >= waits.told_every:
            told = waits.clock()
            tell(f"Looking for it for {waits.unlisted:.0f} s; {left:.0f} s are left.")


def _nothing_found[T: _Made](order: _Order[T], lost: ProviderError, trouble: str = "") -> str:
    return (
        f"{lost}{trouble} No {order.what} {order.of} has shown up. Nothing else was rented; the same command "
        f"takes it over if it appears, and {order.console_url} shows whether it did."
    )


def _only[T: _Made](order: _Order[T], found: Sequence[T]) -> T | None:
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise LeakError(
            f"{order.title} has {len(found)} {order.what}s {order.of}: {ids}. One was to be rented; all "
            f"of them bill. Destroy those that are too many at {order.console_url} or tear the run down.",
            provider=order.provider,
        )
    return found[0] if found else None


def _may_be_the_offer(error: ProviderError) -> bool:
    """Say whether another offer may fare better after ``error``, whose instance has been destroyed."""
    return not isinstance(error, AuthenticationError | CreditError)


def _silent(_: str) -> None:
    """Tell nobody."""
