"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypedDict

from gpuyard import config, cost, market, records, tree
from gpuyard.box import checkpoints
from gpuyard.config import BucketSettings, SshKey
from gpuyard.errors import ProviderError, UsageError
from gpuyard.fingerprint import fingerprint
from gpuyard.formats.label import check_name, next_name
from gpuyard.planning import choose, nodes, offers, source
from gpuyard.planning.nodes import NodePlan
from gpuyard.planning.request import Mode, PlanRequest
from gpuyard.providers.base import Progress, Provider
from gpuyard.renting import machine, runs, survey
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload, load_workload


class _Site(TypedDict):
    sandbox: bool | None
    sandbox_state: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it will be: its nodes, but for those whose stages are done and that have no machine any more."""

    mode: Mode
    run: Run
    workload: Workload
    bucket: BucketSettings
    key: SshKey
    places: list[nodes.Place]  # all nodes that the workload asks for
    nodes: list[NodePlan]
    estimate: cost.Estimates
    text: list[str] = field(default_factory=list)
    mirrors: Mapping[str, str] = field(default_factory=dict)
    restore: int | None = None  # the checkpoint that was asked for by its number
    checkpoint: int = 0  # the newest checkpoint's number, whole or not; what comes after it is this launch's work

    @property
    def first(self) -> NodePlan:
        """The first node that a machine is to be rented for, else the first one."""
        return next((node for node in self.nodes if node.offers), self.nodes[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, without any secret."""
        source = self.workload.local_tree
        box = self.workload.to_box()
        first = self.first
        return {
            "mode": self.mode,
            "run": self.run.name,
            "provider": first.provider,
            "replace_preempted": first.replace_preempted,
            "workload": box,
            "workload_file": str(self.workload.source),
            "tree": str(source or ""),
            "fingerprint": fingerprint(box, tree.describe(source).digest if source else ""),
            "image": self.workload.image,
            "disk_gb": first.disk_gb,
            "environment_required": list(self.workload.environment.required),
            "offers": [records.offer_to_dict(offer) for offer in first.offers],
            "nodes": [_node_to_dict(node) for node in self.nodes],
            "cost": self.estimate.to_dict(),
            "bucket": {
                "url": self.bucket.url,
                "endpoint": self.bucket.endpoint,
                "endpoint_from_boxes": self.bucket.endpoint_from_boxes,
                "region": self.bucket.region,
            },
            "mirrors": dict(self.mirrors),
            "restore": -1 if self.restore is None else self.restore,
            "progress": dict(self.run.progress),
            "checkpoint": self.checkpoint,
            "instance": records.instance_to_dict(self.run.machine) if self.run.machine else {},
        }


def _node_to_dict(node: NodePlan) -> dict[str, Any]:
    return {
        "node": node.name,
        "pools": list(node.place.pools),
        "place": node.place.place,
        "provider": node.provider,
        "replace_preempted": node.replace_preempted,
        "disk_gb": node.disk_gb,
        "price_per_hour_usd": node.price_per_hour_usd,
        "offers": [records.offer_to_dict(offer) for offer in node.offers],
        "instance": records.instance_to_dict(node.machine) if node.machine else {},
    }


