"""How every run stands: its machines, its stages, and what it has cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard import records
from gpuyard.api.site import SURVEY_S, Site
from gpuyard.errors import CheckpointError
from gpuyard.renting import access, runs, survey, watch
from gpuyard.renting.runs import Run


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Which runs are wanted; ``None`` is all. Without ``ask_boxes`` the machines are not asked what their stages do."""

    run: str | None = None
    workload: str | None = None
    ask_boxes: bool = True

    def takes(self, run: Run) -> bool:
        """Tell whether this run is wanted."""
        return self.run in (None, run.name) and self.workload in (None, run.workload)


@dataclass(frozen=True, slots=True)
class Status:
    """The runs in the order of their names, and what could not be seen.

    ``unanswered`` has a sentence for each cloud that could not be asked, ``notes`` all sentences about what may be
    missing.
    """

    runs: list[Run]
    unanswered: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unknown: str = ""  # why there is nothing to show of the run that was named

    @property
    def text(self) -> list[str]:
        """The same as a table for people."""
        return [*([self.unknown] if self.unknown else records.run_table(self.runs)), *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "runs": [records.run_to_dict(run) for run in self.runs],
            "unanswered": dict(self.unanswered),
            "text": "\n".join(self.text),
        }


def status(site: Site, request: StatusRequest) -> Status:
    """Return the runs that the clouds and the bucket of ``site`` know; machines have five seconds to answer.

    A bucket, or one of several clouds, that does not answer is named in the notes. Raises the error of a cloud when
    none answers.
    """
    clouds = site.clouds()
    seen = survey.take(clouds, within_s=SURVEY_S)
    instances = seen.answered()
    notes = [*seen.unanswered().values(), *survey.silent_boxes(instances)]
    try:
        store = site.store()
        runs.check_answers(store)
        stored = runs.stored(store, costs=True)
        notes += stored.complaints
    except CheckpointError as error:
        stored = runs.Stored()
        notes.append(f"The bucket cannot be read, so runs without a machine are missing: {error}")
    known = runs.join(instances, stored, [cloud.name for cloud in clouds if cloud.name not in seen.errors])
    unknown = ""
    if request.run and request.run not in [run.name for run in known]:
        names = ", ".join(run.name for run in known) or "none"
        unknown = f"run={request.run!r} is not known to the clouds and the bucket; the runs there are: {names}."
    wanted = [run for run in known if request.takes(run)]
    if request.ask_boxes and any(run.is_up for run in wanted):
        key = site.key()
        living = [instance for run in wanted for instance in run.instances if instance.alive]
        access.let_in(clouds, living, key, timeout_s=watch.ASK_S)
        wanted = watch.asked(wanted, key)
    return Status(wanted, seen.unanswered(), notes, unknown)
