"""The end of what a machine has to do: everything published and verified in the bucket, and written down there.

``python -m gpuyard.box.monitor finish REASON`` does it in a process of its own, since it needs the memory that a
bucket's client takes, and prints one JSON object: ``saved`` (``state``, ``sequence`` and ``why``, as
:class:`gpuyard.box.stages.ending.Saved`).
"""

from __future__ import annotations

import time
from dataclasses import replace

from gpuyard.box.checkpoints import Store, latest_whole_manifest, read_record, write_record
from gpuyard.box.stages.ending import Saved, publish_and_tell
from gpuyard.box.stages.runner import journal_of, progress_of
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.errors import GpuyardError
from gpuyard.formats.ledger import Entry, entry_key

REASONS = ("shutdown", "idle", "lease", "budget")
"""Why a machine is finished with."""


def finish(spec: BoxSpec, reason: str, *, ends_itself: bool) -> Saved:
    """Publish what is not in the bucket yet, verify that all of it is there, and write down that this machine is over.

    Nothing is written down unless everything is saved. With ``ends_itself`` the ledger says that the machine ends now:
    whoever finds it alive later knows that it should not be.
    """
    begun = bool(journal_of(spec).read())
    saved = publish_and_tell(spec) if begun or not spec.bucket else Saved(True, None, "Nothing has begun here.")
    if not saved.state:
        return saved
    store = spec.store()
    if spec.location.scheme == "file":
        return Saved(False, saved.sequence, f"{saved.why} But that is a folder, which may be one of this machine.")
    if begun:
        whole = latest_whole_manifest(store, spec.place)
        if whole is None or saved.sequence is None or whole.sequence < saved.sequence:
            return Saved(False, saved.sequence, f"Checkpoint {saved.sequence} is not whole in {store.url}.")
    _write_down(spec, store, reason)
    if ends_itself:
        _close_ledger(spec, store)
    return saved


def _write_down(spec: BoxSpec, store: Store, reason: str) -> None:
    """Write into the record of the node how its work ended, and that its rental may end."""
    progress = progress_of(spec)
    said = read_record(store, spec.place).outcome
    outcome = "done" if progress.finished else said or progress.outcome
    if outcome not in ("done", "failed"):
        outcome = "interrupted"
    write_record(store, spec.place, spec.workload, outcome=outcome, over=reason)


def _close_ledger(spec: BoxSpec, store: Store) -> None:
    """Write down that this machine costs nothing from now on. What the bucket does not take is told by the clouds."""
    key = entry_key(spec.run, str(spec.instance.get("provider")), str(spec.instance.get("id")))
    try:
        entry = Entry.from_bytes(store.get(key), where=f"{store.url}/{key}")
        now = time.time()
        if not entry.ended:
            store.put(key, replace(entry.changed("ended", 0.0, now), last_seen=now).to_bytes())
    except GpuyardError:
        return