def make(request: PlanRequest, *, env: Mapping[str, str] | None = None, progress: Progress | None = None) -> Plan:
    """Return the plan, or raise an error of :mod:`gpuyard.errors` whose one sentence says why there is none.

    Only asks; nothing is rented, written or started, but for the sandbox when a launch wants it and it does not run.
    """
    variables = os.environ if env is None else env
    site: _Site = {"sandbox": request.sandbox, "sandbox_state": request.sandbox_state}
    if request.run:
        check_name(request.run)
    # Mistakes that need no answer from anywhere come first.
    if request.restore is not None and request.restore < 1:
        raise UsageError(f"restore={request.restore} is not the number of a checkpoint: those begin at 1.")
    market.check_conditions({**request.conditions, "max_price_per_hour": request.max_price_per_hour_usd})
    workload = (
        load_workload(request.workload) if request.workload and request.mode == "launch" and not request.run else None
    )
    if workload:
        workload.check_environment(variables)
        notes = source.notes(workload)
    key = config.ssh_key(request.ssh_key)
    chosen_clouds = config.connect(request.provider, progress=progress, start_sandbox=request.mode == "launch", **site)
    # The run may have a machine at a cloud other than the wanted one, and then must not get a second one.
    everywhere = chosen_clouds if request.provider is None else config.connect(require=False, **site)
    settings = config.s3_settings(request.bucket, bucket_endpoint=request.bucket_endpoint, **site)
    if request.shutdown and not settings.url:
        raise UsageError(
            "shutdown=true destroys the machine when the run ends, and without a bucket its results with it: name one "
            "with -e bucket=s3://…, or leave out shutdown."
        )
    store = runs.open_bucket(settings)
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = pool.submit(survey.take, everywhere)
        fetched = pool.submit(source.look, workload) if workload else None
        # What the bucket holds decides which runs there are, so a bucket that cannot be read ends the planning.
        kept = pool.submit(runs.stored, store, run=request.run)
        seen = asked.result()
        _complain(seen.errors, chosen_clouds, progress)
        known = runs.join(seen.instances, kept.result())
    run = (
        choose.to_resume(known, request)
        if request.mode == "resume"
        else choose.to_launch(known, chosen_clouds, workload, request)
    )
    if workload is None:
        workload = choose.workload_of(run, request, progress)
        workload.check_environment(variables)
        notes = source.notes(workload)
    places = nodes.places(workload, run.name)
    choose.refuse_strangers(run, workload, [place.name for place in places])
    newest = run.manifest.sequence if run.manifest else 0
    if request.restore is not None:
        if len(places) > 1:
            raise UsageError(
                f"restore={request.restore} is one checkpoint, and run {run.name} has {len(places)} nodes with their "
                "own: leave it out."
            )
        run, newest = choose.with_checkpoint(run, store, request.restore)
    choose.refuse_other_cloud(run, request)
    planned = [_node(run, place, workload, request, store, progress) for place in places]
    planned = [node for node in planned if node.machine or node.now.outcome != "done"]
    if not planned:
        raise UsageError(
            f"Run {run.name} has finished. Name another one to start afresh, for example -e run="
            f"{next_name(workload.name, [one.name for one in known])}."
            + (f" `ansible-playbook teardown.yml -e run={run.name}` ends what is left of it." if run.leftovers else "")
        )
    if len(places) == 1:  # the checkpoint that the plan tells of is the one that will be restored
        run = dataclasses.replace(run, manifest=planned[0].now.manifest)
    words = [line for node in planned if node.machine for line in _has_machine(run, node)]
    wanted = [node for node in planned if not node.machine]
    if wanted:
        chosen, reasons = offers.fitting(wanted, workload, chosen_clouds, request, progress)
        by_name = {node.name: node for node in chosen}
        planned = [by_name.get(node.name, node) for node in planned]
        words += reasons
        if len(planned) > 1:
            words += [f"{node.name}: {market.describe(node.offers[0])}." for node in chosen]
        words += [
            f"What is left of the lost machine goes first: {machine.describe(one)}."
            for node in wanted
            for one in node.now.leftovers
        ]
    estimate = cost.Estimates(
        {node.name: cost.of_pools(workload, node.place.pools, node.price_per_hour_usd) for node in planned}
    )
    words += [
        f"Run {other.name} has lost its machine ({machine.describe(other.leftovers[0])}), which may still bill: "
        + choose.ways_out(other)
        for other in known
        if other.workload == workload.name and other.name != run.name and other.leftovers and not other.machine
    ]
    if wanted:  # one that is there may have what it needs
        notes += [*(fetched.result() if fetched else source.look(workload)), *source.older(run, workload, store)]
    text = [
        *_headline(run, workload, request.mode, planned),
        *notes,
        *words,
        *estimate.to_table().splitlines(),
        estimate.summary(),
    ]
    text.append(_bucket_line(settings))
    if store is not None and store.ends_unfinished() is False:
        text.append(
            "No rule of that bucket ends unfinished uploads by itself. gpuyard ends its own at the next checkpoint and "
            "at teardown; a life-cycle rule (AbortIncompleteMultipartUpload) also ends what a lost run leaves."
        )
    return Plan(
        request.mode,
        run,
        workload,
        settings,
        key,
        places,
        planned,
        estimate,
        text,
        config.mirrors(**site),
        request.restore,
        newest,
    )


