"""What a local source tree consists of, and the digest by which it is recognised on a machine that has it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

# Never part of a source tree, for folders that no git looks after.
SKIPPED = {".git", ".venv", "__pycache__", "node_modules", "target", ".mypy_cache", ".pytest_cache", ".ruff_cache"}

UNPACKED, UNPACKED_NOTE = "tree", "source.json"
"""A folder of that name with that file beside it holds a source from a bucket: everything there belongs to it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a tree, each with the hash of its kind and content, and one digest over all of them."""

    digest: str
    files: dict[str, str]


def describe(root: Path) -> Tree:
    """Return what the tree below ``root`` consists of."""
    return described(root, names(root))


def described(root: Path, listed: Iterable[str]) -> Tree:
    """Return what the tree consists of whose files below ``root`` are ``listed``, in their order."""
    files = {name: entry_hash(root / name) for name in listed}
    lines = "".join(f"{content} {name}\n" for name, content in files.items())
    return Tree(hashlib.sha256(os.fsencode(lines)).hexdigest(), files)


def names(root: Path) -> list[str]:
    """Return the relative paths of the files that make up the tree: by git's rules where git knows the folder."""
    if root.name == UNPACKED and (root.parent / UNPACKED_NOTE).is_file():
        return _walked(root, skipped=frozenset())
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z", "."]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return _walked(root)  # there is no git
    if done.returncode:
        return _walked(root)
    listed = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    # A submodule is listed as one entry, and a file that was removed without git is listed too.
    return sorted(name for name in listed if (root / name).is_symlink() or (root / name).is_file())


def _walked(root: Path, *, skipped: Collection[str] = SKIPPED) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        kept = [name for name in folders if name not in skipped]
        links = [name for name in kept if Path(folder, name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        found += [Path(folder, name).relative_to(root).as_posix() for name in [*files, *links]]
    return sorted(found)


def entry_hash(path: Path) -> str:
    """Return a hash of the entry: its kind, and a link's target or a file's bytes and whether it is executable."""
    if path.is_symlink():
        return hashlib.sha256(b"link\0" + os.fsencode(path.readlink())).hexdigest()
    executable = b"program\0" if path.stat().st_mode & 0o111 else b"file\0"
    return hashlib.sha256(executable + path.read_bytes()).hexdigest()
