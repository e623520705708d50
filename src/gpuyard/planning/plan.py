"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpuyard import cost, fingerprint, geography, market, records
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.box.stages import choice as stage_choice
from gpuyard.box.stages.choice import Choice
from gpuyard.config import BucketSettings, SshKey, check_keys_for_boxes
from gpuyard.errors import ProviderError, UsageError
from gpuyard.formats.label import FIRST_NODE, check_name, next_name, pool_of
from gpuyard.formats.location import KEY_FILES
from gpuyard.planning import choose, limited, nodes, offers, pools, room, source, stored, version
from gpuyard.planning.limited import Limited
from gpuyard.planning.nodes import NodePlan
from gpuyard.planning.request import Connections, Mode, PlanRequest
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.remedies import option, remedy
from gpuyard.renting import machine, record, runs, storage, survey
from gpuyard.renting.failed_hosts import FailedHosts
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.runs import Run
from gpuyard.workload import Origin, Resolved, Workload
from gpuyard.workload.schema import as_text


@dataclass(frozen=True, slots=True)
class Checked:
    """A request without a mistake that could be seen on this machine alone.

    ``resolved`` is ``None`` where the run decides which workload it is; ``notes`` are what to know of its tree.
    """

    resolved: Resolved | None = None
    notes: list[str] = field(default_factory=list)


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
    choice: Choice = field(default_factory=Choice)  # which stages are to run
    origins: tuple[Origin, ...] = ()  # of the workload's values that are not its file's own
    turn_pools: tuple[str, ...] = ()  # the pools that the box of a run that moves serves; empty for every stage
    behind: tuple[Instance, ...] = ()  # machines that the run has left, which end before it goes on
    by_pools: pools.Choice | None = None  # on which machines a run of several pools goes on, where one is rented
    checkpoint: int = 0  # the newest checkpoint's number, whole or not; what comes after it is this launch's work
    tree: Path | None = None  # the folder with the source, None for a repository that is cloned
    source_digest: str = ""  # of that folder's content
    to_keep: record.ToKeep | None = None  # what a launch writes into the bucket before it rents
    volumes: tuple[storage.Expected, ...] = ()  # what its nodes get from their clouds
    limits: Limited = field(default_factory=Limited)  # until when it is rented, and what it may cost

    @property
    def first(self) -> NodePlan:
        """The first node that a machine is to be rented for, else the first one."""
        return next((node for node in self.nodes if node.offers), self.nodes[0])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, without any secret."""
        box = self.workload.to_box()
        parts = fingerprint.parts(box, self.source_digest)
        first = self.first
        return {
            "mode": self.mode,
            "run": self.run.name,
            "provider": first.provider,
            "replace_preempted": first.replace_preempted,
            "workload": box,
            "workload_file": str(self.workload.source),
            "tree": str(self.tree or ""),
            "fingerprint": fingerprint.fingerprint(parts),
            "parts": parts,
            "not_beside": fingerprint.not_beside(),
            "image": self.workload.image,
            "disk_gb": first.disk_gb,
            "environment_required": list(self.workload.environment.required),
            "environment_optional": list(self.workload.environment.optional),
            # Their paths here; what is in them is read by the task that delivers them.
            "environment_files": self._secret_files(),
            "offers": [records.offer_to_dict(offer) for offer in first.offers],
            "nodes": [_node_to_dict(node) for node in self.nodes],
            "cost": self.estimate.to_dict(),
            "lease_end": self.limits.limits.lease_end or self.limits.label_end,
            "budget_usd": self.limits.limits.budget_usd,
            "bucket": {
                "url": self.bucket.url,
                "endpoint": self.bucket.endpoint,
                "endpoint_from_boxes": self.bucket.endpoint_from_boxes,
                "region": self.bucket.region,
            },
            "mirrors": dict(self.mirrors),
            "restore": -1 if self.restore is None else self.restore,
            "origins": [asdict(origin) for origin in self.origins],
            "choice": {
                "stage": self.choice.only or "",
                "from_stage": self.choice.from_stage or "",
                "until_stage": self.choice.until or "",
                "iteration": -1 if self.choice.iteration is None else self.choice.iteration,
            },
            "progress": dict(self.run.progress),
            "checkpoint": self.checkpoint,
            "expected_checkpoint": self.expected_checkpoint,
            "node": first.place.on_label,
            "turn_pools": list(self.turn_pools),
            "volumes": [one.to_dict() for one in self.volumes],
            "behind": sorted({one.ref.node for one in self.behind if one.ref}),
            "by_pools": self.by_pools.to_dict() if self.by_pools else {},
            "instance": records.instance_to_dict(self.run.machine) if self.run.machine else {},
        }

    def _secret_files(self) -> dict[str, str]:
        """Return the files here that a box needs, by their variables: the workload's, and what opens the bucket."""
        opens = {name: path for name, path in self.bucket.keys.items() if name in KEY_FILES}
        return opens | {name: str(path) for name, path in self.workload.secret_files(os.environ).items()}

    @property
    def expected_checkpoint(self) -> int:
        """The newest checkpoint that a box should find in the bucket; 0 where there is certainly none, -1 if unknown.

        Of a folder on the box this controller knows nothing; nor of what a machine that it took for lost may publish.
        """
        unsure = self.run.problem or (not self.checkpoint and self.run.leftovers) or len(self.places) > 1
        if not self.bucket.location.by_network or unsure:
            return -1
        return self.checkpoint


