"""Starting again by itself, after the machine was restarted or has come back from being outbid.

A machine that goes down, with SIGTERM or without a word, leaves the mark of :mod:`.at_work` behind, and what runs when
the machine starts (``/opt/gpuyard/start-again``, see the module ``stage_session``) goes on.

It does so only where the run has not been given to another machine meanwhile: the newest checkpoint in the bucket has
to be this machine's own, or the one it began with, and the ledger must not name a machine that was rented later.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable

from gpuyard.box import converging
from gpuyard.box.checkpoints import Store, latest_manifest
from gpuyard.box.stages import report, session
from gpuyard.box.stages.at_work import alone, marked
from gpuyard.box.stages.runner import bucket_refusal, restore_checkpoint
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.errors import CheckpointError, MissingObjectError
from gpuyard.formats import ledger
from gpuyard.formats.manifest import JOURNAL

PATIENCE_S = 3600.0
"""How long a bucket may be out of reach after a start: networks come up late."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 2.0, 60.0


def start_again(spec: BoxSpec, say: Callable[[str], None], *, patience_s: float = PATIENCE_S) -> bool:
    """Start the session of a run that was at work when the machine went down; return whether that was done.

    ``say`` gets a sentence with the reason where nothing is started. Raises :class:`gpuyard.errors.GpuyardError` when
    it cannot be.
    """
    if marked(spec) is None:
        say(f"{spec.run} was not at work when this machine went down, so it does not start again.")
        return False
    if spec.bucket:
        deadline, pause = time.monotonic() + patience_s, _FIRST_PAUSE_S
        while (refusal := bucket_refusal(spec)) is not None:
            if time.monotonic() + pause > deadline:
                say(f"{spec.run} does not start again, since its newest checkpoint cannot be looked at: {refusal}")
                return False
            time.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_S)
        if why := elsewhere(spec, spec.store()):
            say(f"{spec.run} does not start again on this machine: {why}")
            return False
    # A command that is bringing this machine into shape must not find a stage at work in the middle of that. Its own
    # start comes first then, and this one finds the session.
    with (spec.folder.parent / converging.LOCK).open("a") as shape:
        fcntl.flock(shape, fcntl.LOCK_EX)
        return _start(spec, say)


def _start(spec: BoxSpec, say: Callable[[str], None]) -> bool:
    with alone(spec.folder):
        choice = marked(spec)
        state = report.status(spec)["state"]
        if choice is None or state not in ("interrupted", "not-started"):
            say(f"{spec.run} does not start again: it is {state}.")
            return False
        if spec.bucket:
            # A disk that did not outlive the stop begins with the newest checkpoint; what is there stays.
            restore_checkpoint(spec)
        session.start(spec, choice)
    say(f"{spec.run} goes on where it was.")
    return True


def elsewhere(spec: BoxSpec, store: Store) -> str | None:
    """Return a sentence that says why another machine has taken the run over, ``None`` where none has."""
    newest = latest_manifest(store, spec.place)
    journal = spec.root / JOURNAL
    if newest is not None and journal.is_file():
        theirs = next((entry for entry in newest.files if entry.path == JOURNAL), None)
        # A journal only grows: what this machine has published, or began with, is how its own one begins.
        if theirs is not None:
            begin = journal.read_bytes()[: theirs.size]
            if hashlib.sha256(begin).hexdigest() != theirs.sha256:
                return f"checkpoint {newest.sequence} was published by another machine, which has taken it over."
    mine = (str(spec.instance.get("provider") or ""), str(spec.instance.get("id") or ""))
    entries = _entries(spec, store)
    own = next((entry for entry in entries if entry.place == mine), None)
    if own is None:
        return None
    for entry in entries:
        if entry.node == own.node and not entry.ended and entry.place != mine and entry.began_at > own.began_at:
            return f"{entry.provider} {entry.id} was rented for it later."
    return None


def _entries(spec: BoxSpec, store: Store) -> list[ledger.Entry]:
    found = []
    for item in store.objects(f"{spec.run}/{ledger.FOLDER}/"):
        # One that cannot be read says nothing about who works.
        with contextlib.suppress(CheckpointError, MissingObjectError):
            found.append(ledger.Entry.from_bytes(store.get(item.key), where=item.key))
    return found
