"""Paths that stay inside their folder, and files that no reader ever sees half of."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(file: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Write ``content`` beside ``file`` and move it into place, so that a reader sees the old file or the new one.

    Each writer has a temporary file of its own, also two threads of one process; the last one to finish wins. ``mode``
    is the new file's. ``durable``: the content is on the disk before the name points to it, so that a crash of the
    machine does not leave an empty file. Raises :class:`OSError`, and leaves nothing behind then.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        fresh.chmod(mode)
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def inner_path(path: object) -> str:
    """Return ``path`` when it names something inside the folder it is relative to, else raise ``ValueError``."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"{path!r} is not a path")
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"the path {path!r} leads out of its folder")
    if has_control_characters(path):
        raise ValueError(f"the path {path!r} holds characters that no file name should have")
    return path


def has_control_characters(text: str) -> bool:
    """Tell whether ``text`` holds control characters, or what is not text at all (half a surrogate pair)."""
    return any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text) or any(
        0xD800 <= ord(character) < 0xE000 for character in text
    )
