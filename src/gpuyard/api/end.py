"""The end of a run: its stages in good order, then its machines, then the bucket is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard import records
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import PlannedCall, Progress
from gpuyard.renting import ending, runs
from gpuyard.renting.ending import Order
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes

__all__ = ["Change", "Order", "cancel", "end"]


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, or with ``check`` would be.

    ``before`` and ``after`` are the run's machines and outcome; ``planned`` the writing calls that were not made,
    ``None`` without ``check``.
    """

    changed: bool
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    planned: list[PlannedCall] | None = None
    text: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        values: dict[str, Any] = {
            "changed": self.changed,
            "actions": self.actions,
            "diff": {"before": dict(self.before), "after": dict(self.after)},
            "text": "\n".join(self.text),
        }
        if self.planned is not None:
            values["planned_calls"] = [records.call_to_dict(call) for call in self.planned]
        return values


def end(site: Site, order: Order, *, check: bool = False, progress: Progress) -> Change:
    """End the run of ``order``, and lose nothing of it unless ``order`` says so; ``wait_s`` there is in seconds.

    Raises the errors of :func:`gpuyard.renting.ending.end`: a machine that may hold what is not in the bucket is kept
    and named.
    """
    # Mistakes come first: not even a question may be on its way when one is found.
    order.check()
    key, clouds, store = site.key(), site.clouds(), site.store()
    notebook = Notebook(site.shared_store)
    done = ending.end(
        clouds,
        store,
        order,
        ending.OverSsh(key, clouds),
        ledger=Ledger(notebook, progress),
        notes=PendingNotes(notebook, progress),
        check=check,
        progress=progress,
    )
    text = list(done.text)
    if not done.before:
        text.insert(0, f"Run {order.run} has no machine at {' or '.join(cloud.title for cloud in clouds)}.")
    if check:
        text += records.planned_text(done.actions, done.planned)
    outcome = ({"outcome": None}, {"outcome": "cancelled"}) if done.cancelled else ({}, {})
    return Change(
        done.changed,
        {"machines": done.before, **outcome[0]},
        {"machines": done.after, **outcome[1]},
        done.actions,
        done.planned if check else None,
        text,
    )


def cancel(site: Site, run: str, *, check: bool = False) -> Change:
    """Write into the record of ``run`` that it was not lost but given up. No machine is touched.

    That the bucket does not answer is only told in the text: the end of a rental does not need it.
    """
    try:
        store = site.store()
        changed = store is not None and runs.cancel(store, run, check=check)
    except GpuyardError as error:
        text = f"The bucket could not be told that run {run} was ended on purpose, so it still counts as resumable"
        return Change(False, text=[f"{text}: {error}"])
    return Change(True, {"outcome": None}, {"outcome": "cancelled"}) if changed else Change(False)
