"""What machines did in earlier runs, as the bucket keeps it: how soon their stages began, and how fast these were."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpuyard.box.checkpoints import Store, latest_manifest, list_runs
from gpuyard.errors import CheckpointError
from gpuyard.formats import journal
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.ledger import Entry
from gpuyard.formats.manifest import JOURNAL
from gpuyard.providers.base import Progress
from gpuyard.renting import ledger

MOST_RUNS = 20
"""How many runs are looked at, the newest ones: each costs a few questions to the bucket."""


@dataclass(frozen=True, slots=True)
class StageFigures:
    """A stage of a workload on one kind of machine: medians of ``times`` runs of it that nothing interrupted."""

    workload: str
    stage: str
    times: int
    hours: float
    usd: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a provider's machines with one kind of GPU did.

    ``setup_minutes`` is the median time from renting a machine to its first stage, of the ``machines`` that got there.
    """

    provider: str
    gpu_name: str
    machines: int
    setup_minutes: float
    stages: tuple[StageFigures, ...]


def read(store: Store, workload: str | None, progress: Progress) -> list[Measured]:
    """Return what the newest runs measured, of one workload or of all, by provider and GPU.

    Runs of several nodes are left out: which node did what is not in one journal. Raises
    :class:`gpuyard.errors.BucketError` when the bucket does not answer.
    """
    known = [one for one in list_runs(store) if one.created and workload in (None, one.workload)]
    setups: dict[tuple[str, str], list[float]] = {}
    stages: dict[tuple[str, str], dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for record in sorted(known, key=lambda one: one.created, reverse=True)[:MOST_RUNS]:
        entries = ledger.entries(store, record.run, progress)
        if not entries or any(entry.node != FIRST_NODE for entry in entries):
            continue
        for entry, events in _by_machine(entries, _events(store, record.run, progress)):
            kind = entry.provider, entry.gpu_name
            began = next((_when(event) for event in events if event["event"] == "stage-start"), None)
            if began is not None:
                setups.setdefault(kind, []).append((began - entry.began_at) / 60)
            for event in events:
                if (seconds := _seconds(event)) is not None:
                    named = entry.workload, str(event.get("stage"))
                    hours = seconds / 3600
                    figures = stages.setdefault(kind, {}).setdefault(named, [])
                    figures.append((hours, hours * entry.price_per_hour_usd))
    return [
        Measured(
            *kind,
            len(minutes),
            statistics.median(minutes),
            tuple(
                StageFigures(
                    *named,
                    len(figures),
                    statistics.median(hours for hours, _ in figures),
                    statistics.median(usd for _, usd in figures),
                )
                for named, figures in sorted(stages.get(kind, {}).items())
            ),
        )
        for kind, minutes in sorted(setups.items())
    ]


def _events(store: Store, run: str, progress: Progress) -> list[journal.Event]:
    """Return the journal in the newest checkpoint of ``run``, nothing where there is none that can be read."""
    try:
        manifest = latest_manifest(store, run)
        key = next((entry.key for entry in manifest.files if entry.path == JOURNAL), None) if manifest else None
        return journal.parse(store.get(key)) if key else []
    except CheckpointError as error:
        progress(f"What run {run} measured is left out: {error}")
        return []


def _by_machine(entries: list[Entry], events: list[journal.Event]) -> list[tuple[Entry, list[Mapping[str, Any]]]]:
    """Return the events that each machine wrote: those between its rental and the next one's."""
    ends = [*(entry.began_at for entry in entries[1:]), float("inf")]
    return [
        (entry, [event for event in events if entry.began_at <= _when(event) < end])
        for entry, end in zip(entries, ends, strict=True)
    ]


def _seconds(event: journal.Event) -> float | None:
    """Return how long a stage took from its beginning to its end, ``None`` for what is no such event."""
    # Of one that was cut off only the last attempt's time is known.
    if event["event"] != "stage-end" or event.get("outcome") != "done" or event.get("attempt") != 1:
        return None
    seconds = event.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _when(event: journal.Event) -> float:
    """Return the time of an event in seconds since 1970, ``-inf`` for one that says none."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return float("-inf")
