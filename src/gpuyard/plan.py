"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from gpuyard import config, cost, market, records, repository, tree
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints.brought import compare
from gpuyard.config import BucketSettings, SshKey
from gpuyard.errors import ProviderError, UsageError
from gpuyard.fingerprint import fingerprint
from gpuyard.formats.label import check_name, next_name
from gpuyard.providers.base import Offer, Progress, Provider
from gpuyard.renting import machine, runs, survey
from gpuyard.renting.runs import Run
from gpuyard.workload import Workload, load_workload

Mode = Literal["launch", "resume"]
_NAMED = 3  # files that are named before the rest is counted


class _Site(TypedDict):
    sandbox: bool | None
    sandbox_state: str | None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for. ``None`` is: not said; only ``bucket`` tells it from ``""``, which is: no bucket."""

    mode: Mode = "launch"
    workload: str | None = None
    run: str | None = None
    provider: str | None = None
    sandbox: bool | None = None
    sandbox_state: str | None = None
    market: str | None = None
    max_price_per_hour_usd: float | None = None
    ssh_key: str | None = None
    bucket: str | None = None
    bucket_endpoint: str | None = None
    offer: str | None = None  # the id of the one offer to take
    shutdown: bool = False  # whether the machine is to be destroyed when the run has ended
    restore: int | None = None  # the number of the checkpoint to go on from, in place of the newest one
    # What the machine has to offer, in place of what the workload says: fields of Query by name.
    conditions: Mapping[str, Any] = field(default_factory=dict)


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


def make(wishes: Wishes, *, env: Mapping[str, str] | None = None, progress: Progress | None = None) -> Plan:
    """Return the plan, or raise an error of :mod:`gpuyard.errors` whose one sentence says why there is none.

    Only asks; nothing is rented, written or started, but for the sandbox when a launch wants it and it does not run.
    """
    variables = os.environ if env is None else env
    site: _Site = {"sandbox": wishes.sandbox, "sandbox_state": wishes.sandbox_state}
    if wishes.run:
        check_name(wishes.run)
    # Mistakes that need no answer from anywhere come first.
    if wishes.restore is not None and wishes.restore < 1:
        raise UsageError(f"restore={wishes.restore} is not the number of a checkpoint: those begin at 1.")
    market.check_conditions({**wishes.conditions, "max_price_per_hour": wishes.max_price_per_hour_usd})
    workload = (
        load_workload(wishes.workload) if wishes.workload and wishes.mode == "launch" and not wishes.run else None
    )
    if workload:
        workload.check_environment(variables)
        notes = _source(workload)
    key = config.ssh_key(wishes.ssh_key)
    chosen = config.connect(wishes.provider, progress=progress, start_sandbox=wishes.mode == "launch", **site)
    # The run may have a machine at a cloud other than the wanted one, and then must not get a second one.
    everywhere = chosen if wishes.provider is None else config.connect(require=False, **site)
    settings = config.s3_settings(wishes.bucket, bucket_endpoint=wishes.bucket_endpoint, **site)
    if wishes.shutdown and not settings.url:
        raise UsageError(
            "shutdown=true destroys the machine when the run ends, and without a bucket its results with it: name one "
            "with -e bucket=s3://…, or leave out shutdown."
        )
    store = runs.open_bucket(settings)
    with ThreadPoolExecutor(max_workers=3) as pool:
        asked = pool.submit(survey.take, everywhere)
        fetched = pool.submit(_look, workload) if workload else None
        # What the bucket holds decides which runs there are, so a bucket that cannot be read ends the planning.
        kept = pool.submit(runs.stored, store, run=wishes.run)
        seen = asked.result()
        _complain(seen.errors, chosen, progress)
        known = runs.join(seen.instances, kept.result())
    run = _resume(known, wishes) if wishes.mode == "resume" else _launch(known, chosen, workload, wishes)
    newest = run.manifest.sequence if run.manifest else 0
    if wishes.restore is not None:
        run, newest = _with_checkpoint(run, store, wishes.restore)
    elif run.problem and not run.machine:
        raise checkpoints.CheckpointError(run.problem)
    if wishes.mode == "resume":
        run = _with_whole_checkpoint(run, store, wishes.restore, progress)
    if workload is None:
        workload = _workload_of(run, wishes, progress)
        workload.check_environment(variables)
        notes = _source(workload)
    _same_cloud(run, wishes)
    if run.outcome == "done" and not run.machine:
        raise UsageError(
            f"Run {run.name} has finished. Name another one to start afresh, for example -e run="
            f"{next_name(workload.name, [one.name for one in known])}."
            + (f" `ansible-playbook teardown.yml -e run={run.name}` ends what is left of it." if run.leftovers else "")
        )
    if run.machine:
        estimate = cost.estimate(workload, run.machine.price_per_hour_usd)
        offers: list[Offer] = []
        words = [f"Run {run.name} has {machine.describe(run.machine)}; nothing has to be rented."]
        if run.problem:
            words.append(f"Its newest checkpoint cannot be read: {run.problem}")
        if run.outcome:
            words.append(
                f"It has {'finished' if run.outcome == 'done' else 'failed'}, and its machine still bills: "
                f"`ansible-playbook teardown.yml -e run={run.name}` ends that."
            )
    else:
        offers, words = _offers(run, workload, chosen, wishes, progress)
        words += [f"What is left of the lost machine goes first: {machine.describe(one)}." for one in run.leftovers]
        estimate = cost.estimate(workload, offers[0].price_per_hour_usd)
    words += [
        f"Run {other.name} has lost its machine ({machine.describe(other.leftovers[0])}), which may still bill: "
        + _ways_out(other)
        for other in known
        if other.workload == workload.name and other.name != run.name and other.leftovers and not other.machine
    ]
    disk_gb = float(wishes.conditions.get("disk_gb", workload.needs.disk_gb))
    if not run.machine:  # one that is there may have what it needs
        notes += [*(fetched.result() if fetched else _look(workload)), *_older(run, workload, store)]
    text = [
        *_headline(run, workload, wishes.mode),
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
        wishes.mode,
        run,
        workload,
        settings,
        key,
        offers,
        estimate,
        text,
        config.mirrors(**site),
        disk_gb,
        _where(run, wishes),
        wishes.restore,
        newest,
    )


def _source(workload: Workload) -> list[str]:
    """Return what the user should know of the workload's local repository; refuse what would fail on the machine."""
    root = workload.local_tree
    if root is None:
        return []
    names, folders = tree.names(root), workload.persist.directories
    requirements = workload.python.requirements if workload.python else None
    try:
        repository.check_tree(root, names, requirements=requirements, persist=workload.persist.root, folders=folders)
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error}") from None
    inside = repository.kept(names, folders)
    if not inside:
        return []
    return [
        f"{_some(inside)} of the repository {'lie' if len(inside) > 1 else 'lies'} in a persisted folder: a newer "
        "version is brought to the machine only where the run has not changed the file."
    ]


