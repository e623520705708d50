"""The manifest of a checkpoint: the JSON document that a bucket holds beside the files of a set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from gpuyard.errors import UnreadableManifestError
from gpuyard.files import has_control_characters, inner_path
from gpuyard.formats.versions import mark, why_too_new

VERSION = 1
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
STATE = ".gpuyard"
SCRATCH = f"{STATE}/tmp"
JOURNAL = f"{STATE}/journal.jsonl"
BROUGHT = f"{STATE}/brought.json"
DIGEST = re.compile(r"[0-9a-f]{64}")
BLOCK = 8 * 1024 * 1024
"""A large file is known by its blocks: each has so many bytes, the last one fewer."""
# As many as Linux follows.
_MOST_LINKS = 40

# What reading a document of somebody else's making may raise, whatever is in it.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def timestamp() -> str:
    """Return the present time in UTC, to the second, as ``2026-03-01T12:00:00Z``."""
    return datetime.now(timezone.utc).strftime(TIME_FORMAT)


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint.

    ``path`` is relative to the persistent root, ``key`` says where in the store the bytes lie (perhaps in an older
    set), ``size`` is in bytes, ``mode`` holds the permission bits. A symbolic link has its target in ``link``, an empty
    ``key`` and no bytes of its own. ``tag`` is the mark that the store had put on the object when it was sent (see
    :class:`gpuyard.box.checkpoints.stores.StoredObject`); empty when it is not known. ``blocks`` holds the SHA-256 of
    each :data:`BLOCK` of a large file, one after another; empty when they are not known.
    """

    path: str
    size: int
    sha256: str
    mode: int
    key: str
    mtime_ns: int = 0
    link: str | None = None
    tag: str = ""
    blocks: str = ""

    @property
    def content(self) -> tuple[str, str, int, str | None]:
        """What makes two entries the same file, wherever their bytes lie and whenever they were written."""
        return self.path, self.sha256, self.mode, self.link


@dataclass(frozen=True)
class Manifest:
    """A complete checkpoint: every file of it is in the store, because the manifest is written last."""

    run: str
    sequence: int
    time: str
    files: tuple[FileEntry, ...]
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        """Render the manifest as the JSON document of the bucket."""
        files = [
            {
                name: value
                for name, value in asdict(entry).items()
                if value is not None and (value or name not in ("tag", "blocks"))
            }
            for entry in self.files
        ]
        document = {
            **mark(VERSION),
            "run": self.run,
            "sequence": self.sequence,
            "time": self.time,
            "files": files,
            "progress": dict(self.progress),
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str, run: str | None = None) -> Manifest:
        """Read a manifest; ``where`` names it in the :class:`UnreadableManifestError` that a damaged one raises.

        What it holds is not believed, because a bucket may be in the wrong hands: paths and links stay inside the
        folder, and keys below those of ``run``, the run that it was read for (when given).
        """
        if not data:
            raise UnreadableManifestError(f"{where} is empty.")
        try:
            document = json.loads(data)
            if "version" not in document:
                raise ValueError("it names no version")
            if refusal := why_too_new(document, VERSION, where):
                raise UnreadableManifestError(refusal)
            if run is not None and document["run"] != run:
                raise ValueError(f"it is one of the run {document['run']!r}")
            files = tuple(_entry(item, str(document["run"])) for item in document["files"])
            _check_together(files)
            return cls(
                run=str(document["run"]),
                sequence=int(document["sequence"]),
                time=str(document["time"]),
                files=files,
                progress=dict(document.get("progress") or {}),
            )
        except MALFORMED as error:
            reason = "it is cut off, or no JSON" if isinstance(error, json.JSONDecodeError) else str(error)[:200]
            raise UnreadableManifestError(
                f"{where} is not a manifest of gpuyard: {reason or type(error).__name__}."
            ) from error


def _entry(item: Mapping[str, Any], run: str) -> FileEntry:
    """Return one entry of a manifest, or raise ``ValueError`` when it could not be restored safely."""
    path, link = inner_path(item["path"]), item.get("link")
    if path in (STATE, SCRATCH) or path.startswith((f"{SCRATCH}/", f"{BROUGHT}/")):
        raise ValueError(f"the path {path!r} is gpuyard's own")
    entry = FileEntry(
        path=path,
        size=int(item["size"]),
        sha256=str(item["sha256"]),
        # No special bits: a file that runs as its owner has no place in a checkpoint.
        mode=int(item["mode"]) & 0o777,
        key=str(item["key"]),
        mtime_ns=int(item.get("mtime_ns", 0)),
        link=link,
        tag=str(item.get("tag") or ""),
        blocks=_blocks(item),
    )
    if not DIGEST.fullmatch(entry.sha256):
        raise ValueError(f"the sha256 of {path!r} is not one")
    if entry.size < 0 or not -(2**63) <= entry.mtime_ns < 2**63:
        raise ValueError(f"the size or the time of {path!r} cannot be")
    if link is None and not inner_path(entry.key).startswith(f"{run}/checkpoints/"):
        raise ValueError(f"the key of {path!r} is not one of the run {run!r}")
    if link is not None and (not isinstance(link, str) or not link or has_control_characters(link)):
        raise ValueError(f"the link {path!r} has no target")
    return entry


def _blocks(item: Mapping[str, Any]) -> str:
    """Return the hashes of a file's blocks; none where they are not what they should be, since they only save time."""
    blocks = str(item.get("blocks") or "")
    fits = len(blocks) == 64 * -(-int(item["size"]) // BLOCK) and re.fullmatch("[0-9a-f]*", blocks)
    return blocks if fits else ""


def _check_together(files: Sequence[FileEntry]) -> None:
    """Raise ``ValueError`` when entries are in each other's way, or a link leads out of the folder through others."""
    paths = {entry.path for entry in files}
    if len(paths) != len(files):
        raise ValueError("it names a path twice")
    for path in paths:
        parts = path.split("/")
        for length in range(1, len(parts)):
            if "/".join(parts[:length]) in paths:
                raise ValueError(f"{path!r} lies below something that is not a folder")
    links = {entry.path: entry.link for entry in files if entry.link is not None}
    for path in links:
        _follow(path, links)


def _follow(path: str, links: Mapping[str, str]) -> None:
    """Follow a link, also through other links of the set; raise ``ValueError`` when it leads out of the folder."""
    place: list[str] = []
    waiting = path.split("/")[::-1]
    followed = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            if not place:
                raise ValueError(f"the link {path!r} leads out of the folder")
            place.pop()
        elif part not in ("", "."):
            place.append(part)
            target = links.get("/".join(place))
            if target is not None:
                followed += 1
                if target.startswith("/") or followed > _MOST_LINKS:
                    raise ValueError(f"the link {path!r} leads out of the folder, or nowhere")
                place.pop()
                waiting += target.split("/")[::-1]
