"""Launch a run, or resume it: plan it, have a machine for each of its nodes, and say how each is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from gpuyard import config, paths, planning, ssh
from gpuyard.formats.label import pool_of
from gpuyard.hosts import host_name
from gpuyard.planning.nodes import NodePlan
from gpuyard.providers.base import Progress
from gpuyard.renting import machine, nodes, runs
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.machine import Outcome
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes


@dataclass(frozen=True, slots=True)
class LaunchedNode:
    """A node with its machine. ``connection`` holds Ansible's variables; empty for a machine that is only planned."""

    run: str
    host: str
    plan: NodePlan
    outcome: Outcome
    connection: Mapping[str, str | int]

    def to_dict(self) -> dict[str, object]:
        """Return it as a play takes it; ``stages`` is what its box is told of the node: of a lone one nothing."""
        place = self.plan.place
        apart = place.pools if self.host != self.run else ()
        return {
            "name": self.host,
            "node": place.name,
            "pool": pool_of(place.name),
            "stages": {
                "node": place.name if apart else "",
                "pools": list(apart),
                "place": "" if place.place == self.run else place.place,
            },
            "rented": self.outcome.rented,
            "vars": dict(self.connection),
        }


@dataclass(frozen=True, slots=True)
class Launched:
    """A run whose nodes have their machines, or with ``check`` would get them."""

    plan: planning.Plan
    nodes: list[LaunchedNode]

    @property
    def price_per_hour_usd(self) -> float:
        """What its machines cost an hour as they are now; with ``check`` those that it has."""
        return sum(node.outcome.instance.cost_now_per_hour_usd for node in self.nodes if node.outcome.instance)

    def ways_in(self) -> list[str]:
        """Return how each machine is reached by hand."""
        config_file = paths.home() / "ssh_config"
        return [f"Reach it by its name: ssh -F {config_file} {node.host}" for node in self.nodes if node.connection]


def launch(
    request: planning.PlanRequest, *, timeout_s: float = 900.0, check: bool = False, progress: Progress
) -> Launched:
    """Plan the run of ``request``, tell the plan line by line, and have a machine for each of its nodes, side by side.

    ``timeout_s`` is how long one machine may take to be usable. Raises what :func:`gpuyard.planning.make` and
    :func:`gpuyard.renting.nodes.present` raise; whatever it is, no machine that this call has rented is left unsaid.
    """
    plan = planning.make(request, progress=progress)
    for line in plan.text:
        progress(line)
    everywhere = config.connect(require=False, sandbox=request.sandbox, sandbox_state=request.sandbox_state)
    shared = Notebook(lambda: runs.shared_bucket(plan.bucket))
    ledger, notes = Ledger(shared, progress), PendingNotes(shared, progress)
    orders = [
        machine.Order(
            run=plan.run.name,
            node=node.name,
            workload=plan.workload.name,
            offers=partial(list, node.offers),
            key=plan.key,
            disk_gb=node.disk_gb,
            image=plan.workload.image,
            planned=bool(node.offers),
            replace_preempted=node.replace_preempted,
            timeout_s=timeout_s,
            everywhere=everywhere,
            notes=notes,
            ledger=ledger,
        )
        for node in plan.nodes
    ]
    clouds = {node.name: [cloud for cloud in everywhere if node.provider in ("", cloud.name)] for node in plan.nodes}
    outcomes = nodes.present(clouds, orders, check=check, progress=progress)
    # All nodes of the run, those included whose stages are done, so that a node's name stays what it is.
    names = [place.name for place in plan.places]
    return Launched(
        plan,
        [
            LaunchedNode(
                plan.run.name,
                host_name(plan.run.name, node.name, names),
                node,
                outcome,
                ssh.ansible_vars(outcome.instance, plan.key) if outcome.instance else {},
            )
            for node, outcome in zip(plan.nodes, outcomes, strict=True)
        ],
    )