def _older(run: Run, workload: Workload, store: checkpoints.Store | None) -> list[str]:
    """Return what a new machine will have of files that the checkpoint and the repository have in two versions."""
    root = workload.local_tree
    if root is None or run.manifest is None or store is None:
        return []
    restored = {entry.path: entry for entry in run.manifest.files}
    inside = repository.kept(tree.names(root), workload.persist.directories)
    other = [name for name in inside if name in restored and not _same(root / name, restored[name])]
    if not other:
        return []
    before: dict[str, str] = {}
    with contextlib.suppress(checkpoints.CheckpointError):  # the restore will say so if it fails as well
        before = checkpoints.brought_in(store, run.manifest)
    here = {name: _sha256(root / name) for name in other if not (root / name).is_symlink()}
    newer, _changed = compare([restored[name] for name in other], before, here)
    old = [name for name in other if name not in newer]
    lines = []
    if newer:
        lines.append(
            f"{_some(newer)} {'are' if len(newer) > 1 else 'is'} newer in the repository than in the checkpoint, and "
            "the run has not changed the file: what the repository has will be on the machine."
        )
    if old:
        lines.append(
            f"{_some(old)} in the checkpoint {'are' if len(old) > 1 else 'is'} not as in the repository (the run "
            "changed the file, or the checkpoint does not tell): what the checkpoint has will be restored."
        )
    return lines


def _same(path: Path, entry: checkpoints.FileEntry) -> bool:
    if path.is_symlink() or entry.link is not None:
        return path.is_symlink() and os.fspath(path.readlink()) == entry.link
    return _sha256(path) == entry.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _look(workload: Workload) -> list[str]:
    """Return a warning when nobody here can say whether the machine will find the workload's repository."""
    source = workload.repository
    if not (source.url and source.commit):
        return []
    try:
        warning = repository.look(source.url, source.commit)
    except UsageError as error:
        raise UsageError(f"{workload.source}: {error} Nothing was rented.") from None
    return [warning] if warning else []


