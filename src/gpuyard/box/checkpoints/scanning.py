"""What lies below a root and belongs into a set."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gpuyard.box.checkpoints.rules import Rules
from gpuyard.files import has_control_characters
from gpuyard.formats.manifest import JOURNAL, SCRATCH, STATE


@dataclass(frozen=True)
class Found:
    """One thing below the root that belongs into the set; ``link`` is a target relative to the link's folder."""

    path: str
    info: os.stat_result
    link: str | None = None


def scan(root: Path, rules: Rules) -> tuple[list[Found], list[str]]:
    """Return what belongs into a set (the journal apart), and the names of what had to be left out."""
    found: list[Found] = []
    skipped: list[str] = []
    resolved_root = root.resolve()
    for folder, folders, files in os.walk(root):
        base = Path(folder).relative_to(root).as_posix()
        below = "" if base == "." else f"{base}/"
        if f"/{below}".endswith(f"/{STATE}/"):
            # Also that of a folder inside, which training code publishes itself.
            folders[:] = [name for name in folders if name != SCRATCH.rpartition("/")[2]]
        for name in sorted([*files, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            path = below + name
            if path == JOURNAL or not rules.publishes(path):
                continue
            try:
                path.encode()
                if has_control_characters(path):
                    skipped.append(f"{path!r} (its name holds control characters)")
                    continue
                item = _describe(Path(folder) / name, path, resolved_root)
            except UnicodeEncodeError:
                skipped.append(f"{path!r} (its name is not UTF-8)")
                continue
            except OSError:
                continue  # gone since it was listed, or a link into nowhere
            if isinstance(item, str):
                skipped.append(item)
            elif item is not None:
                found.append(item)
    return found, skipped


def _describe(place: Path, path: str, root: Path) -> Found | str | None:
    info = place.stat()
    if place.is_symlink():
        target = place.resolve(strict=True)
        if root in target.parents:
            return Found(path, place.lstat(), os.path.relpath(target, place.parent.resolve()))
        if stat.S_ISDIR(info.st_mode):
            return f"{path} (a link to a folder outside the persistent root)"
    return Found(path, info) if stat.S_ISREG(info.st_mode) else None


def read_journal(root: Path) -> bytes | None:
    try:
        return (root / JOURNAL).read_bytes()
    except FileNotFoundError:
        return None
