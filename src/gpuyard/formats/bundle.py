"""What a bundle holds (``_bundles/<key>/<platform>/manifest.json``): the state of a machine, kept in a bucket.

The controller writes it last, when every piece is in the bucket; so a bundle without one is none.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard.errors import CheckpointError
from gpuyard.formats.manifest import MALFORMED
from gpuyard.formats.versions import mark, why_too_new

VERSION = 1
"""The newest version that this gpuyard reads; it writes this one."""
FOLDER = "_bundles"
"""Where they lie in a bucket: no run can have this name."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")
_PLATFORM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True)
class Piece:
    """One archive of a bundle: the SHA-256 of its content, which is its name, and its size in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Piece:
        """Read one; raises ``ValueError`` for what is none."""
        if not _DIGEST.fullmatch(str(values["sha256"])) or int(values["bytes"]) < 0:
            raise ValueError("piece")
        return cls(str(values["sha256"]), int(values["bytes"]))


@dataclass(frozen=True)
class Bundle:
    """The state of a machine of one ``platform`` (architecture, distribution and C library).

    ``parts`` are the fingerprints by which it is found, ``held`` names those that it brings. ``folders`` and ``files``
    are absolute paths on the machine. ``zstd`` is the program that unpacks the pieces there. ``built_s`` says by path
    how many seconds it took to make what lies there; ``unpacked_bytes`` is what it takes on the machine.
    """

    platform: str
    parts: Mapping[str, str]
    held: tuple[str, ...]
    pieces: tuple[Piece, ...]
    zstd: Piece
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    repository: str = ""
    search_path: tuple[str, ...] = ()
    workload: str = ""
    created: str = ""
    unpacked_bytes: int = 0
    built_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What a machine that wants these parts looks for."""
        return key_of(self.parts)

    @property
    def folder(self) -> str:
        """Where it lies in the bucket, ending with ``/``."""
        return f"{FOLDER}/{self.key}/{self.platform}/"

    @property
    def size(self) -> int:
        """What it takes in the bucket, in bytes."""
        return self.zstd.bytes + sum(piece.bytes for piece in self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """Return it as the plain values that a machine gets."""
        return {**mark(VERSION), "key": self.key, **asdict(self)}

    def to_bytes(self) -> bytes:
        """Render it as the JSON document of the bucket."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True).encode()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Bundle:
        """Read what a machine has packed; raises one of :data:`gpuyard.formats.manifest.MALFORMED` for what is none."""
        bundle = cls(
            platform=str(values["platform"]),
            parts={str(name): str(value) for name, value in dict(values["parts"]).items()},
            held=tuple(map(str, values["held"])),
            pieces=tuple(Piece.from_dict(piece) for piece in values["pieces"]),
            zstd=Piece.from_dict(values["zstd"]),
            folders=tuple(map(str, values["folders"])),
            files=tuple(map(str, values["files"])),
            repository=str(values.get("repository") or ""),
            search_path=tuple(map(str, values.get("search_path") or ())),
            workload=str(values.get("workload") or ""),
            created=str(values.get("created") or ""),
            unpacked_bytes=int(values.get("unpacked_bytes") or 0),
            built_s={str(path): float(took) for path, took in dict(values.get("built_s") or {}).items()},
        )
        paths = (*bundle.folders, *bundle.files)
        if not _PLATFORM.fullmatch(bundle.platform) or not set(bundle.held) <= set(bundle.parts):
            raise ValueError("platform or parts")
        if any(not path.startswith("/") or path != posixpath.normpath(path) for path in paths):
            raise ValueError("paths")
        return bundle

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Bundle:
        """Read one; ``where`` names it. Raises :class:`CheckpointError` for a damaged one, and for a newer version."""
        try:
            document = json.loads(data)
            if problem := why_too_new(document, VERSION, where):
                raise CheckpointError(problem)
            return cls.from_dict(document)
        except MALFORMED as error:
            raise CheckpointError(f"{where} is damaged, so it is not used.") from error


def key_of(parts: Mapping[str, str]) -> str:
    """Return the key of the bundles that hold ``parts``, fingerprints by name."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:32]


def is_key(text: str) -> bool:
    """Tell whether ``text`` can be a key."""
    return bool(_KEY.fullmatch(text))
