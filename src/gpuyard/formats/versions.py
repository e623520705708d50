"""Which documents can be read: those of this version, with whatever else they hold, and none of a newer one.

A version is a whole number. It grows only when an older reader would misread the document; a field that such a reader
may pass over changes nothing. So a reader passes over what it does not know, and a newer number is an error: taking
the document for nothing would begin a run afresh over its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuyard import __version__

WRITER = "gpuyard"
"""The field that says which version of gpuyard wrote a document."""
_RELEASE = re.compile(r"\d+(\.\d+){1,3}[a-z0-9.]{0,10}")


def mark(version: int) -> dict[str, Any]:
    """Return the fields with which a document begins."""
    return {"version": version, WRITER: __version__}


def why_too_new(document: Mapping[str, Any], known: int, where: str) -> str:
    """Return the sentence that refuses a document newer than version ``known``; ``""`` for one that can be read.

    ``where`` names the document. Raises ``ValueError`` when its version is none.
    """
    version = document.get("version", known)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"version {version!r}")
    if version <= known:
        return ""
    writer = document.get(WRITER)
    named = isinstance(writer, str) and _RELEASE.fullmatch(writer)
    way_out = f"use gpuyard {writer} or newer." if named else "use the newer gpuyard that wrote it."
    return f"{where} is of version {version}, and this gpuyard reads version {known}: {way_out}"
