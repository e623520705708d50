"""What a verb shows, kept in a file as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpuyard.errors import UsageError
from gpuyard.files import write_whole
from gpuyard.providers.base import Progress


def check_file(path: str | None) -> None:
    """Raise :class:`UsageError` for a path that no file can be written to, before anything is asked."""
    if path is None:
        return
    file = Path(path).expanduser().absolute()
    if file.is_dir():
        raise UsageError(f"report={path} is a folder; name a file.")
    if not file.parent.is_dir():
        raise UsageError(f"report={path} cannot be written: there is no folder {file.parent}.")


def keep(path: str | None, text: str, *, check: bool, progress: Progress) -> dict[str, Any]:
    """Return ``text`` as a verb's result, after writing it to ``path`` where that is named and ``check`` is false."""
    if path is None:
        return {"changed": False, "text": text}
    file = Path(path).expanduser().absolute()
    content = f"{text}\n"
    try:
        changed = not file.is_file() or file.read_bytes() != content.encode()
        if changed and not check:
            write_whole(file, content, mode=0o644)
    except OSError as error:
        raise UsageError(f"report={path} cannot be written: {error.strerror}.") from None
    progress(f"This {'would be' if check else 'is'} kept in {file}.")
    return {"changed": changed, "text": text}
