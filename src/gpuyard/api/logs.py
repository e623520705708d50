"""The log of a stage, from the run's machine or from its newest checkpoint, and what a run does as it does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuyard.api import follow as following
from gpuyard.api.choosing import choose_run
from gpuyard.api.site import SURVEY_S, Site
from gpuyard.errors import UsageError
from gpuyard.providers.base import Progress
from gpuyard.renting import machine, runs, survey, watch


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which log is wanted.

    ``run``: by default the only one there is. ``node``: by default the first that is at work. ``stage``: by default the
    one whose log was written to last.
    ``iteration``: by default the stage's last one. ``lines``: how many, from the end. ``errors``: only errors and
    warnings, tracebacks whole. ``from_provider``: what the provider keeps of the machine itself, in place of a stage's.
    """

    run: str | None = None
    node: str | None = None
    stage: str | None = None
    iteration: int | None = None
    lines: int = 50
    errors: bool = False
    from_provider: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """The lines of a log, and where experiment trackers show the run, by the trackers' names."""

    run: str
    lines: list[str]
    links: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        text = [*self.lines, *(f"{self.run} at {name}: {address}" for name, address in self.links.items())]
        return {"lines": self.lines, "links": dict(self.links), "text": "\n".join(text)}


@dataclass(frozen=True, slots=True)
class Followed:
    """How a run stood when following it ended, and what bills from then on."""

    run: str
    state: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"lines": [], "state": self.state, "text": self.text}


def read(site: Site, request: LogRequest, *, progress: Progress) -> Log:
    """Return the log that ``request`` wants.

    Raises :class:`gpuyard.errors.UsageError`, which lists what there is, when the run or its log is not there.
    """
    if request.lines < 1:
        raise UsageError(f"lines={request.lines} must be at least 1.")
    if request.from_provider:
        return _of_provider(site, request)
    run, store = choose_run(site, request.run, progress)
    query = watch.LogQuery(request.stage, request.iteration, request.lines, request.errors)
    node = watch.choose_node(run, request.node)
    whose = machine.whose(run.name, node.name)
    if node.machine and node.is_up:
        found = watch.log(node.machine, site.key(), query)
        return Log(run.name, found.lines, found.links)
    if store is None:
        raise UsageError(f"{whose} has no running machine, and no bucket that could hold its logs.")
    found = watch.published_log(whose[0].lower() + whose[1:], node, store, query)
    return Log(run.name, found.lines, found.links)


def _of_provider(site: Site, request: LogRequest) -> Log:
    """Return what the run's provider keeps of its machine, which need not answer; neither bucket nor SSH is asked."""
    if given := [name for name in ("stage", "iteration", "errors") if getattr(request, name)]:
        raise UsageError(
            f"{' and '.join(given)} cannot go with source=provider: the provider knows the machine, not its stages."
        )
    clouds = site.clouds()
    seen = survey.take(clouds, within_s=SURVEY_S)
    run = watch.choose(runs.join(seen.answered(), runs.Stored()), request.run)
    node = watch.choose_node(run, request.node)
    if node.machine is None:
        raise UsageError(f"{machine.whose(run.name, node.name)} has no machine, so no provider has a log of it.")
    cloud = next(one for one in clouds if one.name == node.machine.provider)
    return Log(run.name, cloud.logs(node.machine.id, request.lines), {})


def follow(site: Site, name: str | None, *, progress: Progress) -> Followed:
    """Tell ``progress`` what the run called ``name`` (by default the only one) does, until it ends.

    Raises :class:`gpuyard.errors.GpuyardError`, with the last lines of what failed, when it does not finish.
    """
    run, _ = choose_run(site, name, progress)
    if not run.machine:
        raise UsageError(f"Run {run.name} has no machine, so there is nothing to follow.")
    progress(machine.following(run.name, run.instances))
    world = following.Real(site, progress)
    return Followed(run.name, *following.conclude(world, run, following.show_all(world, run, progress)))
