"""Launch a run, or resume it: plan it, have a machine for each of its nodes, and say how each is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from gpuyard import paths, planning, records, ssh
from gpuyard.api import resources
from gpuyard.api.site import Site
from gpuyard.api.storage import AtCreation, Stored, have
from gpuyard.box.checkpoints import sequences
from gpuyard.errors import CheckpointError, GpuyardError, NotSavedError
from gpuyard.formats.label import pool_of
from gpuyard.hosts import host_name
from gpuyard.planning import PlanRequest
from gpuyard.planning.nodes import NodePlan
from gpuyard.providers.base import Progress, Provider, State
from gpuyard.remedies import remedy
from gpuyard.renting import claim, ending, leaving, limits, machine, nodes, record, rent, storage
from gpuyard.renting.acceptance import Acceptance
from gpuyard.renting.failed_hosts import FailedHosts
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.machine import Outcome
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes
from gpuyard.workload.hardware import DEFAULTS, Health


@dataclass(frozen=True, slots=True)
class LaunchedNode:
    """A node with its machine. ``connection`` holds Ansible's variables; empty for a machine that is only planned."""

    run: str
    host: str
    plan: NodePlan
    outcome: Outcome
    connection: Mapping[str, str | int]
    volume: Stored | None = None  # what it got from its cloud
    spent: rent.Spent = field(default_factory=rent.Spent)  # what it took to rent it
    apart: bool = False  # whether it is one of several nodes that are at work at the same time
    begins: bool = False  # whether the bucket holds nothing that it could bring back

    def to_dict(self) -> dict[str, object]:
        """Return it as a play takes it; ``stages`` is what its box is told of the node: of a lone one nothing."""
        place = self.plan.place
        apart = place.pools if self.apart else ()
        return {
            "name": self.host,
            "node": place.on_label,
            "pool": pool_of(place.on_label),
            "stages": {
                "node": place.name if apart else "",
                "pools": list(apart),
                "place": "" if place.place == self.run else place.place,
            },
            "restore": not (self.begins and self.outcome.rented),
            "rented": self.outcome.rented,
            "volumes": self.volume.on_box() if self.volume else {},
            "instance": records.instance_to_dict(self.outcome.instance) if self.outcome.instance else {},
            "spent": asdict(self.spent),
            "vars": dict(self.connection),
        }


