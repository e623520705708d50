"""The heartbeat of a node (``<run>/heartbeat/<node>.json``): that its machine lives, and how its stages stand.

The machine writes it every minute, each time in place of the one before. A reader passes over fields that it does not
know, and refuses a newer schema by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.label import FIRST_NODE
from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import why_too_new

SCHEMA = 1
FOLDER = "heartbeat"
EVERY_S = 60.0
"""How often a machine writes it (seconds)."""


@dataclass(frozen=True)
class Heartbeat:
    """How a node stood at ``time``, in UTC, as ``2026-03-01T12:00:00Z``, by its machine's own clock.

    ``instance`` is ``<provider>/<id>``, empty where the machine was not told what it is. ``state`` is one of
    ``running``, ``finished``, ``failed``, ``interrupted``, ``waiting``, ``idle`` and ``not-started``; ``iteration`` and
    ``stage`` say what runs or comes next, ``None`` when nothing is left. ``done`` of ``total`` stages need not run any
    more. ``checkpoint`` is the number of the newest one that this machine has published or begun from. Of what the
    machine does not tell there is nothing: ``gpu_use_percent`` has one number for each GPU that does.
    """

    time: str
    run: str
    node: str = FIRST_NODE
    instance: str = ""
    state: str = "running"
    iteration: int | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    checkpoint: int | None = None
    gpu_use_percent: Sequence[float] = ()
    disk_used_percent: float | None = None
    disk_free_gb: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # fields that this version does not know

    def to_bytes(self) -> bytes:
        """Render it as the JSON document of the bucket."""
        known = asdict(self)
        more = known.pop("more")
        return json.dumps({**more, "schema": SCHEMA, **known}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Heartbeat:
        """Read one; ``where`` names it in the :class:`CheckpointError` for what is none, or is too new."""
        try:
            document = dict(json.loads(data))
            problem = why_too_new({"version": document.pop("schema")}, SCHEMA, where)
            if not problem:
                names = {one.name for one in fields(cls)} - {"more"}
                own = {name: document.pop(name) for name in names if name in document}
                own["gpu_use_percent"] = tuple(float(use) for use in own.get("gpu_use_percent") or ())
                if not all(isinstance(own[name], str) for name in ("time", "run")):
                    raise ValueError("its time or its run is no text")
                return cls(**own, more=document)
        except MALFORMED as error:
            raise CheckpointError(f"{where} is no heartbeat: {error!r}.") from error
        raise CheckpointError(problem)


def heartbeat_key(run: str, node: str = FIRST_NODE) -> str:
    """Return the key of a node's heartbeat."""
    return f"{run}/{FOLDER}/{node}.json"
