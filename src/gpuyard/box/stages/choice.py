"""Which stages of a run are to run: all that are left, one stage only, or from a stage or an iteration on, up to one.

The box reckons with it what to run, the controller before that what it will cost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpuyard.box.stages.spec import Named, arranged
from gpuyard.errors import UsageError
from gpuyard.formats.journal import Position, Progress, fold


@dataclass(frozen=True)
class Choice:
    """What to run: from a stage on, or one stage only, and in which iteration (default: the current one).

    ``until`` is the last stage to run: where it comes next, at or after the place where the run begins.
    """

    from_stage: str | None = None
    only: str | None = None
    iteration: int | None = None
    until: str | None = None


class Staged(Protocol):
    """What has stages in an order: the box's specification, and the controller's workload."""

    @property
    def stages(self) -> Sequence[Named]:
        """The stages, in the order of the file."""

    @property
    def iterations(self) -> int:
        """How many iterations there are."""

    @property
    def order(self) -> list[Position]:
        """Every stage of every iteration."""


def check(choice: Choice, staged: Staged) -> None:
    """Raise :class:`UsageError` where a choice names a stage or an iteration that is not there."""
    names = [stage.name for stage in arranged(staged.stages)]
    named = choice.only or choice.from_stage
    for name in (named, choice.until):
        if name is not None and name not in names:
            raise UsageError(f"There is no stage {name!r}; the stages are {', '.join(names)}.")
    if choice.until and choice.only:
        raise UsageError(
            f"stage={choice.only} runs that stage only, and until_stage={choice.until} all up to that one: leave one "
            "of them out."
        )
    if choice.until and choice.from_stage and names.index(choice.from_stage) > names.index(choice.until):
        raise UsageError(
            f"from_stage={choice.from_stage} comes after until_stage={choice.until}, so no stage would run; the order "
            f"is {', '.join(names)}."
        )
    if choice.iteration is None:
        return
    if not 0 <= choice.iteration < staged.iterations:
        there = f"the iterations 0 to {staged.iterations - 1}" if staged.iterations > 1 else "one iteration, 0"
        raise UsageError(f"iteration={choice.iteration}: there is no such iteration; the workload has {there}.")
    here = [stage for iteration, stage in staged.order if iteration == choice.iteration]
    if not here or (named is not None and named not in here):
        what = f"stage {named} does not run" if named else "no stage runs"
        raise UsageError(f"iteration={choice.iteration}: {what} in that iteration.")


def place_of(choice: Choice, staged: Staged, progress: Progress) -> Position | None:
    """Return the place that a choice means, ``None`` where it means nothing but what is left.

    Without an iteration it is the current one, or the nearest before it in which the stage runs, else its first.
    """
    check(choice, staged)
    named = choice.only or choice.from_stage
    if named is None and choice.iteration is None:
        return None
    current = progress.current[0] if progress.current else staged.iterations - 1
    iteration = current if choice.iteration is None else choice.iteration
    if named is None:
        once = {stage.name for stage in staged.stages if stage.run == "once"}
        here = [place for place in staged.order if place[0] == iteration]
        return next((place for place in here if place[1] not in once), here[0])
    places = [place for place in staged.order if place[1] == named]
    if not places:
        raise UsageError(f"Stage {named} does not run in {_iterations(staged.iterations)}.")
    before = [place for place in places if place[0] <= iteration]
    return before[-1] if before else places[0]


def rewind(choice: Choice, staged: Staged, progress: Progress) -> dict[str, Any] | None:
    """Return the fields of the journal's ``rewind`` that carry out a choice, ``None`` where none is needed.

    What ran once in the run is kept, unless it is the very stage that is named.
    """
    place = place_of(choice, staged, progress)
    if place is None:
        return None
    if choice.only is not None:
        # What was cut off or failed goes on where it was.
        repeats = progress.at(place).settled
        return {"iteration": place[0], "stage": place[1], "only": True} if repeats else None
    keeps = [stage.name for stage in staged.stages if stage.run == "once"]
    return {"iteration": place[0], "stage": place[1], **({"keeps": keeps} if keeps else {})}


def what_runs(choice: Choice, staged: Staged, progress: Progress) -> list[Position]:
    """Return what is to run once the rewind is in the journal of ``progress``."""
    place = place_of(choice, staged, progress)
    if choice.only is not None and place is not None:
        return [place]
    begin = place or progress.current
    if choice.until is None or begin is None:
        return progress.pending
    order = list(staged.order)
    last = next((other for other in order[order.index(begin) :] if other[1] == choice.until), None)
    if last is None:
        raise UsageError(
            f"until_stage={choice.until} does not come any more: the run begins at {begin[1]} of iteration {begin[0]}."
        )
    return [other for other in progress.pending if order.index(other) <= order.index(last)]


def expected(choice: Choice, staged: Staged, done: Collection[Position]) -> list[Position]:
    """Return what a run would run now of which only is known what is ``done``; for the controller."""
    events: list[dict[str, Any]] = [
        {"event": "stage-end", "iteration": iteration, "stage": stage, "outcome": "done"} for iteration, stage in done
    ]
    before = fold(events, staged.order)
    fields = rewind(choice, staged, before)
    return what_runs(choice, staged, fold([*events, {"event": "rewind", **fields}], staged.order) if fields else before)


def _iterations(count: int) -> str:
    return f"a run of {count} iteration{'' if count == 1 else 's'}"
