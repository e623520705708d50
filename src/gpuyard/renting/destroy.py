"""Destroying instances, and coming back when each is confirmed gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from gpuyard import ssh
from gpuyard.errors import (
    LeakError,
    ProviderError,
    UsageError,
)
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.renting import together
from gpuyard.renting.ledger import Ledger


def destroy_all(
    providers: Sequence[Provider],
    instances: Iterable[Instance],
    *,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> None:
    """Destroy the instances, all at the same time, forget their host keys, and write their ends into ``ledger``.

    Raises one :class:`LeakError` that names every id which could not be confirmed destroyed, after all were tried.
    """
    by_name = {provider.name: provider for provider in providers}
    wanted = list(instances)
    if not wanted:
        return
    missing = [instance for instance in wanted if instance.provider not in by_name]
    if missing:
        raise UsageError(f"{_name(missing[0])} belongs to a cloud that is not configured here.")

    def destroy(instance: Instance, tell: Progress) -> ProviderError | None:
        try:
            by_name[instance.provider].destroy(instance.id, progress=tell)
        except ProviderError as error:
            return error
        # A stale line in that file does no harm. An error here would hide what became of the other machines.
        with suppress(OSError):
            ssh.forget_host_key(instance)
        return None

    # Until a cloud no longer lists a machine it may take a while for which nothing is asked.
    asked_at = ledger.now() if ledger else 0.0
    answers = together.at_once(destroy, wanted, progress or _silent)
    for instance, answer in zip(wanted, answers, strict=True):
        if ledger is not None and answer is None:
            ledger.ended(instance, asked_at)
    errors = [error for error in answers if error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise LeakError(" ".join(str(error) for error in errors), provider=errors[0].provider)


def _name(instance: Instance) -> str:
    return f"{instance.provider} instance {instance.id}"


def _silent(_: str) -> None:
    """Tell nobody."""
