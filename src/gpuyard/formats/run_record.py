"""The record of a run (``<run>/run.json``): what a bucket knows of it beside its checkpoints.

The controller writes it before it rents, the box when the first stage begins and when the run ends. Each keeps what the
other one has written, and what a newer version has added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard.formats.manifest import MALFORMED

VERSION = 1
"""The newest major version that this gpuyard reads; it writes this one."""


@dataclass(frozen=True)
class RunRecord:
    """What a bucket knows of a run. Times are UTC, as ``2026-03-01T12:00:00Z``.

    ``created`` is when its first stage began: a run that was only planned or rented has none. ``outcome`` is ``None``
    until the run ended, then one of ``done``, ``failed``, ``interrupted``, or ``cancelled`` when the user tore it down.
    ``launched``, ``gpuyard`` and ``pools`` are the controller's: when it was first launched, by which version of
    gpuyard, and how many nodes each pool has. ``more`` are fields that this version does not know.

    ``problem`` says why a record cannot be used that is there; such a one is never written over.
    """

    run: str
    workload: str = ""
    created: str = ""
    finished: str | None = None
    outcome: str | None = None
    launched: str = ""
    gpuyard: str = ""
    pools: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def to_bytes(self) -> bytes:
        """Render the record as the JSON document of the bucket."""
        known = asdict(self)
        more = known.pop("more")
        del known["problem"]
        return json.dumps({**more, "version": VERSION, **known}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, run: str, data: bytes) -> RunRecord:
        """Read a record. A damaged one counts as never written: the checkpoints beside it are what matters.

        One of a newer version has a ``problem``, which names that version.
        """
        try:
            document = dict(json.loads(data))
            version = document.pop("version", VERSION)
            if isinstance(version, int) and version > VERSION:
                return cls(
                    run,
                    problem=f"{run}/run.json in the bucket is of version {version}, and this gpuyard reads version "
                    f"{VERSION}: use the newer gpuyard that wrote it.",
                )
            known = {name: document.pop(name, None) for name in _KNOWN}
            return cls(
                run=run,
                workload=str(known["workload"] or ""),
                created=str(known["created"] or ""),
                finished=known["finished"],
                outcome=known["outcome"],
                launched=str(known["launched"] or ""),
                gpuyard=str(known["gpuyard"] or ""),
                pools={str(name): int(nodes) for name, nodes in dict(known["pools"] or {}).items()},
                more=document,
            )
        except MALFORMED:
            return cls(run=run)


_KNOWN = ("run", "workload", "created", "finished", "outcome", "launched", "gpuyard", "pools")
