"""Which files below the persistent root the repository has brought there, and with what content.

A machine keeps this record below the root, where the modules ``persistent_links`` and ``work_tree`` write it, and every
set holds it. So a new machine can tell a file that the run has changed from one that only has a newer version in the
repository by now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from gpuyard.formats.manifest import DIGEST, MALFORMED, FileEntry

# A larger record is none: it is read whole, and a bucket may be in the wrong hands.
MOST_BYTES = 8 * 1024 * 1024


def parse(data: bytes) -> dict[str, str]:
    """Return the SHA-256 of what was brought, by path; what is no record is an empty one."""
    if len(data) > MOST_BYTES:
        return {}
    try:
        found = json.loads(data).items()
    except MALFORMED:
        return {}
    return {path: digest for path, digest in found if isinstance(digest, str) and DIGEST.fullmatch(digest)}


def compare(
    files: Iterable[FileEntry], before: Mapping[str, str], here: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the paths of which the repository has another version by now than the set's machine was brought.

    First those that the run left alone, then those that it changed. ``before`` is the set's record, ``here`` that of
    the repository as it is now.
    """
    left_alone: list[str] = []
    changed: list[str] = []
    for entry in files:
        old, new = before.get(entry.path), here.get(entry.path)
        if old is not None and new not in (None, old, entry.sha256):
            (left_alone if entry.sha256 == old else changed).append(entry.path)
    return left_alone, changed


def merge(
    files: Iterable[FileEntry], before: Mapping[str, str], here: Mapping[str, str], newer: Iterable[str]
) -> dict[str, str]:
    """Return the record of a machine that restores the set but for the files in ``newer``, which stay as they are."""
    placed = {entry.path: entry.sha256 for entry in files}
    stay = {*newer, *(path for path, digest in here.items() if placed.get(path, digest) == digest)}
    return {**before, **{path: digest for path, digest in here.items() if path in stay}}
