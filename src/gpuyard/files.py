"""Files that no reader ever sees half of."""

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
