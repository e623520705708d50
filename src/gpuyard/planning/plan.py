"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gpuyard import cost, market, records, tree
from gpuyard.box import checkpoints
from gpuyard.config import BucketSettings, SshKey
from gpuyard.errors import ProviderError, UsageError
from gpuyard.fingerprint import fingerprint
from gpuyard.formats.label import check_name, next_name
from gpuyard.planning import choose, offers, source
from gpuyard.planning.request import Connections, Mode, PlanRequest
from gpuyard.providers.base import Offer, Progress, Provider
from gpuyard.renting import machine, runs, survey
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload, load_workload


@dataclass(frozen=True, slots=True)
class Checked:
    """A request without a mistake that could be seen on this machine alone.

    ``workload`` is ``None`` where the run decides which one it is; ``notes`` are what the user should know of its tree.
    """

    workload: Workload | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it will be. ``offers`` is empty when the run has a machine already."""

    mode: Mode
    run: Run
    workload: Workload
    bucket: BucketSettings
    key: SshKey
    offers: list[Offer]
    estimate: cost.Estimate
    text: list[str] = field(default_factory=list)
    mirrors: Mapping[str, str] = field(default_factory=dict)
    disk_gb: float = 20.0
    provider: str = ""  # the one cloud at which the run's machines are looked for; "": all of them
    restore: int | None = None  # the checkpoint that was asked for by its number
    checkpoint: int = 0  # the newest checkpoint's number, whole or not; what comes after it is this launch's work

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, without any secret."""
        source = self.workload.local_tree
        box = self.workload.to_box()
        return {
            "mode": self.mode,
            "run": self.run.name,
            "provider": self.provider,
            # Only what the bucket holds makes the disk of a lost machine dispensable.
            "replace_preempted": self.mode == "resume" and self.run.manifest is not None,
            "workload": box,
            "workload_file": str(self.workload.source),
            "tree": str(source or ""),
            "fingerprint": fingerprint(box, tree.describe(source).digest if source else ""),
            "image": self.workload.image,
            "disk_gb": self.disk_gb,
            "environment_required": list(self.workload.environment.required),
            "offers": [records.offer_to_dict(offer) for offer in self.offers],
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


def check(request: PlanRequest, *, env: Mapping[str, str] | None = None) -> Checked:
    """Return what can be known before anything is asked; raises :class:`UsageError` for every mistake seen here."""
    if request.run:
        check_name(request.run)
    if request.restore is not None and request.restore < 1:
        raise UsageError(f"restore={request.restore} is not the number of a checkpoint: those begin at 1.")
    market.check_conditions({**request.conditions, "max_price_per_hour": request.max_price_per_hour_usd})
    if request.mode != "launch" or request.run or not request.workload:
        return Checked()
    return _checked(load_workload(request.workload), env)


def _checked(workload: Workload, env: Mapping[str, str] | None) -> Checked:
    workload.check_environment(os.environ if env is None else env)
    return Checked(workload, source.notes(workload))


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
    workload = checked.workload
    chosen, everywhere, settings = connections.clouds, connections.everywhere, connections.bucket
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
        _complain(seen.errors, chosen, progress)
        known = runs.join(seen.instances, kept.result())
    run = (
        choose.to_resume(known, request)
        if request.mode == "resume"
        else choose.to_launch(known, chosen, workload, request)
    )
    newest = run.manifest.sequence if run.manifest else 0
    if request.restore is not None:
        run, newest = choose.with_checkpoint(run, store, request.restore)
    elif run.problem and not run.machine:
        raise checkpoints.CheckpointError(run.problem)
    if request.mode == "resume":
        run = choose.with_whole_checkpoint(run, store, request.restore, progress)
    if workload is None:
        checked = _checked(choose.workload_of(run, request, progress), env)
        workload = checked.workload
        assert workload is not None
    choose.refuse_other_cloud(run, request)
    if run.outcome == "done" and not run.machine:
        raise UsageError(
            f"Run {run.name} has finished. Name another one to start afresh, for example -e run="
            f"{next_name(workload.name, [one.name for one in known])}."
            + (f" `ansible-playbook teardown.yml -e run={run.name}` ends what is left of it." if run.leftovers else "")
        )
    if run.machine:
        estimate = cost.estimate(workload, run.machine.price_per_hour_usd)
        fitting: list[Offer] = []
        words = [f"Run {run.name} has {machine.describe(run.machine)}; nothing has to be rented."]
        if run.problem:
            words.append(f"Its newest checkpoint cannot be read: {run.problem}")
        if run.outcome:
            words.append(
                f"It has {'finished' if run.outcome == 'done' else 'failed'}, and its machine still bills: "
                f"`ansible-playbook teardown.yml -e run={run.name}` ends that."
            )
    else:
        fitting, words = offers.fitting(run, workload, chosen, request, progress)
        words += [f"What is left of the lost machine goes first: {machine.describe(one)}." for one in run.leftovers]
        estimate = cost.estimate(workload, fitting[0].price_per_hour_usd)
    words += [
        f"Run {other.name} has lost its machine ({machine.describe(other.leftovers[0])}), which may still bill: "
        + choose.ways_out(other)
        for other in known
        if other.workload == workload.name and other.name != run.name and other.leftovers and not other.machine
    ]
    notes = list(checked.notes)
    disk_gb = float(request.conditions.get("disk_gb", workload.needs.disk_gb))
    if not run.machine:  # one that is there may have what it needs
        notes += [*(fetched.result() if fetched else source.look(workload)), *source.older(run, workload, store)]
    text = [
        *_headline(run, workload, request.mode),
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
        connections.key,
        fitting,
        estimate,
        text,
        connections.mirrors,
        disk_gb,
        choose.where_to_look(run, request),
        request.restore,
        newest,
    )


def _complain(errors: Mapping[str, ProviderError], chosen: Sequence[Provider], progress: Progress | None) -> None:
    """Raise the error of a cloud that was asked for; of another one, tell what could be overlooked."""
    for name, error in errors.items():
        if name in [provider.name for provider in chosen]:
            raise error
        if progress:
            progress(f"{name} was not asked for and does not answer, so a machine there would be overlooked: {error}")


def _headline(run: Run, workload: Workload, mode: Mode) -> list[str]:
    what = f"Run {run.name} of workload {workload.name}"
    if run.manifest:
        at = f"{runs.stage_text(run.progress)}, checkpoint {run.manifest.sequence} of {run.manifest.time}"
        return [f"{what} goes on from {at}."]
    if mode == "resume":
        return [f"{what} has no checkpoint yet, so it begins at the beginning."]
    return [f"{what}: {workload.description}" if workload.description else f"{what}."]


def _bucket_line(settings: BucketSettings) -> str:
    if not settings.url:
        return "There is no bucket: checkpoints stay on the machine and are lost with it."
    if settings.url.startswith("file:"):
        return (
            f"Checkpoints go to {settings.url} on the machine; unless storage is shared there, they are lost with it."
        )
    return f"Checkpoints go to {settings.url}" + (f" at {settings.endpoint}." if settings.endpoint else ".")
