"""What is on the shelves of all clouds: volumes, snapshots, keys; asked at the same time, and ended for sure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from gpuyard.errors import ProviderError, UnsupportedError
from gpuyard.providers.base import PlannedCall, Progress, Provider
from gpuyard.providers.resources import Kind, Resource, Shelf
from gpuyard.renting import survey, together

HOURS_A_MONTH = 730.0


@dataclasses.dataclass(frozen=True, slots=True)
class Shelved:
    """What the shelves hold, and for each that did not answer (by provider and kind) its error."""

    resources: list[Resource] = dataclasses.field(default_factory=list)
    errors: dict[tuple[str, Kind], ProviderError] = dataclasses.field(default_factory=dict)

    def unanswered(self) -> dict[str, str]:
        """Return a sentence for each shelf that could not be asked, by provider and kind."""
        return {
            f"{name} {kind}": f"{name} could not be asked for its kind {kind}, so what is there is not seen, and may "
            f"bill: {error}"
            for (name, kind), error in self.errors.items()
        }

    def of_run(self, run: str) -> list[Resource]:
        """Return what belongs to ``run`` by its label."""
        return [one for one in self.resources if one.ref and one.ref.run == run]


def take(
    providers: Sequence[Provider], *, kinds: Collection[Kind] = tuple(Kind), within_s: float | None = None
) -> Shelved:
    """Ask all shelves of these ``kinds`` at the same time.

    One that has not answered after ``within_s`` seconds counts as one that does not answer.
    """
    questions = {
        (provider.name, kind): (provider, shelf.all)
        for provider in providers
        for kind, shelf in provider.shelves().items()
        if kind in kinds
    }
    found = Shelved()
    for key, answer in survey.ask(questions, within_s=within_s).items():
        if isinstance(answer, ProviderError):
            found.errors[key] = answer
        else:
            found.resources.extend(answer)
    return found


def describe(one: Resource) -> str:
    """Return a resource in a few words: ``vultr volume 1234, 1000 GB in ewr``."""
    size = f", {one.size_gb:g} GB" if one.size_gb else ""
    place = f" in {one.region}" if one.region else ""
    return f"{one.provider} {one.kind} {one.id}{size}{place}" + (", emulated" if one.emulated else "")


def costs(one: Resource) -> str:
    """Return what a resource costs, in words that follow its name."""
    if one.price_per_month_usd is None:
        return "bills what its provider does not say" if one.kind.bills else "costs nothing"
    return f"bills {one.price_per_month_usd:.2f} USD a month" if one.price_per_month_usd else "costs nothing"


def plan_end(providers: Sequence[Provider], resources: Sequence[Resource]) -> list[PlannedCall]:
    """Return the writing calls that ending ``resources`` would make."""
    return [call for one in resources for call in _shelf(providers, one).plan_destroy(one.id)]


def detach(providers: Sequence[Provider], resources: Sequence[Resource], tell: Progress) -> list[Resource]:
    """Take ``resources`` from their machines, and return those that are free now.

    One that cannot be taken from a machine that lives is free when its machine is gone.
    """

    def release(one: Resource, say: Progress) -> bool:
        if not one.attached_to:
            return True
        try:
            _shelf(providers, one).detach(one.id, progress=say)
        except UnsupportedError:
            return False
        except ProviderError as error:
            say(f"{describe(one)} is freed with its machine: {error}")
            return False
        return True

    freed = together.at_once(release, resources, tell)
    return [one for one, is_free in zip(resources, freed, strict=True) if is_free]


def end(
    providers: Sequence[Provider], resources: Sequence[Resource], tell: Progress
) -> list[tuple[Resource, ProviderError]]:
    """End ``resources``, all at the same time, and return the error of each whose end could not be confirmed."""

    def destroy(one: Resource, say: Progress) -> ProviderError | None:
        try:
            _shelf(providers, one).destroy(one.id, progress=say)
        except ProviderError as error:
            return error
        return None

    answers = together.at_once(destroy, resources, tell)
    return [(one, error) for one, error in zip(resources, answers, strict=True) if error is not None]


def _shelf(providers: Sequence[Provider], one: Resource) -> Shelf:
    return next(provider for provider in providers if provider.name == one.provider).shelves()[one.kind]
