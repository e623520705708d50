"""End what bills and should not: what runs have left behind, and runs that are past their limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gpuyard import records
from gpuyard.api.site import Site
from gpuyard.box.checkpoints import Store
from gpuyard.config import SshKey
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import PlannedCall, Progress, Provider
from gpuyard.renting import ending, everything, limits
from gpuyard.renting.belongings import name_of
from gpuyard.renting.everything import Everything
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes
from gpuyard.renting.runs import Run


@dataclass(frozen=True, slots=True)
class ReapRequest:
    """What is to end: ``orphans``, what runs have left behind; ``limits``, runs past their lease or their budget.

    With ``limits`` also runs end whose machines have written that they are finished with.
    ``lose``: also what may hold what is not in the bucket.
    """

    orphans: bool = False
    limits: bool = False
    lose: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """A run of which something is to end, and why.

    ``seen`` are the machines that it had when that was decided; ``places`` those that are to end, ``None``: all of
    them, and with them the run and what else it has.
    """

    run: str
    why: str
    seen: frozenset[tuple[str, str]]
    places: frozenset[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a case: what was done, and in a sentence why not all of it; empty when all is gone."""

    run: str
    why: str
    actions: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reaped:
    """All cases, or with ``check`` what would be done, and a sentence for each that could not be asked."""

    outcomes: list[Outcome]
    unanswered: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    planned: list[PlannedCall] | None = None

    @property
    def problems(self) -> list[str]:
        """What could not be ended, in sentences that name ids and prices."""
        return [one.problem for one in self.outcomes if one.problem]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        actions = [action for one in self.outcomes for action in one.actions]
        values: dict[str, Any] = {
            "changed": bool(actions),
            "reaped": [asdict(one) for one in self.outcomes],
            "problems": self.problems,
            "unanswered": dict(self.unanswered),
            "notes": list(self.notes),
            "actions": actions,
        }
        if self.planned is not None:
            values["planned_calls"] = [records.call_to_dict(call) for call in self.planned]
        return values

    def render(self, form: str) -> str:
        """Return it as text: ``table`` for people, ``json`` for programs."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) if form == "json" else "\n".join(self._lines())

    def _lines(self) -> list[str]:
        lines = [] if self.outcomes else ["There is nothing to end."]
        for one in self.outcomes:
            done = "is kept" if one.problem else "would end" if self.planned is not None else "has ended"
            lines.append(f"Run {one.run} {done}: {one.why}." + (f" {one.problem}" if one.problem else ""))
        if self.planned is not None:
            lines += records.planned_text([action for one in self.outcomes for action in one.actions], self.planned)
        return [*lines, *self.notes, *self.unanswered.values()]


def reap(
    site: Site,
    request: ReapRequest,
    *,
    check: bool = False,
    progress: Progress,
    now: Callable[[], float] = time.time,
) -> Reaped:
    """End what ``request`` asks for, run by run, each as a teardown would. Foreign things are never touched.

    Nothing that may hold the only copy of a run's work goes unless ``request`` says so. What could not be ended, and
    what could not be asked, is in the result; no error of one run hinders another.
    """
    clouds, key, store = site.clouds(), site.key(), site.store()
    found = everything.gather(clouds, site.shared_store(), now())
    reaper = _Reaper(clouds, store, key, site.shared_store, check, progress)
    planned: list[PlannedCall] = []
    outcomes = []
    for case in cases(found, request):
        progress(f"Run {case.run}: {case.why}.")
        outcome, calls = reaper.end(case, lose=request.lose)
        outcomes.append(outcome)
        planned += calls
    notes = [*found.notes, *(_nearly_over(found) if request.limits else [])]
    return Reaped(outcomes, dict(found.unanswered), notes, planned if check else None)


def cases(found: Everything, request: ReapRequest) -> list[Case]:
    """Return of which runs something is to end, by name."""
    wanted = {case.run: case for case in (_orphans(found) if request.orphans else [])}
    # A limit is of the whole run, whatever else was left behind of it.
    wanted |= {case.run: case for case in ([*_finished_with(found), *_past_limits(found)] if request.limits else [])}
    return [wanted[run] for run in sorted(wanted)]


def _past_limits(found: Everything) -> list[Case]:
    """Return the runs whose lease or budget is over, of those that have something which bills."""
    whys = {}
    refs = [one.ref for one in found.machines.instances] + [one.ref for one in found.shelves.resources]
    for run in {ref.run for ref in refs if ref}:
        known = _with_belongings(found, found.runs.get(run, Run(run, "")))
        kept = [name_of(one) in known.limits.kept for one in found.shelves.of_run(run)]
        if not known.instances and all(kept):
            continue  # nothing would end
        if why := found.leases.get(run) or limits.over(known, found.now):
            whys[run] = why
    return [Case(run, why, found.places(run)) for run, why in whys.items()]


def _finished_with(found: Everything) -> list[Case]:
    """Return the runs whose machines have written that they are finished with."""
    whys = {name: everything.finished_with(run) for name, run in found.runs.items()}
    return [Case(run, why, found.places(run)) for run, why in whys.items() if why]


def _nearly_over(found: Everything) -> list[str]:
    """Return a sentence for each run with a machine that has cost most of its budget."""
    known = [_with_belongings(found, run) for run in found.runs.values() if run.instances]
    living = [run for run in known if not limits.over(run, found.now)]
    return [words for run in living if (words := limits.nearly_over(run, found.now))]


def _with_belongings(found: Everything, run: Run) -> Run:
    return replace(run, belongings=tuple(found.shelves.of_run(run.name)))


def _orphans(found: Everything) -> list[Case]:
    whys: dict[str, str] = {}
    left: dict[str, set[tuple[str, str]]] = {}
    for resource in found.shelves.resources:
        about = found.resource(resource)
        if about.orphaned and resource.ref:
            whys.setdefault(resource.ref.run, about.why)
    for one in found.machines.instances:
        about = found.machine(one)
        if about.orphaned and one.ref and one.ref.run not in whys:
            left.setdefault(one.ref.run, set()).add(one.place)
    found_cases = [Case(run, why, found.places(run)) for run, why in whys.items()]
    for run, places in left.items():
        why = next(found.machine(one).why for one in found.runs[run].instances if one.place in places)
        seen = found.places(run)
        # A run that is over is ended as such, so that the clouds are asked whether anything of it is left.
        found_cases.append(Case(run, why, seen, None if found.why_over(run) else frozenset(places)))
    return found_cases


@dataclass(frozen=True, slots=True)
class _Reaper:
    """Ends one case after another, by the rules for ending a run."""

    clouds: Sequence[Provider]
    store: Store | None
    key: SshKey
    shared: Callable[[], Store | None]
    check: bool
    progress: Progress

    def end(self, case: Case, *, lose: bool) -> tuple[Outcome, list[PlannedCall]]:
        """End what ``case`` names; whatever goes wrong is in the outcome."""
        notebook = Notebook(self.shared)
        try:
            done = ending.end(
                self.clouds,
                self.store,
                ending.Order(case.run, lose=lose, places=case.places, seen=case.seen),
                ending.OverSsh(self.key, self.clouds),
                ledger=Ledger(notebook, self.progress),
                notes=PendingNotes(notebook, self.progress),
                check=self.check,
                progress=self.progress,
            )
        except GpuyardError as error:
            return Outcome(case.run, case.why, problem=str(error)), []
        return Outcome(case.run, case.why, done.actions), done.planned
