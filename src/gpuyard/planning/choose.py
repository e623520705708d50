"""Which run is meant, from which checkpoint it goes on, and where its machines are looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpuyard.box import checkpoints
from gpuyard.errors import UsageError
from gpuyard.formats.label import next_name
from gpuyard.planning.request import PlanRequest
from gpuyard.providers.base import Progress, Provider
from gpuyard.renting import machine, runs
from gpuyard.renting.runs import Run
from gpuyard.workload import Resolved, Workload, resolve


def to_launch(known: Sequence[Run], chosen: Sequence[Provider], workload: Workload | None, request: PlanRequest) -> Run:
    """Return the run to launch: the named one, the one of this workload that has a machine, or a new one."""
    if request.run:
        named = next((run for run in known if run.name == request.run), None)
        return _not_lost(named) if named else Run(request.run, workload.name if workload else "")
    if workload is None:
        raise UsageError("What is to run? Name a workload (-e workload=…) or a run that exists (-e run=…).")
    clouds = {provider.name for provider in chosen}
    alive = [run for run in known if run.workload == workload.name and run.machine and run.machine.provider in clouds]
    if len(alive) > 1:
        raise UsageError(
            f"Workload {workload.name} has {len(alive)} runs with a machine: {_listed(alive)}. "
            "Name one with -e run=…, or a new one."
        )
    return alive[0] if alive else Run(next_name(workload.name, [run.name for run in known]), workload.name)


def ways_out(lost: Run) -> str:
    """Return what can be done about a run whose machine is lost."""
    teardown = f"`ansible-playbook teardown.yml -e run={lost.name}`"
    if lost.outcome == "done":
        return f"it has finished, and {teardown} ends what is left of it."
    return f"`ansible-playbook resume_search.yml -e run={lost.name}` goes on with it, {teardown} gives it up."


def _not_lost(run: Run) -> Run:
    if run.leftovers and not run.machine and run.outcome != "done":
        _not_the_only_copy(run)
        raise UsageError(
            f"Run {run.name} has lost its machine ({machine.describe(run.leftovers[0])}). `ansible-playbook "
            f"resume_search.yml -e run={run.name}` goes on from its newest checkpoint on another one."
        )
    return run


def _not_the_only_copy(run: Run) -> Run:
    """Return the run, unless going on with it would destroy the disk that may hold all there is of it."""
    if run.leftovers and not run.machine and run.manifest is None and not run.problem:
        raise UsageError(
            f"Run {run.name} has no whole checkpoint in the bucket, and {machine.describe(run.leftovers[0])} may "
            "hold all that there is of it. Resuming would destroy that; start it again at its cloud, or "
            "tear the run down."
        )
    return run


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
    run: Run, store: checkpoints.Store | None, sequence: int | None, progress: Progress | None
) -> Run:
    """Return the run with the checkpoint that a new machine will restore, where a lost one's disk is given up for it.

    A manifest is written last, so its files were there once; whether they still are is asked before that disk goes.
    With ``sequence`` that one checkpoint has to be whole.
    """
    if store is None or run.manifest is None or run.machine or not run.leftovers:
        return run
    whole = checkpoints.latest_whole_manifest(store, run.name, sequence=sequence, say=progress or (lambda text: None))
    if sequence is not None and whole is None:
        raise UsageError(
            f"restore={sequence} cannot be: files of that checkpoint are missing from {store.url}, or damaged, and "
            f"{machine.describe(run.leftovers[0])}, which may hold more, would be destroyed for it."
        )
    if progress and whole and whole.sequence != run.manifest.sequence:
        progress(
            f"Checkpoint {run.manifest.sequence} of {run.name} lacks files, or has damaged ones, so {whole.sequence} "
            "will be restored."
        )
    return _not_the_only_copy(dataclasses.replace(run, manifest=whole))


def to_resume(known: Sequence[Run], request: PlanRequest) -> Run:
    """Return the run to resume: the named one, or the only one that can be."""
    if request.run:
        named = next((run for run in known if run.name == request.run), None)
        if named is None:
            raise UsageError(f"There is no run {request.run}: neither a cloud nor the bucket knows it.")
        return _not_the_only_copy(named)
    candidates = [run for run in known if run.resumable]
    if len(candidates) > 1:
        raise UsageError(
            f"{len(candidates)} runs can be resumed: {_listed(candidates)}. Name one with -e run=…; nothing was done."
        )
    if not candidates:
        alive = [run for run in known if run.machine]
        more = f" These have a machine and need none: {_listed(alive)}." if alive else ""
        bare = [run for run in known if run.leftovers and not run.machine and run.manifest is None]
        more += f" These lost theirs before a checkpoint, and may still bill: {_listed(bare)}." if bare else ""
        ended = [run for run in known if run.state == "cancelled" and run.manifest]
        more += f" These were torn down, and go on when they are named (-e run=…): {_listed(ended)}." if ended else ""
        raise UsageError(f"There is no run that can be resumed.{more}")
    return _not_the_only_copy(candidates[0])


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
            raise UsageError(f"There is no run {run.name} yet, so its workload has to be named (-e workload=…).")
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
    if run.machine and request.provider not in (None, run.machine.provider):
        raise UsageError(
            f"Run {run.name} has a machine at another cloud ({machine.describe(run.machine)}): leave out provider="
            f"{request.provider}, name another run, or tear this one down."
        )


def where_to_look(run: Run, request: PlanRequest) -> str:
    """Return the cloud at which the run's machines are looked for, ``""`` for all of them.

    What is left of a lost machine at another cloud than the wanted one must end as well: it may still bill, and at an
    interruptible price come back to life beside the new machine.
    """
    if run.machine:
        return run.machine.provider
    wanted = request.provider or ""
    return "" if any(one.provider != wanted for one in run.leftovers) else wanted
