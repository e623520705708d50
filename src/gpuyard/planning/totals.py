"""What a run costs in all: its machines, the bucket, the traffic to it, and the loss of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpuyard import records
from gpuyard.cost import NOTHING, Span, dollars_text
from gpuyard.formats.journal import Position
from gpuyard.planning.plan import Plan
from gpuyard.planning.pools import pool_of, stage_hours
from gpuyard.providers.base import OWN
from gpuyard.renting import storage as volume_storage
from gpuyard.workload import Workload


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run costs in all, in US dollars. What nobody names a price for is ``None``, and a note says so.

    ``storage`` is a month of the ``storage_gb`` (10^9 bytes) that the bucket then holds, ``traffic`` sending there the
    ``traffic_gb`` that are still to come.
    ``loss`` is what one loss of an interruptible machine costs: another set-up, and at worst also the longest stage
    that cannot go on where it was. ``lower_bound``: some stages have no hours. ``volumes`` are the clouds' volumes for
    the hours of the run.
    """

    machines: Span
    storage_gb: float = 0.0
    storage: float | None = None
    traffic_gb: float = 0.0
    traffic: float | None = None
    traffic_price_per_gb: float = 0.0
    loss: Span | None = None
    lower_bound: bool = False
    volumes: Span | None = None
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> Span:
        """Everything: expected without a loss of the machine, at worst with one where it can be taken away."""
        besides = (self.storage or 0.0) + (self.traffic or 0.0)
        return (
            self.machines
            + Span(besides, besides)
            + (self.volumes or NOTHING)
            + Span(0.0, self.loss.worst if self.loss else 0.0)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, in US dollars."""
        return {
            "machines_usd": asdict(self.machines),
            "bucket_gb": self.storage_gb,
            "bucket_usd_per_month": self.storage,
            "volumes_usd": asdict(self.volumes) if self.volumes else None,
            "traffic_gb": self.traffic_gb,
            "traffic_usd": self.traffic,
            "traffic_usd_per_gb": self.traffic_price_per_gb,
            "loss_usd": asdict(self.loss) if self.loss else None,
            "all_usd": asdict(self.all),
            "lower_bound": self.lower_bound,
            "notes": list(self.notes),
        }

    def text(self) -> list[str]:
        """Return it as a table for people, and what it leaves out."""
        least = "at least " if self.lower_bound else ""
        rows = [["in all, USD", "expected", "worst"], ["machines", *_cells(self.machines)]]
        if self.volumes is not None:
            rows.append(["volumes, while it runs", *_cells(self.volumes)])
        if self.storage is not None:
            rows.append([f"bucket: {self.storage_gb:g} GB for a month", *_cells(Span(self.storage, self.storage))])
        if self.traffic is not None:
            what = f"traffic to it: {self.traffic_gb:g} GB at ${self.traffic_price_per_gb:.4f}"
            rows.append([what, *_cells(Span(self.traffic, self.traffic))])
        if self.loss:
            rows.append(["one loss of the machine", "-", dollars_text(self.loss.worst)])
        rows.append([f"{least}in all", *_cells(self.all)])
        expected = (
            [
                f"Each loss of the interruptible machine is expected to cost ${dollars_text(self.loss.expected)}, "
                f"at worst ${dollars_text(self.loss.worst)}; how often it happens nobody can say."
            ]
            if self.loss
            else []
        )
        return [*records.table(rows), *expected, *self.notes]


@dataclass(frozen=True, slots=True)
class _Box:
    """A machine of the plan: its price, and the stages that it runs."""

    price_per_hour_usd: float
    gpu_name: str
    interruptible: bool
    traffic_price_per_gb: float
    own: bool
    stages: Sequence[Position]


def of(plan: Plan) -> Totals:
    """Return what the run of ``plan`` costs in all."""
    workload, notes = plan.workload, []
    machines = plan.by_pools.taken.dollars if plan.by_pools else plan.estimate.run.dollars or NOTHING
    boxes = _boxes(plan)
    storage_gb = traffic_gb = 0.0
    storage = traffic = None
    price = max((box.traffic_price_per_gb for box in boxes), default=0.0)
    if not plan.bucket.url:
        notes.append("There is no bucket, so none is paid for.")
    elif workload.storage is None:
        notes.append(
            "The workload does not say what it leaves in the bucket (storage), so bucket and traffic are not in it."
        )
    else:
        storage_gb = workload.storage.gb_per_iteration * workload.iterations
        storage = storage_gb * workload.storage.price_per_gb_month
        coming = {iteration for node in plan.nodes for iteration, _ in node.to_run}
        traffic_gb = workload.storage.gb_per_iteration * len(coming)
        if price and workload.traffic is not None:
            notes.append("The traffic that the workload names is in the machines' sum.")
        elif price:
            traffic = traffic_gb * price
        elif not all(box.own for box in boxes):
            notes.append("The cloud's offers name no price for traffic, so that is not in it.")
    volumes = None
    if plan.volumes:
        volumes = volume_storage.cost(plan.volumes, plan.estimate.run.hours)
        if any(one.price_per_month_usd is None for one in plan.volumes):
            notes.append("The cloud does not say what its volume costs, so that is not in it.")
        if any(one.wanted.keep for one in plan.volumes):
            notes.append("The volume stays after the run, and bills until it is deleted.")
    losses = [_loss(workload, box) for box in boxes if box.interruptible]
    unknown = plan.by_pools.unknown if plan.by_pools else any(one.unknown for one in plan.estimate.nodes.values())
    return Totals(
        machines,
        storage_gb,
        storage,
        traffic_gb,
        traffic,
        price,
        max(losses, key=lambda loss: loss.worst) if losses else None,
        bool(unknown),
        volumes,
        tuple(notes),
    )


def _boxes(plan: Plan) -> list[_Box]:
    to_run = [at for node in plan.nodes for at in node.to_run]
    if plan.by_pools:
        return [
            _Box(
                box.price_per_hour_usd,
                box.gpu_name,
                box.offers[0].market == "interruptible",
                box.offers[0].traffic_price_per_gb_usd,
                box.offers[0].provider == OWN,
                [at for at in to_run if pool_of(plan.workload, at[1]) in box.pools],
            )
            for box in plan.by_pools.taken.boxes
        ]
    found = []
    for node in plan.nodes:
        what = node.machine or node.offers[0]
        price = node.offers[0].traffic_price_per_gb_usd if node.offers else 0.0
        interruptible = what.market == "interruptible"
        found.append(
            _Box(node.price_per_hour_usd, node.gpu_name, interruptible, price, what.provider == OWN, node.to_run)
        )
    return found


def _loss(workload: Workload, box: _Box) -> Span:
    """Return what the loss of a machine costs: another set-up, at worst also what cannot go on where it was."""
    again = {stage.name for stage in workload.stages if stage.resumable != "yes"}
    longest = max(
        (stage_hours(workload, *at, box.gpu_name).worst for at in box.stages if at[1] in again),
        default=0.0,
    )
    setup = workload.setup_hours
    return Span(setup.expected, setup.worst + longest) * box.price_per_hour_usd


def _cells(span: Span) -> list[str]:
    return [dollars_text(span.expected), dollars_text(span.worst)]