def _node_to_dict(node: NodePlan) -> dict[str, Any]:
    return {
        "node": node.place.on_label,
        "pools": list(node.place.pools),
        "place": node.place.place,
        "provider": node.provider,
        "replace_preempted": node.replace_preempted,
        "disk_gb": node.disk_gb,
        "price_per_hour_usd": node.price_per_hour_usd,
        "offers": [records.offer_to_dict(offer) for offer in node.offers],
        "instance": records.instance_to_dict(node.machine) if node.machine else {},
    }


def check(request: PlanRequest, *, env: Mapping[str, str] | None = None) -> Checked:
    """Return what can be known before anything is asked; raises :class:`UsageError` for every mistake seen here."""
    if request.run:
        check_name(request.run)
    if request.restore is not None and request.restore < 1:
        raise UsageError(f"restore={request.restore} is not the number of a checkpoint: those begin at 1.")
    limited.check(request)
    market.check_conditions({**request.conditions, "max_price_per_hour": request.max_price_per_hour_usd})
    if request.choice.only and request.choice.from_stage:
        raise UsageError(
            f"stage={request.choice.only} runs that stage only, and from_stage={request.choice.from_stage} everything "
            "from that one on: leave one of them out."
        )
    if request.mode != "launch" or request.run or not request.workload:
        return Checked()
    resolved = choose.wanted(request.workload, request)
    return _checked(resolved, request, env)


def _checked(resolved: Resolved, request: PlanRequest, env: Mapping[str, str] | None) -> Checked:
    stage_choice.check(request.choice, resolved.workload)
    resolved.workload.check_environment(os.environ if env is None else env)
    return Checked(resolved, source.notes(resolved.workload))


