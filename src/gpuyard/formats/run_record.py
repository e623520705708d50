"""The record of a run (``<run>/run.json``): what a bucket knows of it beside its checkpoints.

The controller writes it before it rents, the box when the first stage begins and when the run ends. Each keeps what the
other one has written, and what a newer version has added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import mark, why_too_new

VERSION = 1
"""The newest version that this gpuyard reads; it writes this one."""
_ALWAYS = ("run", "workload", "created", "finished", "outcome")
_WHERE_KNOWN = ("launched", "pools", "over")


@dataclass(frozen=True)
class RunRecord:
    """What a bucket knows of a run. Times are UTC, as ``2026-03-01T12:00:00Z``.

    ``created`` is when its first stage began: a run that was only planned or rented has none. ``outcome`` is ``None``
    until the run ended, then one of ``done``, ``failed``, ``interrupted``, or ``cancelled`` when the user tore it down.
    ``launched`` and ``pools`` are the controller's: when it was first launched, and how many nodes each pool has.
    ``over`` is why the machine that wrote the outcome has nothing more to do and everything saved, so that its rental
    may end at once: ``shutdown``, ``idle``, ``lease`` or ``budget``; empty where it does not say so.
    ``further`` holds the fields that this version does not know; they stay when the record is written again.
    ``problem`` is why the record cannot be read, when a newer gpuyard wrote it: then it must not be written again.
    """

    run: str
    workload: str = ""
    created: str = ""
    finished: str | None = None
    outcome: str | None = None
    launched: str = ""
    pools: Mapping[str, int] = field(default_factory=dict)
    over: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def takes_turns(self) -> bool:
        """Whether its pools have one node each, so that one box after another serves all of them as one node.

        Each of these boxes may have another node on its label: which pool it was rented for, or that the run has moved.
        """
        return set(self.pools.values()) == {1}

    def to_bytes(self) -> bytes:
        """Render the record as the JSON document of the bucket."""
        known = {name: getattr(self, name) for name in _ALWAYS}
        known |= {name: value for name in _WHERE_KNOWN if (value := getattr(self, name))}
        return json.dumps({**self.further, **mark(VERSION), **known}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, run: str, data: bytes) -> RunRecord:
        """Read a record. A damaged one counts as never written: the checkpoints beside it are what matters."""
        try:
            document = json.loads(data)
            if problem := why_too_new(document, VERSION, f"The record of run {run}"):
                return cls(run=run, problem=problem)
            own = (*_ALWAYS, *_WHERE_KNOWN, *mark(VERSION))
            return cls(
                run=run,
                workload=str(document.get("workload") or ""),
                created=str(document.get("created") or ""),
                finished=document.get("finished"),
                outcome=document.get("outcome"),
                launched=str(document.get("launched") or ""),
                pools={str(name): int(nodes) for name, nodes in dict(document.get("pools") or {}).items()},
                over=str(document.get("over") or ""),
                further={name: value for name, value in document.items() if name not in own},
            )
        except MALFORMED:
            return cls(run=run)
