"""How a run is supervised (``<run>/supervisor.json``): who watches it, what it has lost, and what people were told.

The supervisor that holds the run's lease writes it, and a teardown, which marks it as ended. A supervisor that takes
the run over reads it, so it tells nobody anything twice, and knows what the one before was doing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import mark, why_too_new

VERSION = 1
STATES = ("watching", "renting", "ended")
_OWN = ("state", "shutdown", "stage", "controller", "seen", "losses", "told", "outcome")


@dataclass(frozen=True)
class Supervision:
    """What is known of the supervision of a run.

    ``state`` is ``watching``; ``renting`` from a loss until the stages are at work again; or ``ended``, when the run
    needs no supervisor any more, for the reason that ``outcome`` gives. ``stage``: the one stage that is to run, empty
    for all that are left. ``shutdown``: the rental is to end with the run. ``controller`` and ``seen`` (UTC,
    ``2026-03-01T12:00:00Z``) say who watched it last, and when. ``losses`` are the machines that the run has lost, each
    as ``<provider>/<id>``. ``told`` names what people were told. ``further`` holds the fields that this version does
    not know; they stay when the document is written again.
    """

    state: str = "watching"
    shutdown: bool = False
    stage: str = ""
    controller: str = ""
    seen: str = ""
    losses: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    outcome: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Render it as the JSON document of the bucket."""
        known = {name: getattr(self, name) for name in _OWN}
        return json.dumps({**self.further, **mark(VERSION), **known}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Supervision:
        """Read it; ``where`` names it in the :class:`CheckpointError` for what is damaged, or is too new."""
        try:
            document = json.loads(data)
            problem = why_too_new(document, VERSION, where)
            state = str(document.get("state") or "watching")
            if state not in STATES and not problem:
                raise ValueError(f"state {state!r}")
            read = cls(
                state=state,
                shutdown=document.get("shutdown") is True,
                stage=str(document.get("stage") or ""),
                controller=str(document.get("controller") or ""),
                seen=str(document.get("seen") or ""),
                losses=tuple(str(name) for name in document.get("losses") or ()),
                told=tuple(str(name) for name in document.get("told") or ()),
                outcome=str(document.get("outcome") or ""),
                further={name: value for name, value in document.items() if name not in (*_OWN, *mark(VERSION))},
            )
        except MALFORMED as error:
            raise CheckpointError(f"{where} does not say how a run is supervised: {error!r}.") from error
        if problem:
            raise CheckpointError(problem)
        return read


def supervision_key(run: str) -> str:
    """Return the key of the supervision of a run."""
    return f"{run}/supervisor.json"
