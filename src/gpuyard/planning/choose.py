"""Which run is meant, from which checkpoint it goes on, and where its machines are looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from gpuyard.box import checkpoints
from gpuyard.errors import UsageError
from gpuyard.formats.label import next_name
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Progress, Provider
from gpuyard.remedies import option, remedy
from gpuyard.renting import machine, runs
from gpuyard.renting.places import newest_of
from gpuyard.renting.runs import Node, Run
from gpuyard.workload import Resolved, Workload, resolve


def to_launch(known: Sequence[Run], chosen: Sequence[Provider], workload: Workload | None, request: PlanRequest) -> Run:
    """Return the run to launch: the named one, the one of this workload that has a machine, or a new one."""
    if request.run:
        named = next((run for run in known if run.name == request.run), None)
        return _not_lost(named) if named else Run(request.run, workload.name if workload else "")
    if workload is None:
        raise UsageError(
            f"What is to run? Name a workload ({option('workload')}) or a run that exists ({option('run')})."
        )
    clouds = {provider.name for provider in chosen}
    alive = [run for run in known if run.workload == workload.name and run.machine and run.machine.provider in clouds]
    if len(alive) > 1:
        raise UsageError(
            f"Workload {workload.name} has {len(alive)} runs with a machine: {_listed(alive)}. "
            f"Name one with {option('run')}, or a new one."
        )
    return _not_lost(alive[0]) if alive else Run(next_name(workload.name, [run.name for run in known]), workload.name)


def ways_out(lost: Run) -> str:
    """Return what can be done about a run whose machine is lost."""
    teardown = f"`{remedy('teardown', run=lost.name)}`"
    if lost.outcome == "done":
        return f"it has finished, and {teardown} ends what is left of it."
    return f"`{remedy('resume', run=lost.name)}` goes on with it, {teardown} gives it up."


def _not_lost(run: Run) -> Run:
    for node in run.nodes:
        if node.leftovers and not node.machine and node.outcome != "done":
            _not_the_only_copy(run.name, node)
            raise UsageError(
                f"{machine.whose(run.name, node.name)} has lost its machine ({machine.describe(node.leftovers[0])}). "
                f"`{remedy('resume', run=run.name)}` goes on from its newest checkpoint on another "
                "one."
            )
    return run


def _not_the_only_copy(run: str, node: Node) -> Node:
    """Return the node, unless going on with it would destroy the disk that may hold all there is of it."""
    if node.leftovers and not node.machine and node.manifest is None and not node.problem:
        raise UsageError(
            f"{machine.whose(run, node.name)} has no whole checkpoint in the bucket, and "
            f"{machine.describe(node.leftovers[0])} may hold all that there is of it. Resuming would destroy that; "
            "start it again at its cloud, or tear the run down."
        )
    return node


def with_checkpoint(run: Run, store: checkpoints.Store | None, sequence: int) -> tuple[Run, int]:
    """Return the run with the checkpoint of this number in place of the newest one, and the newest one's number."""
    if store is None:
        raise UsageError(f"restore={sequence} needs the bucket that holds the checkpoint, and there is none.")
    try:
        chosen = checkpoints.manifest_of(store, run.name, sequence)
    except checkpoints.BucketError:
        raise
    except checkpoints.CheckpointError as error:
        raise UsageError(f"restore={sequence} cannot be: {error}") from error
    newest = max(checkpoints.sequences(store, run.name), default=sequence)
    return dataclasses.replace(run, manifest=chosen, problem=""), newest


def with_whole_checkpoint(
    run: str, node: Node, store: checkpoints.Store | None, sequence: int | None, progress: Progress | None
) -> Node:
    """Return the node with the checkpoint that a new machine will restore, where a lost one's disk is given up for it.

    A manifest is written last, so its files were there once; whether they still are is asked before that disk goes.
    With ``sequence`` that one checkpoint has to be whole.
    """
    if store is None or node.manifest is None or node.machine or not node.leftovers:
        return node

    def find(bucket: checkpoints.Store, place: str) -> checkpoints.Manifest | None:
        say = progress or (lambda text: None)
        return checkpoints.latest_whole_manifest(bucket, place, sequence=sequence, say=say)

    whole = newest_of(store, run, node.name, find)
    if sequence is not None and whole is None:
        raise UsageError(
            f"restore={sequence} cannot be: files of that checkpoint are missing from {store.url}, or damaged, and "
            f"{machine.describe(node.leftovers[0])}, which may hold more, would be destroyed for it."
        )
    if progress and whole and whole.sequence != node.manifest.sequence:
        progress(
            f"Checkpoint {node.manifest.sequence} of {run} lacks files, or has damaged ones, so {whole.sequence} "
            "will be restored."
        )
    return _not_the_only_copy(run, dataclasses.replace(node, manifest=whole))