@dataclass(frozen=True, slots=True)
class Launched:
    """A run whose nodes have their machines, or with ``check`` would get them."""

    plan: planning.Plan
    nodes: list[LaunchedNode]
    check: bool = False

    @property
    def price_per_hour_usd(self) -> float:
        """What its machines cost an hour as they are now; with ``check`` those that it has."""
        return sum(node.outcome.instance.cost_now_per_hour_usd for node in self.nodes if node.outcome.instance)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values: what was done, or with ``check`` would be, and the text for people."""
        before = [node.volume.outcome for node in self.nodes if node.volume and node.volume.mounted]
        after = [node.volume.outcome for node in self.nodes if node.volume and not node.volume.mounted]
        outcomes: list[Outcome | resources.Outcome] = [*before, *(node.outcome for node in self.nodes), *after]
        actions = [action for outcome in outcomes for action in outcome.actions]
        planned = [call for outcome in outcomes for call in outcome.planned]
        text = records.planned_text(actions, planned) if self.check else self._ways_in()
        values: dict[str, Any] = {
            "changed": any(outcome.changed for outcome in outcomes),
            "plan": self.plan.to_dict(),
            "hosts": [node.to_dict() for node in self.nodes if node.connection],
            "price_per_hour_usd": self.price_per_hour_usd,
            "actions": actions,
            "diff": {
                "before": {"machines": [words for outcome in outcomes for words in outcome.before]},
                "after": {"machines": [words for outcome in outcomes for words in outcome.after]},
            },
            "text": "\n".join(text),
        }
        if self.check:
            values["planned_calls"] = [records.call_to_dict(call) for call in planned]
        return values

    def _ways_in(self) -> list[str]:
        """Return how each machine is reached by hand."""
        config_file = paths.home() / "ssh_config"
        return [f"Reach it by its name: ssh -F {config_file} {node.host}" for node in self.nodes if node.connection]


def launch(
    site: Site,
    request: PlanRequest,
    *,
    timeout_s: float = 900.0,
    spent: rent.Spent | None = None,
    check: bool = False,
    progress: Progress,
    planned: Callable[[planning.Plan], None] = lambda plan: None,
) -> Launched:
    """Plan the run of ``request``, tell the plan line by line, and have a machine for each of its nodes, side by side.

    ``timeout_s`` is how long one machine may take to be usable; ``spent`` is what the same launch took before, when it
    begins anew since a machine's disk was full; ``planned`` gets the plan before anything is rented.
    Raises what :func:`gpuyard.planning.make` and :func:`gpuyard.renting.nodes.present` raise; whatever it is, no
    machine that this call has rented is left unsaid.
    """
    plan, everywhere = _planned(site, request, progress)
    for line in plan.text:
        progress(line)
    planned(plan)
    if not request.move or check:
        return _have_machines(site, plan, everywhere, timeout_s=timeout_s, spent=spent, check=check, progress=progress)
    _end_stages_of_left(site, plan, everywhere, progress)
    try:
        # The checkpoint to go on from is there only now.
        plan, everywhere = _planned(site, request, progress)
        return _have_machines(site, plan, everywhere, timeout_s=timeout_s, spent=spent, check=False, progress=progress)
    except GpuyardError as error:
        raise GpuyardError(f"{error} {_stays(plan)}") from error


def dry_run(site: Site, request: PlanRequest, *, progress: Progress) -> Launched:
    """Return the plan of ``request`` with what a launch would do now. No request that writes anything is sent.

    Unlike :func:`launch` it does not tell the plan. Raises what :func:`gpuyard.planning.make` raises.
    """
    plan, everywhere = _planned(site, request, progress)
    return _have_machines(site, plan, everywhere, timeout_s=0.0, check=True, progress=progress)


def _planned(site: Site, request: PlanRequest, progress: Progress) -> tuple[planning.Plan, Sequence[Provider]]:
    """Return the plan, and all clouds where the run may have a machine."""
    checked = planning.check(request)
    connections = site.connections(start_sandbox=request.mode == "launch", progress=progress)
    return planning.make(request, checked, connections, progress=progress), connections.everywhere


def _end_stages_of_left(site: Site, plan: planning.Plan, clouds: Sequence[Provider], progress: Progress) -> None:
    """End the stages on the machines that a run leaves; raises :class:`NotSavedError` if the bucket lacks anything."""
    boxes, store = ending.OverSsh(plan.key, clouds), site.shared_store()
    for one in plan.behind:
        safe, why = leaving.end_stages(boxes, store, one, wait_s=None, tell=progress)
        if not safe:
            raise NotSavedError(f"{why} So run {plan.run.name} is not moved, and nothing was rented. {_stays(plan)}")
        progress(why)


def _stays(plan: planning.Plan) -> str:
    """Return where a run is that could not be moved, and how it goes on."""
    old = plan.behind[0]
    run = plan.run.name
    goes_on = remedy("start" if old.state is State.STOPPED else "launch", run=run)
    return (
        f"The run still has {machine.describe(old)}, which {machine.costs(old)}, with all that is on it; its stages "
        f"have ended, or are ending: `{goes_on}` goes on there, `{remedy('move', run=run, provider='…')}` tries again."
    )


def _have_machines(
    site: Site,
    plan: planning.Plan,
    everywhere: Sequence[Provider],
    *,
    timeout_s: float,
    spent: rent.Spent | None = None,
    check: bool,
    progress: Progress,
) -> Launched:
    """Have a machine for each node of ``plan``, side by side; with ``check`` only say what would be done."""
    shared = Notebook(site.shared_store)
    ledger, notes = Ledger(shared, progress), PendingNotes(shared, progress)

    health = plan.workload.health or Health()
    cuda = plan.workload.cuda
    acceptance = Acceptance(
        health.least,
        DEFAULTS,
        health.required,
        driver_comes=cuda is not None and cuda.driver == "auto",
        bucket=plan.bucket,
        hosts=FailedHosts(shared, progress),
    )

    giving_up = plan.workload.limits
    begins = False

    def keep() -> None:
        nonlocal begins
        # A bucket that has failed before is asked again: without it nobody else could go on with the run.
        new = plan.to_keep or plan.limits.new
        store = site.shared_store() if new or plan.expected_checkpoint == 0 else None
        if store and plan.to_keep:
            record.write(store, plan.to_keep, progress=progress)
        if store and plan.limits.new:
            limits.write(store, plan.run.name, plan.limits.limits)
        if store and plan.expected_checkpoint == 0:
            # Nobody else rents for the run from here on, so the new machine need not ask this once more.
            with suppress(CheckpointError):
                begins = not sequences(store, plan.run.name)

    wanted = {
        node.place.on_label: storage.wanted(plan.workload, plan.run.name, node.place.on_label) for node in plan.nodes
    }

    def mounting(node: NodePlan) -> AtCreation | None:
        want = wanted[node.place.on_label]
        return AtCreation(want, everywhere, may_go=node.replace_preempted, progress=progress) if want else None

    orders = [
        machine.Order(
            run=plan.run.name,
            node=node.place.on_label,
            workload=plan.workload.name,
            offers=partial(list, node.offers),
            key=plan.key,
            disk_gb=node.disk_gb,
            image=plan.workload.image,
            limited_user=plan.workload.login == "limited",
            planned=bool(node.offers),
            replace_preempted=node.replace_preempted,
            timeout_s=timeout_s,
            loading_s=None if giving_up.loading_minutes is None else giving_up.loading_minutes * 60,
            ssh_s=None if giving_up.ssh_minutes is None else giving_up.ssh_minutes * 60,
            limits=rent.Limits(
                giving_up.attempts,
                None if giving_up.minutes is None else giving_up.minutes * 60,
                giving_up.usd,
                node.max_price_per_hour_usd,
            ),
            everywhere=everywhere,
            notes=notes,
            ledger=ledger,
            claims=claim.Claims(shared, progress),
            keep=keep,
            acceptance=acceptance,
            lease_end=plan.limits.label_end,
            mounting=mounting(node),
            spent=replace(spent or rent.Spent()),
        )
        for node in plan.nodes
    ]
    clouds = {
        node.place.on_label: [cloud for cloud in everywhere if node.provider in ("", cloud.name)] for node in plan.nodes
    }
    outcomes = nodes.present(clouds, orders, check=check, progress=progress)
    volumes = [
        have(
            wanted[node.place.on_label],
            outcome.instance,
            node.offers,
            everywhere,
            check=check,
            progress=progress,
        )
        for node, outcome in zip(plan.nodes, outcomes, strict=True)
    ]
    # All nodes of the run, those included whose stages are done, so that a node's name stays what it is.
    names = [place.name for place in plan.places] if len(plan.places) > 1 else []
    return Launched(
        plan,
        [
            LaunchedNode(
                plan.run.name,
                host_name(plan.run.name, node.place.on_label, names),
                node,
                outcome,
                ssh.ansible_vars(outcome.instance, plan.key) if outcome.instance else {},
                volume,
                order.spent,
                apart=len(plan.places) > 1,
                begins=begins,
            )
            for node, order, outcome, volume in zip(plan.nodes, orders, outcomes, volumes, strict=True)
        ],
        check,
    )
