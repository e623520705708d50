"""What is rented: all clouds asked at the same time, and those that did not answer named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gpuyard.errors import (
    ProviderError,
)
from gpuyard.providers.base import Instance, Provider


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What a number of ``clouds`` answered: their instances, and for each that did not answer its error."""

    clouds: int
    instances: list[Instance] = dataclasses.field(default_factory=list)
    errors: dict[str, ProviderError] = dataclasses.field(default_factory=dict)

    def complete(self) -> list[Instance]:
        """Return the instances, or raise the first error, since what cannot be seen may still be there."""
        for error in self.errors.values():
            raise error
        return self.instances

    def answered(self) -> list[Instance]:
        """Return the instances that could be seen; raises the first error only when no cloud answered at all."""
        return self.instances if self.clouds > len(self.errors) else self.complete()

    def unanswered(self) -> dict[str, str]:
        """Return a sentence for each cloud that could not be asked, by its name."""
        return {
            name: f"{name} could not be asked, so what is rented there is not seen, and may bill: {error}"
            for name, error in self.errors.items()
        }


def take(providers: Sequence[Provider]) -> Survey:
    """Ask all ``providers`` for their instances at the same time."""

    def ask(provider: Provider) -> list[Instance] | ProviderError:
        try:
            return provider.instances()
        except ProviderError as error:
            return error

    found = Survey(len(providers))
    with ThreadPoolExecutor(max_workers=max(1, len(providers))) as pool:
        for provider, answer in zip(providers, pool.map(ask, providers), strict=True):
            if isinstance(answer, ProviderError):
                found.errors[provider.name] = answer
            else:
                found.instances.extend(answer)
    return found


def find(providers: Sequence[Provider], run: str | None = None, node: str | None = None) -> list[Instance]:
    """Return the instances of ``run`` (of one ``node`` of it) in all clouds, or of all runs of gpuyard.

    One cloud that cannot be asked raises its error: without it nobody can say what a run has.
    """
    return owned(take(providers).complete(), run, node)


def owned(instances: Iterable[Instance], run: str | None = None, node: str | None = None) -> list[Instance]:
    """Return those of ``instances`` that belong to ``run``, or to any run; with ``node`` only that node's."""
    return [one for one in instances if one.ref and run in (None, one.ref.run) and node in (None, one.ref.node)]
