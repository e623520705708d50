"""The manifest of a checkpoint and the record of a run: the two JSON documents that a bucket holds beside the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from gpuyard.checkpoints.stores import CheckpointError

VERSION = 1

# What reading a document of somebody else's making may raise, whatever is in it.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class UnreadableManifestError(CheckpointError):
    """A manifest is there, and empty, cut off, of a newer version or not a manifest at all."""


def timestamp() -> str:
    """Return the present time in UTC, to the second, as ``2026-03-01T12:00:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint.

    ``path`` is relative to the persistent root, ``key`` says where in the store the bytes lie (perhaps in an older
    set), ``size`` is in bytes, ``mode`` holds the permission bits. A symbolic link has its target in ``link``, an empty
    ``key`` and no bytes of its own. ``tag`` is the mark that the store had put on the object when it was sent (see
    :class:`gpuyard.checkpoints.stores.StoredObject`); empty when it is not known.
    """

    path: str
    size: int
    sha256: str
    mode: int
    key: str
    mtime_ns: int = 0
    link: str | None = None
    tag: str = ""

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
            {name: value for name, value in asdict(entry).items() if value is not None and (name, value) != ("tag", "")}
            for entry in self.files
        ]
        document = {
            "version": VERSION,
            "run": self.run,
            "sequence": self.sequence,
            "time": self.time,
            "files": files,
            "progress": dict(self.progress),
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Manifest:
        """Read a manifest; ``where`` names it in the :class:`UnreadableManifestError` that a damaged one raises."""
        if not data:
            raise UnreadableManifestError(f"{where} is empty.")
        try:
            document = json.loads(data)
            version = document["version"]
            if isinstance(version, int) and version > VERSION:
                raise UnreadableManifestError(
                    f"{where} is of version {version}, and this gpuyard reads version {VERSION}: use the newer gpuyard "
                    "that wrote it."
                )
            if version != VERSION:
                raise ValueError(f"version {version!r}")
            files = tuple(
                FileEntry(
                    path=_inner_path(item["path"]),
                    size=int(item["size"]),
                    sha256=str(item["sha256"]),
                    mode=int(item["mode"]) & 0o7777,
                    key=_plain_key(item["key"]),
                    mtime_ns=int(item.get("mtime_ns", 0)),
                    link=item.get("link"),
                    tag=str(item.get("tag") or ""),
                )
                for item in document["files"]
            )
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


@dataclass(frozen=True)
class RunRecord:
    """What a bucket knows of a run (``<run>/run.json``). Times are UTC; ``outcome`` is ``None`` until the run ended.

    ``outcome`` is one of ``done``, ``failed``, ``interrupted``, and ``cancelled`` when the user tore the run down. A
    run whose record was never written (its first box died at once) appears with ``workload`` and ``created`` empty.
    """

    run: str
    workload: str = ""
    created: str = ""
    finished: str | None = None
    outcome: str | None = None

    def to_bytes(self) -> bytes:
        """Render the record as the JSON document of the bucket."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, run: str, data: bytes) -> RunRecord:
        """Read a record. A damaged one counts as never written: the checkpoints beside it are what matters."""
        try:
            document = json.loads(data)
            return cls(
                run=run,
                workload=str(document.get("workload") or ""),
                created=str(document.get("created") or ""),
                finished=document.get("finished"),
                outcome=document.get("outcome"),
            )
        except MALFORMED:
            return cls(run=run)


def _plain_key(key: str) -> str:
    """Return ``key`` when a store can be asked for it, else raise ``ValueError``."""
    text = str(key)
    if "\0" in text or text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"the key {text[:80]!r} is none")
    text.encode()
    return text


def _inner_path(path: str) -> str:
    """Return ``path`` when it stays inside the folder it is restored to, else raise ``ValueError``."""
    parts = str(path).split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the path {path!r} leads out of the checkpoint")
    return str(path)