def to_resume(known: Sequence[Run], request: PlanRequest) -> Run:
    """Return the run to resume: the named one, or the only one that can be."""
    if request.run:
        named = next((run for run in known if run.name == request.run), None)
        if named is None:
            raise UsageError(f"There is no run {request.run}: neither a cloud nor the bucket knows it.")
        return _with_nothing_to_lose(named)
    candidates = [run for run in known if run.resumable]
    if len(candidates) > 1:
        raise UsageError(
            f"{len(candidates)} runs can be resumed: {_listed(candidates)}. "
            f"Name one with {option('run')}; nothing was done."
        )
    if not candidates:
        alive = [run for run in known if run.machine]
        more = f" These have a machine and need none: {_listed(alive)}." if alive else ""
        bare = [run for run in known if any(n.leftovers and not n.machine and n.manifest is None for n in run.nodes)]
        more += f" These lost theirs before a checkpoint, and may still bill: {_listed(bare)}." if bare else ""
        ended = [run for run in known if run.state == "cancelled" and any(node.manifest for node in run.nodes)]
        more += (
            f" These were torn down, and go on when they are named ({option('run')}): {_listed(ended)}."
            if ended
            else ""
        )
        raise UsageError(f"There is no run that can be resumed.{more}")
    return _with_nothing_to_lose(candidates[0])


def refuse_silent_box(run: Run) -> None:
    """Refuse to go on with a run on an own box that does not answer: it is not lost, only out of reach."""
    for node in run.nodes:
        if node.machine and node.machine.silent and node.machine.way:
            raise UsageError(
                f"{machine.whose(run.name, node.name)} is on own box {node.machine.way.name}, which "
                f"{node.machine.status_text.rstrip('.')}. Switch it on and try again, or name another run. A box that "
                f"is gone for good is given up by removing it from its inventory; `{remedy('resume', run=run.name)}` "
                "then goes on."
            )


def _with_nothing_to_lose(run: Run) -> Run:
    for node in run.nodes:
        _not_the_only_copy(run.name, node)
    return run


def _listed(some: Sequence[Run]) -> str:
    return ", ".join(f"{run.name} ({run.state}, {runs.stage_text(run.progress)})" for run in some)


def wanted(name_or_path: str, request: PlanRequest) -> Resolved:
    """Return a workload with the layers that the command puts over it."""
    return resolve(name_or_path, profiles=request.profiles, overrides=request.overrides, options=request.options)


def workload_of(run: Run, request: PlanRequest, progress: Progress | None) -> Resolved:
    """Return the workload of a run that exists; of a new one, the wanted workload.

    A site's configuration names a workload for every launch, so a run that belongs to another one keeps its own.
    """
    if not run.workload:
        if not request.workload:
            raise UsageError(f"There is no run {run.name} yet, so its workload has to be named ({option('workload')}).")
        return wanted(request.workload, request)
    if request.workload and "/" in request.workload:
        named = wanted(request.workload, request)
        if named.workload.name != run.workload:
            raise UsageError(
                f"Run {run.name} belongs to workload {run.workload}, not to {named.workload.name} "
                f"({named.workload.source})."
            )
        return named
    if request.workload and request.workload != run.workload and progress:
        progress(f"Run {run.name} belongs to workload {run.workload}, so that is the one that is used.")
    return wanted(run.workload, request)


def refuse_other_cloud(run: Run, request: PlanRequest) -> None:
    if len(run.nodes) == 1 and run.machine and request.provider not in (None, run.machine.provider):
        raise UsageError(
            f"Run {run.name} has a machine at another cloud ({machine.describe(run.machine)}): leave out provider="
            f"{request.provider}, name another run, or tear this one down."
        )


def refuse_strangers(run: Run, workload: Workload, nodes: Collection[str]) -> None:
    """Refuse to go on with a run that has machines for nodes that its workload does not want (any more)."""
    for node in run.nodes:
        if node.machine and node.name not in nodes:
            raise UsageError(
                f"Run {run.name} has a machine for its node {node.name} ({machine.describe(node.machine)}), and in "
                f"workload {workload.name} there is no such node; its nodes are: {', '.join(nodes)}. Tear the run "
                "down, or name another run."
            )


def where_to_look(node: Node, request: PlanRequest) -> str:
    """Return the cloud at which the node's machines are looked for, ``""`` for all of them.

    What is left of a lost machine at another cloud than the wanted one must end as well: it may still bill, and at an
    interruptible price come back to life beside the new machine.
    """
    if node.machine:
        return node.machine.provider
    wanted = request.provider or ""
    return "" if any(one.provider != wanted for one in node.leftovers) else wanted
