"""What is rented: all clouds asked at the same time, and those that did not answer named."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from gpuyard.errors import ProviderDownError, ProviderError
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


def silent_boxes(instances: Iterable[Instance]) -> list[str]:
    """Return a sentence for each own box that does not answer, and of which nobody here knows whose it is."""
    return [
        f"Own box {one.way.name} {one.status_text.rstrip('.')}; a run that is there is not seen."
        for one in instances
        if one.way and one.silent and one.ref is None
    ]


def take(providers: Sequence[Provider], *, within_s: float | None = None) -> Survey:
    """Ask all ``providers`` for their instances at the same time.

    One that has not answered after ``within_s`` seconds counts as one that does not answer.
    """
    answers = ask({provider.name: (provider, provider.instances) for provider in providers}, within_s=within_s)
    found = Survey(len(providers))
    for name, answer in answers.items():
        if isinstance(answer, ProviderError):
            found.errors[name] = answer
        else:
            found.instances.extend(answer)
    return found


def ask[Key, Answer](
    questions: Mapping[Key, tuple[Provider, Callable[[], Answer]]], *, within_s: float | None = None
) -> dict[Key, Answer | ProviderError]:
    """Return the answers of all ``questions``, put at the same time, or the error of each that has none.

    A cloud that has not answered after ``within_s`` seconds counts as one that does not answer. Any other error than a
    :class:`ProviderError` is raised.
    """
    answers: dict[Key, Answer | Exception] = {}

    def put(key: Key) -> None:
        try:
            answers[key] = questions[key][1]()
        except Exception as error:  # whatever it is: it is raised by whoever waits
            answers[key] = error

    asking = [threading.Thread(target=put, args=(key,), daemon=True) for key in questions]
    for thread in asking:
        thread.start()
    deadline = None if within_s is None else time.monotonic() + within_s
    for thread in asking:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    found: dict[Key, Answer | ProviderError] = {}
    for key, (provider, _) in questions.items():
        if key not in answers:
            silent = f"{provider.title} has not answered within {within_s:g} s."
            found[key] = ProviderDownError(silent, provider=provider.name)
            continue
        answer = answers[key]
        if isinstance(answer, Exception) and not isinstance(answer, ProviderError):
            raise answer
        found[key] = answer
    return found


def find(providers: Sequence[Provider], run: str | None = None, node: str | None = None) -> list[Instance]:
    """Return the instances of ``run`` (of one ``node`` of it) in all clouds, or of all runs of gpuyard.

    One cloud that cannot be asked raises its error: without it nobody can say what a run has.
    """
    return owned(take(providers).complete(), run, node)


def owned(instances: Iterable[Instance], run: str | None = None, node: str | None = None) -> list[Instance]:
    """Return those of ``instances`` that belong to ``run``, or to any run; with ``node`` only that node's."""
    return [one for one in instances if one.ref and run in (None, one.ref.run) and node in (None, one.ref.node)]