def _complain(errors: Mapping[str, ProviderError], chosen: Sequence[Provider], progress: Progress | None) -> None:
    """Raise the error of a cloud that was asked for; of another one, tell what could be overlooked."""
    for name, error in errors.items():
        if name in [provider.name for provider in chosen]:
            raise error
        if progress:
            progress(f"{name} was not asked for and does not answer, so a machine there would be overlooked: {error}")


def _launch(known: Sequence[Run], chosen: Sequence[Provider], workload: Workload | None, wishes: Wishes) -> Run:
    """Return the run to launch: the named one, the one of this workload that has a machine, or a new one."""
    if wishes.run:
        named = next((run for run in known if run.name == wishes.run), None)
        return _not_lost(named) if named else Run(wishes.run, workload.name if workload else "")
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


def _ways_out(lost: Run) -> str:
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


def _with_checkpoint(run: Run, store: checkpoints.Store | None, sequence: int) -> tuple[Run, int]:
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


def _with_whole_checkpoint(
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


def _resume(known: Sequence[Run], wishes: Wishes) -> Run:
    """Return the run to resume: the named one, or the only one that can be."""
    if wishes.run:
        named = next((run for run in known if run.name == wishes.run), None)
        if named is None:
            raise UsageError(f"There is no run {wishes.run}: neither a cloud nor the bucket knows it.")
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


def _workload_of(run: Run, wishes: Wishes, progress: Progress | None) -> Workload:
    """Return the workload of a run that exists; of a new one, the wanted workload.

    A site's configuration names a workload for every launch, so a run that belongs to another one keeps its own.
    """
    if not run.workload:
        if not wishes.workload:
            raise UsageError(f"There is no run {run.name} yet, so its workload has to be named (-e workload=…).")
        return load_workload(wishes.workload)
    if wishes.workload and "/" in wishes.workload:
        named = load_workload(wishes.workload)
        if named.name != run.workload:
            raise UsageError(
                f"Run {run.name} belongs to workload {run.workload}, not to {named.name} ({named.source})."
            )
        return named
    if wishes.workload and wishes.workload != run.workload and progress:
        progress(f"Run {run.name} belongs to workload {run.workload}, so that is the one that is used.")
    return load_workload(run.workload)


def _same_cloud(run: Run, wishes: Wishes) -> None:
    if run.machine and wishes.provider not in (None, run.machine.provider):
        raise UsageError(
            f"Run {run.name} has a machine at another cloud ({machine.describe(run.machine)}): leave out provider="
            f"{wishes.provider}, name another run, or tear this one down."
        )


def _where(run: Run, wishes: Wishes) -> str:
    """Return the cloud at which the run's machines are looked for, ``""`` for all of them.

    What is left of a lost machine at another cloud than the wanted one must end as well: it may still bill, and at an
    interruptible price come back to life beside the new machine.
    """
    if run.machine:
        return run.machine.provider
    wanted = wishes.provider or ""
    return "" if any(one.provider != wanted for one in run.leftovers) else wanted


def _offers(
    run: Run, workload: Workload, clouds: Sequence[Provider], wishes: Wishes, progress: Progress | None
) -> tuple[list[Offer], list[str]]:
    """Return what fits, best first, and the choice in words. A physical host that was just lost is not taken again."""
    done = runs.stages_done(run.progress)
    by_stage, why = workload.market_of(done)
    asked = workload.query(max_price_per_hour_usd=wishes.max_price_per_hour_usd, market=wishes.market or by_stage)
    query = dataclasses.replace(asked, **wishes.conditions)
    collected = market.collect(clouds, query, progress=progress)
    lost = {instance.machine_id for instance in run.leftovers if instance.machine_id}
    verdicts = market.judge(collected.offers, query, avoid_machines=lost)
    reasons = market.explain(verdicts)
    offers = market.rank(verdicts)
    if wishes.offer:
        offers, reasons = _the_one(wishes.offer, verdicts), [f"Taking offer {wishes.offer}, which was named."]
    return offers, [*records.offer_table(offers), *reasons, *([why] if why and not wishes.market else [])]


def _the_one(wanted: str, verdicts: Sequence[market.Verdict]) -> list[Offer]:
    """Return the named offer (an id may be offered on both markets), or say why it cannot be taken."""
    named = [verdict for verdict in verdicts if verdict.offer.id == wanted]
    if not named:
        raise UsageError(f"offer={wanted!r} is not among the {len(verdicts)} offers there are now.")
    fitting = market.rank(named)
    if not fitting:
        reasons = "; ".join(str(reason) for reason in named[0].reasons)
        raise UsageError(f"offer={wanted!r} does not fit: {reasons}.")
    return fitting


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
