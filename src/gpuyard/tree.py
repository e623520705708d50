"""What a local source tree consists of, and the digest by which it is recognised on a machine that has it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from gpuyard.errors import UsageError

# Never part of a source tree, for folders that no git looks after.
SKIPPED = {".git", ".venv", "__pycache__", "node_modules", "target", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
IGNORE_FILE = ".gpuyardignore"
_BLOCK = 1 << 20
_LOOK_S = 0.3  # how long the sizes of what is left out are looked for


@dataclass(frozen=True, slots=True)
class Rules:
    """Which files belong to a tree, besides git's own rules and those of its file ``.gpuyardignore``.

    ``include`` are patterns, as in ``.gitignore`` but from the tree's root on, of files that belong to it although they
    are ignored; ``submodules`` says whether the files of its submodules belong to it.
    """

    include: tuple[str, ...] = ()
    submodules: bool = False


NO_RULES = Rules()

UNPACKED, UNPACKED_NOTE = "tree", "source.json"
"""A folder of that name with that file beside it holds a source from a bucket: everything there belongs to it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a tree, each with the hash of its kind and content, and one digest over all of them."""

    digest: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that does not belong to the tree. ``whole`` is false where its size is only a part (bytes)."""

    name: str
    size: int
    whole: bool
    why: str


def describe(root: Path, rules: Rules = NO_RULES) -> Tree:
    """Return what the tree below ``root`` consists of."""
    return described(root, names(root, rules))


def described(root: Path, listed: Iterable[str]) -> Tree:
    """Return what the tree consists of whose files below ``root`` are ``listed``, in their order."""
    files = {name: entry_hash(root / name) for name in listed}
    lines = "".join(f"{content} {name}\n" for name, content in files.items())
    return Tree(hashlib.sha256(os.fsencode(lines)).hexdigest(), files)


def names(root: Path, rules: Rules = NO_RULES) -> list[str]:
    """Return the relative paths of the files that make up the tree: by git's rules where git knows the folder.

    Raises :class:`UsageError` for a submodule that has not been fetched, and for a pattern of ``include`` that no file
    matches.
    """
    if root.name == UNPACKED and (root.parent / UNPACKED_NOTE).is_file():
        return _walked(root, skipped=frozenset())
    ignored = _ignored(root)
    found = {name for name in _listed(root, rules) if not ignored.match_file(name)}
    for pattern in rules.include:
        matching = set(_matching(root, pattern))
        if not matching:
            raise UsageError(f"repository.include: no file in {root} matches {pattern!r}.")
        found |= matching
    return sorted(found)


def size(root: Path, listed: Iterable[str]) -> int:
    """Return how many bytes the files ``listed`` have."""
    return sum((root / name).lstat().st_size for name in listed)


def uncommitted(root: Path, listed: Sequence[str]) -> list[str]:
    """Return those of ``listed`` that are not in git's newest commit as they are; none where there is no git."""
    changed = _git(root, "diff", "--name-only", "--relative", "--no-renames", "HEAD", "--", ".")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", ".")
    both = {*(changed or ()), *(untracked or ())}
    return [name for name in listed if name in both]


def left_out(root: Path, rules: Rules = NO_RULES, *, seconds: float = _LOOK_S) -> list[LeftOut]:
    """Return what lies below ``root`` and does not belong to the tree, the largest first.

    Sizes are looked for at most ``seconds`` altogether, however much there is.
    """
    found = [(name, "git ignores it") for name in _git_ignored(root)]
    found += [(name, "it is a repository of its own") for name in _nested(root)]
    if not rules.submodules:
        found += [(f"{name}/", "it is a submodule") for name in _submodules(root)]
    ignored, listed = _ignored(root), names(root, rules)
    by_file = [name for name in _listed(root, rules) if ignored.match_file(name)]
    for top in sorted({PurePosixPath(name).parts[0] for name in by_file}):
        found.append((top if not (root / top).is_dir() else f"{top}/", f"{IGNORE_FILE} names it"))
    until = time.monotonic() + seconds
    measured = []
    for place, (name, why) in enumerate(found):
        # Each gets its share of what is left, so that one huge folder does not hide the others.
        share = (until - time.monotonic()) / (len(found) - place)
        total, whole = _measure(root / name, time.monotonic() + share)
        inside = [other for other in listed if other == name or (name.endswith("/") and other.startswith(name))]
        total -= size(root, inside)
        if total > 0:
            measured.append(LeftOut(name, total, whole, why))
    return sorted(measured, key=lambda entry: entry.size, reverse=True)