def _node(
    run: Run,
    place: nodes.Place,
    workload: Workload,
    request: PlanRequest,
    store: checkpoints.Store | None,
    progress: Progress | None,
) -> NodePlan:
    """Return a node with what it has now; raises the error of one that cannot go on from its newest checkpoint."""
    now = run.node(place.name)
    if now.problem and not now.machine and request.restore is None:
        raise checkpoints.CheckpointError(now.problem)
    if request.mode == "resume":
        now = choose.with_whole_checkpoint(run.name, now, store, request.restore, progress)
    disk_gb = float(request.conditions.get("disk_gb", nodes.strictest(workload, place.pools).disk_gb))
    return NodePlan(
        place,
        now,
        disk_gb,
        provider=choose.where_to_look(now, request),
        # Only what the bucket holds makes the disk of a lost machine dispensable.
        replace_preempted=request.mode == "resume" and now.manifest is not None,
    )


def _has_machine(run: Run, node: NodePlan) -> list[str]:
    """Return what is to be known of a node that has a machine."""
    assert node.machine is not None  # asked for such nodes only
    words = [f"{machine.whose(run.name, node.name)} has {machine.describe(node.machine)}; nothing has to be rented."]
    if node.now.problem:
        words.append(f"Its newest checkpoint cannot be read: {node.now.problem}")
    if node.now.outcome:
        words.append(
            f"It has {'finished' if node.now.outcome == 'done' else 'failed'}, and its machine still bills: "
            f"`ansible-playbook teardown.yml -e run={run.name}` ends that."
        )
    return words


def _complain(errors: Mapping[str, ProviderError], chosen: Sequence[Provider], progress: Progress | None) -> None:
    """Raise the error of a cloud that was asked for; of another one, tell what could be overlooked."""
    for name, error in errors.items():
        if name in [provider.name for provider in chosen]:
            raise error
        if progress:
            progress(f"{name} was not asked for and does not answer, so a machine there would be overlooked: {error}")


def _headline(run: Run, workload: Workload, mode: Mode, planned: Sequence[NodePlan]) -> list[str]:
    what = f"Run {run.name} of workload {workload.name}"
    kept = [node for node in planned if node.now.manifest]
    if not kept:
        if mode == "resume":
            return [f"{what} has no checkpoint yet, so it begins at the beginning."]
        return [f"{what}: {workload.description}" if workload.description else f"{what}."]
    return [
        f"{what if len(planned) == 1 else f'{what}, node {node.name},'} goes on from "
        f"{runs.stage_text(node.now.progress)}, checkpoint {node.now.manifest.sequence} of {node.now.manifest.time}."
        for node in kept
        if node.now.manifest
    ]


def _bucket_line(settings: BucketSettings) -> str:
    if not settings.url:
        return "There is no bucket: checkpoints stay on the machine and are lost with it."
    if settings.url.startswith("file:"):
        return (
            f"Checkpoints go to {settings.url} on the machine; unless storage is shared there, they are lost with it."
        )
    return f"Checkpoints go to {settings.url}" + (f" at {settings.endpoint}." if settings.endpoint else ".")
