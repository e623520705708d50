"""The record of each run, ``<run>/run.json``."""

from __future__ import annotations

from dataclasses import replace

from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import CheckpointError, MissingObjectError
from gpuyard.formats.label import RUN_NAME
from gpuyard.formats.manifest import timestamp
from gpuyard.formats.run_record import RunRecord


def list_runs(store: Store) -> list[RunRecord]:
    """Return a record of every run that the store knows, by name. Raises :class:`BucketError`."""
    # What is not a run, such as the bundles, has a name that no run can have.
    return in_parallel(lambda run: read_record(store, run), filter(RUN_NAME.fullmatch, store.folders()))


def read_record(store: Store, run: str) -> RunRecord:
    """Return the record of one run, an empty one when there is none. Raises :class:`BucketError`."""
    try:
        return RunRecord.from_bytes(run, store.get(f"{run}/run.json"))
    except MissingObjectError:
        return RunRecord(run=run)


def write_record(store: Store, run: str, workload: str, *, outcome: str | None = None, over: str = "") -> RunRecord:
    """Say in the bucket that ``run`` has begun (or goes on), or with ``outcome`` that it ended; return the record.

    ``over`` is why the rental of the machine may end, see :class:`RunRecord`. The time of creation is that of the first
    record, so that a resumed run keeps it. Raises :class:`CheckpointError` when a newer gpuyard wrote the record that
    is there.
    """
    now, before = timestamp(), read_record(store, run)
    if before.problem:
        raise CheckpointError(before.problem)
    record = replace(
        before,
        workload=workload,
        created=before.created or now,
        finished=now if outcome else None,
        outcome=outcome,
        over=over,
    )
    store.put(f"{run}/run.json", record.to_bytes())
    return record