def entry_hash(path: Path) -> str:
    """Return a hash of the entry: its kind, and a link's target or a file's bytes and whether it is executable."""
    if path.is_symlink():
        return hashlib.sha256(b"link\0" + os.fsencode(path.readlink())).hexdigest()
    digest = hashlib.sha256(b"program\0" if path.stat().st_mode & 0o111 else b"file\0")
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _listed(root: Path, rules: Rules) -> list[str]:
    """Return the files of the tree before ``.gpuyardignore`` and ``include`` are asked."""
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", ".")
    if listed is None:
        return _walked(root)
    # A submodule is listed as one entry, and a file that was removed without git is listed too.
    found = [name for name in listed if (root / name).is_symlink() or (root / name).is_file()]
    if rules.submodules:
        for module in _submodules(root):
            if not (root / module / ".git").exists():
                raise UsageError(
                    f"repository.submodules: the submodule {module} of {root} has not been fetched: run "
                    "`git submodule update --init --recursive` there, or set submodules: false."
                )
            found += [f"{module}/{name}" for name in _listed(root / module, rules)]
    return found


def _submodules(root: Path) -> list[str]:
    """Return the folders of ``root`` that git has as submodules."""
    staged = _git(root, "ls-files", "--stage", ".") or []
    return sorted({line.partition("\t")[2] for line in staged if line.startswith("160000 ")})


def _nested(root: Path) -> list[str]:
    """Return the folders that are repositories of their own and no submodules; git lists them as one entry."""
    return [name for name in _git(root, "ls-files", "--others", "--exclude-standard", ".") or [] if name.endswith("/")]


def _git_ignored(root: Path) -> list[str]:
    """Return what git ignores, a folder of which it ignores everything as one entry that ends in a slash."""
    ignored = _git(root, "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", ".")
    if ignored is None:
        return []
    return [name for name in ignored if name not in (".", "./")]


def _git(root: Path, *words: str) -> list[str] | None:
    """Return what a listing command of git says; ``None`` where there is no git, or the folder is not one of its."""
    try:
        done = subprocess.run(["git", "-C", str(root), words[0], "-z", *words[1:]], capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else list(dict.fromkeys(filter(None, os.fsdecode(done.stdout).split("\0"))))


def _ignored(root: Path) -> GitIgnoreSpec:
    try:
        text = (root / IGNORE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{root / IGNORE_FILE} cannot be read: {reason}.") from None
    try:
        return GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError as error:
        raise UsageError(f"{root / IGNORE_FILE}: {error}.") from None


def _matching(root: Path, pattern: str) -> Iterator[str]:
    """Yield the files that match a pattern. Only the folder is searched that the pattern's beginning names."""
    spec = GitIgnoreSpec.from_lines([f"/{pattern.strip()}".replace("//", "/")])
    start = root / _literal(pattern)
    if start.is_symlink() or start.is_file():
        start = start.parent
    for folder, folders, files in os.walk(start):
        folders[:] = [name for name in folders if name != ".git"]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*files, *links]:
            relative = Path(folder, name).relative_to(root).as_posix()
            if spec.match_file(relative):
                yield relative


def _literal(pattern: str) -> str:
    """Return the folders at the beginning of a pattern that hold no wildcard."""
    steps: list[str] = []
    for step in pattern.strip("/").split("/"):
        if set(step) & set("*?[\\"):
            break
        steps.append(step)
    return "/".join(steps)


def _measure(path: Path, until: float) -> tuple[int, bool]:
    """Return how many bytes lie at ``path``, and whether that is all of it; it looks no longer than ``until``."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size, True
        total = 0
        waiting = [os.fspath(path)]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
                    if time.monotonic() > until:
                        return total, False
    except OSError:
        return 0, False
    return total, True


def _walked(root: Path, *, skipped: Collection[str] = SKIPPED) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        kept = [name for name in folders if name not in skipped]
        links = [name for name in kept if Path(folder, name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        found += [Path(folder, name).relative_to(root).as_posix() for name in [*files, *links]]
    return sorted(found)
