"""Where in the bucket the checkpoints of a run's nodes lie.

A run that one box serves at a time has them at ``<run>/checkpoints``. Of the nodes that are served side by side, the
first one that is alone in its pool has that place, and each of the others has ``<run>/nodes/<node>/checkpoints``. A
checkpoint says which node made it, so a place of the run's that another node has filled is not taken for a node's own.
"""

from __future__ import annotations

from collections.abc import Callable

from gpuyard.box.checkpoints import Manifest, Store, latest_manifest, read_record
from gpuyard.formats.label import FIRST_NODE


def own_place(run: str, node: str) -> str:
    """Return what takes the place of the run's name in the keys of a node with a place of its own."""
    return f"{run}/nodes/{node}"


def made_by(manifest: Manifest) -> str:
    """Return the node that made a checkpoint."""
    return str(manifest.progress.get("node") or FIRST_NODE)


def newest_of(
    store: Store, run: str, node: str, find: Callable[[Store, str], Manifest | None] = latest_manifest
) -> Manifest | None:
    """Return the newest checkpoint that ``node`` has made, as ``find`` finds it in a place; ``None`` without one.

    Raises what ``find`` raises: :class:`CheckpointError`.
    """
    if node in nodes_apart(store, run) and (own := find(store, own_place(run, node))) is not None:
        return own
    shared = find(store, run)
    if shared is None or made_by(shared) == node or read_record(store, run).takes_turns:
        return shared
    return None


def nodes_apart(store: Store, run: str) -> list[str]:
    """Return the nodes that have a place of their own in the bucket."""
    return store.folders(f"{run}/nodes/")
