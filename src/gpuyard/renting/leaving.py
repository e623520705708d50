"""Having all that is on a machine in the bucket, and seen to be there, before the machine stops or is left."""

from __future__ import annotations

from collections.abc import Mapping

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import Manifest, Store
from gpuyard.errors import CheckpointError, GpuyardError, NothingBegunError
from gpuyard.providers.base import Instance, Progress, State
from gpuyard.renting.ending import Boxes
from gpuyard.renting.ledger import stopped_by_us
from gpuyard.renting.places import newest_of


def end_stages(
    boxes: Boxes, store: Store | None, instance: Instance, *, wait_s: float | None, tell: Progress
) -> tuple[bool, str]:
    """Let a machine's stages end in good order, and return whether the bucket holds all that is on it, and why.

    ``wait_s`` is how long they have (seconds), by default as long as the running stage's own grace time and publishing
    need. A machine that a command of ours has stopped is not asked: what was said then is looked for.
    """
    name = f"{instance.provider} {instance.id}"
    if instance.state is State.STOPPED:
        return _saved_before_the_stop(store, instance)
    try:
        answer = boxes.stop(instance, wait_s=wait_s, limit_s=None, tell=tell)
    except NothingBegunError:
        return True, f"No stage has begun on {name}."
    except GpuyardError as error:
        return False, f"{name}: {error}"
    said = answer.get("saved")
    saved: Mapping[str, object] = said if isinstance(said, Mapping) else {}
    why = f"{name}: {saved.get('why') or 'It does not say whether all is saved.'}"
    if answer.get("ended") is False or saved.get("state") is not True:
        return False, why
    sequence = saved.get("sequence")
    doubt = _doubt(store, instance, sequence) if isinstance(sequence, int) else ""
    return not doubt, f"{why} {doubt}".rstrip()


def _doubt(store: Store | None, instance: Instance, sequence: int) -> str:
    """Return why the bucket cannot be relied on for what a machine calls checkpoint ``sequence``; empty if it can.

    Every object of that checkpoint, or of a newer one, has to be there with its content.
    """
    if store is None:
        return "That checkpoint is on the machine itself, where nobody else sees it."
    try:
        whole = _newest_whole(store, instance)
    except CheckpointError as error:
        return f"The bucket cannot be read from here: {error}"
    if whole is None or whole.sequence < sequence:
        found = f"the newest whole one is {whole.sequence}" if whole else "there is no whole one"
        return f"Checkpoint {sequence} is not whole in {store.url}: {found}."
    return ""


def _saved_before_the_stop(store: Store | None, instance: Instance) -> tuple[bool, str]:
    name = f"{instance.provider} {instance.id} is stopped"
    try:
        whole = _newest_whole(store, instance) if store else None
        if store and whole and whole.progress.get("outcome") and stopped_by_us(store, instance):
            return True, f"{name}, and before that all was saved, as checkpoint {whole.sequence}."
    except CheckpointError as error:
        return False, f"{name}, and the bucket cannot be read from here: {error}"
    return False, f"{name}, and nothing says that the bucket holds all that is on it."


def _newest_whole(store: Store, instance: Instance) -> Manifest | None:
    assert instance.ref is not None  # it belongs to a run
    return newest_of(store, instance.ref.run, instance.ref.node, checkpoints.latest_whole_manifest)
