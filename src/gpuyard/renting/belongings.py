"""What a run has beside its machines, at its end: what goes with them, what stays, and whether anything is left.

Volumes, filesystems and snapshots bill until somebody ends them, and may hold the only copy of what a run has done. So
they go under the same rule as machines do: when the bucket holds everything, or when the user says that it may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpuyard import pace
from gpuyard.box.checkpoints import Store
from gpuyard.errors import CheckpointError, ProviderError
from gpuyard.providers.base import PlannedCall, Progress, Provider
from gpuyard.providers.resources import Kind, Resource
from gpuyard.remedies import option, remedy
from gpuyard.renting import limits, machine, shelved, survey

_LOOKS = 4
"""How often the clouds are asked whether anything of the run is left: a list may show for a while what is gone."""


def name_of(one: Resource) -> str:
    """Return the name under which a run's limits say that something is kept."""
    return "/".join(one.place)


@dataclass(slots=True)
class Belongings:
    """What ``run`` has on the shelves of ``providers``.

    ``keep_volumes``: whether storage outlives the run; ``None``: what was kept before is kept again.
    """

    providers: Sequence[Provider]
    run: str
    keep_volumes: bool | None = None
    found: list[Resource] = field(default_factory=list)
    unseen: dict[str, str] = field(
        default_factory=dict
    )  # a sentence for each shelf with what bills that did not answer
    wished: list[Resource] = field(default_factory=list)  # those that stay since the user wants them
    risky: list[Resource] = field(default_factory=list)  # those that stay since they may hold the only copy
    why: str = ""  # of the risky ones, in a sentence; empty where they stay with a machine

    @property
    def going(self) -> list[Resource]:
        """Those that are to end."""
        staying = [one.place for one in (*self.wished, *self.risky)]
        return [one for one in self.found if one.place not in staying]

    def look(self, tell: Progress) -> None:
        """Ask the shelves. One that costs nothing and does not answer is told, and hinders no end."""
        seen = shelved.take(self.providers)
        self.found = seen.of_run(self.run)
        for (name, kind), error in seen.errors.items():
            if kind.bills:
                self.unseen[f"{name} {kind}"] = seen.unanswered()[f"{name} {kind}"]
            else:
                tell(f"{name} could not be asked for its kind {kind}; what run {self.run} has there stays: {error}")

    def sort(self, store: Store | None, why_risky: Callable[[], str]) -> None:
        """Find out what stays. ``why_risky`` says why storage may hold the only copy, empty when it does not."""
        storage = [one for one in self.found if one.kind.bills]
        kept: tuple[str, ...] = ()
        if storage and self.keep_volumes is None and store is not None:
            try:
                kept = limits.read(store, self.run).kept
            except CheckpointError as error:
                self.risky, self.why = storage, f"Whether it was to be kept is not known: {error}"
                return
        self.wished = [one for one in storage if self.keep_volumes or name_of(one) in kept]
        others = [one for one in storage if one not in self.wished]
        if others and (why := why_risky()):
            self.risky, self.why = others, why

    def stay(self) -> None:
        """Let everything stay, since a machine does."""
        self.risky, self.why = [one for one in self.found if one not in self.wished], ""

    def words(self) -> list[str]:
        """Return what is kept as it was wished, and what it costs, in sentences."""
        again = f"`{remedy('teardown', run=self.run, keep_volumes=False)}` ends it"
        return [
            f"Kept, as keep_volumes=true asks for: {shelved.describe(one)}, which {shelved.costs(one)}; {again}."
            for one in self.wished
        ]

    def refusals(self) -> list[str]:
        """Return why the others are kept, what they cost, and what can be done, in sentences."""
        if not self.why:
            return [f"With it stays {shelved.describe(one)}, which {shelved.costs(one)}." for one in self.risky]
        return [
            f"{shelved.describe(one)} of run {self.run} is kept, and {shelved.costs(one)}: {self.why} "
            f"`{remedy('teardown', run=self.run)}` tries again, and with `{option('lose', True)}` ends it all the same."
            for one in self.risky
        ]

    def note(self, store: Store | None, gone: Sequence[Resource], tell: Progress) -> None:
        """Write into the bucket what is kept on purpose, so that nobody takes it for forgotten."""
        if store is None or not (self.wished or gone):
            return
        try:
            before = limits.read(store, self.run)
            after = before.keeping(more=tuple(map(name_of, self.wished)), less=tuple(map(name_of, gone)))
            if after != before:
                limits.write(store, self.run, after)
        except CheckpointError as error:
            tell(f"The bucket could not be told what run {self.run} keeps, so an audit may call it forgotten: {error}")

    def planned(self, condition: str) -> tuple[list[str], list[PlannedCall]]:
        """Return what would be done, in words and as API calls."""
        words = [f"destroy {shelved.describe(one)}{condition}" for one in self.going]
        return words, shelved.plan_end(self.providers, self.going)


def left(
    providers: Sequence[Provider], run: str, staying: Sequence[Resource], clock: pace.Clock | None = None
) -> list[str]:
    """Return a sentence for all that a run still has at the clouds, and for each that could not be asked; else nothing.

    What is in ``staying`` is known, and left out.
    """
    known = {one.place for one in staying}
    clock = clock or pace.Clock()
    sentences: list[str] = []
    for look, delay in zip(range(_LOOKS), clock.delays(), strict=False):
        if look:
            clock.sleep(delay)
        seen, shelves = survey.take(providers), shelved.take(providers, kinds=[kind for kind in Kind if kind.bills])
        machines = survey.owned(seen.instances, run)
        things = [one for one in shelves.of_run(run) if one.place not in known]
        names = [*map(machine.describe, machines), *map(shelved.describe, things)]
        sentences = [f"Run {run} still has {'; '.join(names)}, which may bill."] if names else []
        sentences += [*seen.unanswered().values(), *shelves.unanswered().values()]
        if not sentences:
            break
    return sentences


def leak_sentences(errors: Sequence[tuple[Resource, ProviderError]]) -> list[str]:
    """Return the errors of resources whose end could not be confirmed, each with its name."""
    return [f"{shelved.describe(one)} could not be ended: {error}" for one, error in errors]