def make(
    request: PlanRequest,
    checked: Checked,
    connections: Connections,
    *,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return the plan, or raise an error of :mod:`gpuyard.errors` whose one sentence says why there is none.

    ``checked`` is what :func:`check` returned for this request. Only asks; nothing is rented, written or started.
    """
    workload = checked.resolved.workload if checked.resolved else None
    chosen_clouds, everywhere, settings = connections.clouds, connections.everywhere, connections.bucket
    request = dataclasses.replace(request, near=geography.spot_of_bucket(settings.region, settings.endpoint))
    if request.shutdown and not settings.url:
        raise UsageError(
            "shutdown=true destroys the machine when the run ends, and without a bucket its results with it: name one "
            f"with {option('bucket', 's3://…')}, or leave out shutdown."
        )
    store = runs.open_bucket(settings)
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = pool.submit(survey.take, everywhere)
        fetched = pool.submit(source.look, workload) if workload else None
        # What the bucket holds decides which runs there are, so a bucket that cannot be read ends the planning.
        kept = pool.submit(runs.stored, store, run=request.run)
        seen = asked.result()
        _complain(seen.errors, chosen_clouds, progress)
        if progress:
            for sentence in survey.silent_boxes(seen.instances):
                progress(sentence)
        known = runs.join(seen.instances, kept.result())
    run = (
        choose.to_resume(known, request)
        if request.mode == "resume"
        else choose.to_launch(known, chosen_clouds, workload, request)
    )
    choose.refuse_silent_box(run)
    made = version.of_run(run, request, runs.shared(store), checked.resolved, progress)
    if made.resolved is not checked.resolved:
        checked = _checked(made.resolved, request, env)
    workload = made.workload
    by_turns = pools.takes_turns(workload)
    whole_run = run
    if request.move:
        refuse_without_bucket(run, settings, store)
        turn: pools.Turn | None = pools.move(run, workload, request)
    else:
        turn = pools.turn_of(run, workload) if by_turns else pools.after_moves(run, workload)
    behind = turn.behind if turn else ()
    if turn:
        # The rest of the plan is about the machine that the run goes on with.
        run = dataclasses.replace(run, instances=tuple(one for one in run.instances if one not in behind))
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
    has_volume = any(volume.cloud for volume in workload.volumes.values())
    if has_volume:
        if turn:
            several = "the pools of this run take turns on several" if by_turns else f"run {run.name} leaves its own"
            raise UsageError(
                f"{workload.source}: a volume with cloud goes with one machine, and {several}: "
                f"leave out {'pools, or cloud' if by_turns else 'cloud'}. Nothing was rented."
            )
        chosen_clouds = storage.able(workload, chosen_clouds)
    planned = [_node(run, place, workload, request, store, progress) for place in places]
    planned = [node for node in planned if node.machine or node.to_run]
    if not planned:
        raise UsageError(
            f"Run {run.name} has finished. Name another one to start afresh, for example "
            f"{option('run', next_name(workload.name, [one.name for one in known]))}."
            + (f" `{remedy('teardown', run=run.name)}` ends what is left of it." if run.leftovers else "")
        )
    for node in planned:
        if not node.machine:
            room.check(workload, node.disk_gb)
    if any(not node.machine for node in planned):  # one that is there has them
        stored.check(workload, settings, store)
        # At the clouds behind SkyPilot a machine may have a role of its own.
        if any(cloud.name != "skypilot" for cloud in chosen_clouds):
            check_keys_for_boxes(settings)
    if len(places) == 1:  # the checkpoint that the plan tells of is the one that will be restored
        run = dataclasses.replace(run, manifest=planned[0].now.manifest)
    turn_pools: tuple[str, ...] = ()
    by_pools = None
    if turn and turn.machine:
        label = turn.machine.ref.node if turn.machine.ref else FIRST_NODE
        planned = [_on_label(node, label) for node in planned]
        turn_pools = pools.pools_of(turn.machine, workload, followed=request.follow) if by_turns else ()
    limits = limited.decide(run, workload, request, runs.shared(store))
    words = [line for node in planned if node.machine for line in _has_machine(run, node)]
    wanted = [node for node in planned if not node.machine]
    memory = FailedHosts(Notebook(lambda: runs.shared(store)), progress or (lambda _: None))
    failed = {host: one.words for host, one in memory.known(chosen_clouds).items()} if wanted else {}
    if wanted and turn and by_turns:
        turn = dataclasses.replace(turn, pool=pools.pool_of(workload, wanted[0].to_run[0][1]))
        by_pools = offers.by_pools(wanted[0], workload, chosen_clouds, request, turn, progress, failed)
        turn_pools = by_pools.turn_pools
        # A machine for all is on the node that every run begins with, but beside one that waits it needs its own.
        if request.move:
            label = pools.free_node(turn.pool if turn_pools else pool_of(FIRST_NODE), whole_run)
        else:
            label = pools.node_of(turn.pool) if turn_pools or turn.waits else FIRST_NODE
        disk_gb = float(request.conditions.get("disk_gb", nodes.strictest(workload, by_pools.first.pools).disk_gb))
        room.check(workload, disk_gb)
        first = by_pools.first
        planned = [
            dataclasses.replace(
                _on_label(wanted[0], label),
                offers=list(first.offers),
                runners_up=list(first.runners_up),
                max_price_per_hour_usd=first.max_price_per_hour_usd,
                disk_gb=disk_gb,
            )
        ]
        words += by_pools.first.words
    elif wanted:
        chosen, reasons = offers.fitting(wanted, workload, chosen_clouds, request, progress, failed, run.name)
        by_name = {node.name: node for node in chosen}
        planned = [by_name.get(node.name, node) for node in planned]
        words += reasons
        if len(planned) > 1:
            words += [f"{node.name}: {market.describe(node.offers[0])}." for node in chosen]
        if request.move:
            planned = [_on_label(node, pools.free_node(pool_of(FIRST_NODE), whole_run)) for node in planned]
    volumes: tuple[storage.Expected, ...] = ()
    if has_volume:
        planned, volumes = _with_volumes(planned, workload, run.name, everywhere)
        words += [one.text() for one in volumes]
    words += [
        f"What is left of the lost machine goes first: {machine.describe(one)}."
        for node in wanted
        for one in node.now.leftovers
    ]
    rooms = [one for node in planned if not node.machine for one in room.rooms(workload, node.disk_gb)]
    words += dict.fromkeys(one.summary() for one in rooms)
    at_risk = [at for node in planned if node.offers and node.offers[0].market == "interruptible" for at in node.to_run]
    words += _losses(workload, at_risk) if at_risk else []
    words += _repeated(run, workload) if request.move else []
    estimate = cost.Estimates(
        {
            node.name: cost.of_pools(
                workload,
                node.place.pools,
                node.price_per_hour_usd,
                gpu_name=node.gpu_name,
                places=node.to_run,
                traffic_price_per_gb_usd=node.traffic_price_per_gb_usd,
            )
            for node in planned
        }
    )
    dollars = by_pools.taken.dollars if by_pools else estimate.run.dollars
    if volumes and dollars:
        dollars += storage.cost(volumes, estimate.run.hours)
    unknown = by_pools.unknown if by_pools else any(one.unknown for one in estimate.nodes.values())
    renting = any(node.offers for node in planned)
    words += [
        *limits.text(),
        *limited.refuse_cost(limits, run.name, dollars, renting=renting, lower_bound=bool(unknown)),
    ]
    if turn:
        # What is left of a machine on another node would be overlooked: it may still bill, and come back to life.
        label = planned[0].place.on_label
        behind += tuple(one for one in run.leftovers if one.ref and one.ref.node != label)
    words += [
        f"Run {other.name} has lost its machine ({machine.describe(other.leftovers[0])}), which may still bill: "
        + choose.ways_out(other)
        for other in known
        if other.workload == workload.name and other.name != run.name and other.leftovers and not other.machine
    ]
    notes = list(checked.notes)
    if wanted:  # one that is there may have what it needs
        notes += [*(fetched.result() if fetched else source.look(workload)), *source.older(run, workload, store)]
    text = [
        *_headline(run, workload, request.mode, planned),
        *made.text,
        *_origins(made.resolved),
        *_chosen(request.choice, [place for node in planned for place in node.to_run]),
        *notes,
        *words,
        *(by_pools.text() if by_pools else []),
        *(pools.alive_text(turn_pools, followed=request.follow) if run.machine else []),
        *([] if turn_pools and by_pools else [*estimate.to_table().splitlines(), estimate.summary()]),
        *(f"The run leaves {machine.describe(one)}, which ends when the other machine is in shape." for one in behind),
    ]
    text.append(_bucket_line(settings))
    if settings.url:
        text += Rules.from_workload(rule.model_dump() for rule in workload.persist.rules).in_words()
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
        connections.key,
        places,
        planned,
        estimate,
        text,
        connections.mirrors,
        request.restore,
        request.choice,
        made.resolved.origins,
        turn_pools,
        behind,
        by_pools,
        newest,
        tree=made.tree,
        source_digest=made.digest,
        to_keep=made.to_keep,
        volumes=volumes,
        limits=limits,
    )


def _with_volumes(
    planned: Sequence[NodePlan], workload: Workload, run: str, everywhere: Sequence[Provider]
) -> tuple[list[NodePlan], tuple[storage.Expected, ...]]:
    """Return the nodes with the offers where the volume of each can be, and these volumes."""
    clouds = {cloud.name: cloud for cloud in everywhere}
    found, volumes = [], []
    for node in planned:
        want = storage.wanted(workload, run, node.place.on_label)
        assert want is not None  # whoever asks knows that there is one
        if node.machine:
            volumes.append(storage.expected(want, clouds[node.machine.provider], node.machine.region))
            found.append(node)
        else:
            near, volume = storage.fitting(want, node.offers, clouds, may_go=node.replace_preempted)
            volumes.append(volume)
            found.append(dataclasses.replace(node, offers=near))
    return found, tuple(volumes)


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
    done = runs.stages_done(now.progress)
    pools = {stage.name: stage.pool for stage in workload.stages}
    to_run = [at for at in stage_choice.expected(request.choice, workload, done) if pools[at[1]] in place.pools]
    last = request.choice.until
    if last and to_run and pools[last] not in place.pools:
        raise UsageError(
            f"until_stage={last} is a stage of pool {pools[last]}, and node {place.name} runs other stages beside it: "
            "a run of several nodes runs all that is left, so leave until_stage out."
        )
    # More iterations, or a stage that is named, leave something to do for a node that has finished.
    finished = now.outcome == "done" and not (done and to_run)
    return NodePlan(
        place,
        now,
        disk_gb,
        to_run=[] if finished else to_run,
        provider=choose.where_to_look(now, request),
        # Only what the bucket holds makes the disk of a lost machine dispensable.
        replace_preempted=request.mode == "resume" and now.manifest is not None,
    )


def _on_label(node: NodePlan, label: str) -> NodePlan:
    """Return a node whose machine has this label."""
    return dataclasses.replace(node, place=dataclasses.replace(node.place, label=label))


def _has_machine(run: Run, node: NodePlan) -> list[str]:
    """Return what is to be known of a node that has a machine."""
    assert node.machine is not None  # asked for such nodes only
    words = [f"{machine.whose(run.name, node.name)} has {machine.describe(node.machine)}; nothing has to be rented."]
    if node.now.problem:
        words.append(f"Something of it in the bucket cannot be read: {node.now.problem}")
    if node.now.outcome == "failed" or (node.now.outcome and not node.to_run):
        outcome, teardown = "finished" if node.now.outcome == "done" else "failed", remedy("teardown", run=run.name)
        words.append(
            f"It has {outcome}, and the box stays its own until `{teardown}` frees it."
            if node.machine.way
            else f"It has {outcome}, and its machine still bills: `{teardown}` ends that."
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


def _origins(resolved: Resolved) -> list[str]:
    """Return a table of the values that are not the workload file's own, and where each comes from."""
    if not resolved.origins:
        return []
    rows = [["value", "is", "from"]]
    for origin in resolved.origins:
        value = origin.value
        shown = ", ".join(map(str, value)) if isinstance(value, list) else as_text(value)
        rows.append([origin.key, shown, origin.layer])
    return records.table(rows)


def _chosen(choice: Choice, places: Sequence[tuple[int, str]]) -> list[str]:
    """Return what runs, where the command chooses among the stages."""
    if choice == Choice():
        return []
    if choice.only:
        return [f"Only {choice.only} of iteration {places[0][0]} is to run."]
    if choice == Choice(until=choice.until):
        return [f"To run are {len(places)} stages, up to {choice.until}."]
    return [f"To run are {len(places)} stages, from {places[0][1]} of iteration {places[0][0]} on."]


def _losses(workload: Workload, places: Sequence[tuple[int, str]]) -> list[str]:
    """Return what the loss of an interruptible machine costs the stages that cannot simply go on."""
    coming = {name for _, name in places}
    by_kind = {
        kind: [stage.name for stage in workload.stages if stage.name in coming and stage.resumable == kind]
        for kind in ("no", "partial")
    }
    words = {"no": "What then begins again", "partial": "What goes on from its own last save"}
    parts = [f"{words[kind]}: {', '.join(names)}." for kind, names in by_kind.items() if names]
    return [" ".join(["This interruptible machine may be taken away.", *parts])] if parts else []


def _repeated(run: Run, workload: Workload) -> list[str]:
    """Return what a run that moves has to do again, or that its stage goes on from its own last save."""
    stage = next((one for one in workload.stages if one.name == run.progress.get("stage")), None)
    if stage is None or stage.resumable == "yes":
        return []
    how = "cannot be resumed, so it begins again" if stage.resumable == "no" else "goes on from its own last save"
    return [f"Stage {stage.name}, where the run is, {how} on the other machine."]


def refuse_without_bucket(run: Run, settings: BucketSettings, store: checkpoints.Store | None) -> None:
    """Refuse to move a run whose work could not travel: it goes through the bucket."""
    if runs.shared(store) is None:
        why = f"{settings.url} is a folder on the machine itself" if settings.url else "there is no bucket"
        raise UsageError(
            f"Run {run.name} cannot be moved: its work travels through the bucket, and {why}. Name one with "
            f"{option('bucket', 's3://…')} when it is launched. `{remedy('sync', run=run.name, to='results')}` brings "
            "its files here. Nothing was rented."
        )


def _bucket_line(settings: BucketSettings) -> str:
    if not settings.url:
        return (
            "There is no bucket: checkpoints stay on the machine and are lost with it, and no other controller can go "
            "on with the run."
        )
    if settings.url.startswith("file:"):
        return (
            f"Checkpoints go to {settings.url} on the machine; unless storage is shared there, they are lost with it."
        )
    return f"Checkpoints go to {settings.url}" + (f" at {settings.endpoint}." if settings.endpoint else ".")
