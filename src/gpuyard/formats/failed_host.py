"""A host that has failed us (``hosts/<provider>-<host>.json``), so that its offers are left out for a while.

It lies in the bucket and in the controller's own folder. A reader keeps nothing that it does not know, since such a
document is written once and never changed, and it refuses a newer major version by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import mark, why_too_new

FOLDER = "hosts"
VERSION = 1
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class FailedHost:
    """One failure. ``host`` is the provider's own name of the physical machine, ``time`` is UTC, ``why`` a few words.

    ``sandbox`` names the sandbox that emulates the host; it is empty for a real one.
    """

    provider: str
    host: str
    time: str
    why: str
    gpu_name: str = ""
    region: str = ""
    sandbox: str = ""

    @property
    def key(self) -> str:
        """Where it lies in its store."""
        name = "-".join(filter(None, [self.provider, self.host, self.sandbox and f"sandbox-{self.sandbox}"]))
        return f"{FOLDER}/{_UNFIT.sub('-', name)}.json"

    @property
    def words(self) -> str:
        """When and why, to follow "failed us"."""
        return f"on {self.time[:10]} ({self.why})"

    def to_bytes(self) -> bytes:
        """Render it as a JSON document."""
        return json.dumps({**mark(VERSION), **asdict(self)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> FailedHost:
        """Read a document; ``where`` names it in the :class:`CheckpointError` for what is none, or is too new."""
        try:
            document = json.loads(data)
            if problem := why_too_new(document, VERSION, where):
                raise CheckpointError(problem)
            known = {one.name: str(document[one.name]) for one in fields(cls) if one.name in document}
            return cls(**known)
        except MALFORMED as error:
            raise CheckpointError(f"{where} is no record of a host that failed: {error!r}.") from error
