"""What a run is made of (``<run>/workload.json``): its resolved workload, and where its source is.

Both are in one object, which a store replaces in one step, so that no reader sees the one without the other. The source
of a local tree lies beside it, ``<run>/source/<digest>.tar.gz``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import DIGEST, MALFORMED
from gpuyard.formats.versions import WRITER, mark, why_too_new

VERSION = 1
"""The newest version that this gpuyard reads; it writes this one."""


class DamagedRecordError(CheckpointError):
    """A workload record is there, and is none that any version of gpuyard can have written."""


@dataclass(frozen=True)
class SourceRef:
    """Where the source of a run is.

    ``archive``: in the bucket; ``digest`` is that of the tree (:func:`gpuyard.tree.describe`), which has ``files``
    files of ``size`` bytes. ``git``: to be fetched from the workload's ``repository.url``. ``none``: a local tree that
    is not in the bucket, for the reason that ``why`` gives.
    """

    kind: Literal["archive", "git", "none"]
    digest: str = ""
    files: int = 0
    size: int = 0
    why: str = ""


@dataclass(frozen=True)
class WorkloadRecord:
    """The resolved workload of a run as plain values, its source, and the gpuyard that wrote them, once read."""

    workload: Mapping[str, Any]
    source: SourceRef
    gpuyard: str = ""

    def to_bytes(self) -> bytes:
        """Render the record as the JSON document of the bucket."""
        document = {**mark(VERSION), "workload": dict(self.workload), "source": asdict(self.source)}
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> WorkloadRecord:
        """Read a record; ``where`` names it in errors. Fields that this version does not know are left out.

        Raises :class:`DamagedRecordError`, and :class:`CheckpointError` for one of a newer version.
        """
        try:
            document = json.loads(data)
            if problem := why_too_new(document, VERSION, where):
                raise CheckpointError(problem)
            source = document["source"]
            kind, digest = source["kind"], str(source.get("digest") or "")
            if kind not in ("archive", "git", "none"):
                raise ValueError(f"source {kind!r}")
            if kind == "archive" and not DIGEST.fullmatch(digest):
                raise ValueError("the digest of its source is not one")
            return cls(
                workload=dict(document["workload"]),
                source=SourceRef(
                    kind, digest, int(source.get("files", 0)), int(source.get("size", 0)), str(source.get("why") or "")
                ),
                gpuyard=str(document.get(WRITER) or ""),
            )
        except MALFORMED as error:
            raise DamagedRecordError(
                f"{where} does not say what the run is made of: it is damaged ({type(error).__name__}: "
                f"{str(error)[:100]})."
            ) from error


def workload_key(run: str) -> str:
    """Return the key of a run's workload record."""
    return f"{run}/workload.json"


def source_key(run: str, digest: str) -> str:
    """Return the key of a source archive."""
    return f"{run}/source/{digest}.tar.gz"
