"""A source tree as one compressed archive, and back."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from gpuyard.box.checkpoints.beneath import Folder, create
from gpuyard.errors import CheckpointError


def pack(root: Path, names: Sequence[str], target: Path) -> None:
    """Write the files ``names`` below ``root`` as an archive that depends on nothing but their content."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            path = root / name
            entry = tarfile.TarInfo(name)
            if path.is_symlink():
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.fspath(path.readlink()), 0o777
                archive.addfile(entry)
                continue
            entry.mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
            with path.open("rb") as content:
                entry.size = path.stat().st_size
                archive.addfile(entry, content)


def unpack(file: Path, folder: Path, *, most_bytes: int) -> list[str]:
    """Write what the archive ``file`` holds below ``folder``, which is empty, and return the names, sorted.

    The archive may be of anybody's making: only plain files and links are taken, nothing is written outside of
    ``folder`` nor through a link, and no more than ``most_bytes`` in all. A link itself may lead anywhere; it is never
    followed here. Raises :class:`CheckpointError` for what no archive of :func:`pack` can hold, and for a damaged one.
    """
    written = 0
    names: list[str] = []
    try:
        with tarfile.open(file, "r:gz") as archive, Folder(folder) as below:
            for entry in archive:
                name = entry.name
                written += entry.size
                if written > most_bytes:
                    raise ValueError(f"it holds more than {most_bytes / 1e9:g} GB")
                with below.parent(name, make=True) as (inside, last):
                    if entry.issym():
                        os.symlink(entry.linkname, last, dir_fd=inside)
                    elif entry.isreg() and (content := archive.extractfile(entry)) is not None:
                        with os.fdopen(create(inside, last, 0o755 if entry.mode & 0o111 else 0o644), "wb") as out:
                            shutil.copyfileobj(content, out)
                    else:
                        raise ValueError(f"{name!r} is neither a file nor a link")
                names.append(name)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise CheckpointError(f"It cannot be unpacked: {str(error)[:200] or type(error).__name__}.") from error
    return sorted(names)
