"""The limits of runs: until when they are rented, what they may cost, and what their end spares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gpuyard.box.checkpoints import Store
from gpuyard.errors import MissingObjectError
from gpuyard.formats.limits import Limits, limits_key

if TYPE_CHECKING:
    from gpuyard.renting.runs import Run


def moment(seconds: float) -> str:
    """Return a time in seconds since 1970 as people read it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


WARNED_AT = 0.8
"""The part of a budget at which it is told that it will be over."""


def over(run: Run, now: float) -> str:
    """Return which limit of ``run`` is over, to follow its name; empty when none is."""
    budget = run.limits.budget_usd
    if run.lease_end is not None and run.lease_end <= now:
        return f"its lease ended at {moment(run.lease_end)}"
    if budget and (spent := run.spent_usd(now)) >= budget:
        return f"it has cost ${spent:.2f}, and its budget is ${budget:.2f}"
    return ""


def nearly_over(run: Run, now: float) -> str:
    """Return a sentence for a run that has cost most of its budget; empty for another one."""
    budget = run.limits.budget_usd
    if not budget or (spent := run.spent_usd(now)) < WARNED_AT * budget:
        return ""
    return f"Run {run.name} has cost ${spent:.2f}, {spent / budget:.0%} of its budget of ${budget:.2f}."


def told(run: Run, now: float) -> list[str]:
    """Return in sentences until when ``run`` is rented, and how much of its budget it has cost."""
    lines = [f"Run {run.name} is rented until {moment(run.lease_end)}."] if run.lease_end is not None else []
    if nearly := nearly_over(run, now):
        return [*lines, nearly]
    if budget := run.limits.budget_usd:
        lines.append(f"Run {run.name} has cost ${run.spent_usd(now):.2f} of its budget of ${budget:.2f}.")
    return lines


def find(store: Store, run: str) -> Limits | None:
    """Return the limits of ``run``, ``None`` where none are written.

    Raises :class:`gpuyard.errors.CheckpointError` for limits that cannot be read, and
    :class:`gpuyard.errors.BucketError`.
    """
    key = limits_key(run)
    try:
        return Limits.from_bytes(store.get(key), where=f"{store.url}/{key}")
    except MissingObjectError:
        return None


def read(store: Store, run: str) -> Limits:
    """Return the limits of ``run``, none where none are written. Raises what :func:`find` raises."""
    return find(store, run) or Limits()


def write(store: Store, run: str, limits: Limits) -> None:
    """Write the limits of ``run`` down, in place of those that were there. Raises :class:`BucketError`."""
    store.put(limits_key(run), limits.to_bytes())
