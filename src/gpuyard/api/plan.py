"""Plan a run: everything that a launch would do and cost, and nothing that changes anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gpuyard import records, ssh
from gpuyard.api import launch
from gpuyard.api.launch import Launched
from gpuyard.api.site import Site
from gpuyard.planning import PlanRequest, totals
from gpuyard.planning.totals import Totals
from gpuyard.providers.base import Progress


@dataclass(frozen=True, slots=True)
class Planned:
    """A run as a launch would have it, with what it costs in all."""

    launched: Launched
    costs: Totals

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without any secret. ``plan.connection`` is how the run's machine is reached."""
        made = self.launched.plan
        machine = made.run.machine
        values = self.launched.to_dict()
        return {
            "plan": made.to_dict() | {"connection": ssh.ansible_vars(machine, made.key) if machine else {}},
            "costs": self.costs.to_dict(),
            "actions": values["actions"],
            "planned_calls": values["planned_calls"],
        }

    def render(self, form: str) -> str:
        """Return it as text: ``table`` for people, ``json`` for programs."""
        values = self.to_dict()
        if form == "json":
            return json.dumps(values, indent=2, sort_keys=True)
        calls = [call for node in self.launched.nodes for call in node.outcome.planned]
        return "\n".join(
            [
                *self.launched.plan.text,
                *self.launched.plan.first.runners_up,
                *self.costs.text(),
                *records.planned_text(values["actions"], calls),
            ]
        )


def plan(site: Site, request: PlanRequest, *, progress: Progress) -> Planned:
    """Return what a launch of ``request`` would do now, and what the run costs.

    Only reading requests are sent. Raises what :func:`gpuyard.planning.make` raises.
    """
    launched = launch.dry_run(site, request, progress=progress)
    return Planned(launched, totals.of(launched.plan))
