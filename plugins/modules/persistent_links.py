#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: persistent_links
short_description: Keep a repository's data folders on the persistent volume
description:
  - Creates the folders on the volume and links each of them into the repository under the same relative path.
  - A real folder that is found in the repository is moved into the volume first. Nothing is ever overwritten or lost.
    A file that exists on both sides with different content is kept under a name of its own beside the other, and
    reported.
  - What the repository brings to the volume is noted in C(.gpuyard/brought.json) below O(root), when
    M(gpuyard.cloud.work_tree) or git knows the repository's files. The restore of a checkpoint goes by that.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  root:
    description:
      - The folder where the persistent volume is mounted. It is created when it is missing.
      - A folder of the system's, a home, or gpuyard's own is refused, since all that is in it would be published.
      - One on a volume that C(/etc/fstab) names and that is not mounted is refused.
    type: path
    default: /mnt/persistent
  directories:
    description: Paths of folders, relative to both O(root) and O(repository).
    type: list
    elements: str
    required: true
  repository:
    description: The repository. When it is not given, only the folders on the volume are created.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Keep models and checkpoints on the volume
  gpuyard.cloud.persistent_links:
    root: /mnt/persistent
    repository: /opt/gpuyard/src/miniprover
    directories: [models, checkpoints, trajectories, eval_results]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [create /mnt/persistent/models, move 3 files of models, link models]
conflicts:
  description: Files that existed on both sides with different content, by the path that the repository's now has.
  type: list
  elements: str
  returned: success
  sample: [/mnt/persistent/models/policy.bin.from-repository]
"""

import errno
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils._disks import FSTAB, unmounted

SUFFIX = ".from-repository"


def check_directories(names: list[str]) -> list[str]:
    """Return the clean relative paths; raise :class:`BoxError` for one that cannot be linked."""
    clean: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
            raise _box.BoxError(f"directories: {name!r} must be a path inside the repository, such as 'models'.")
        clean.append(str(path))
    for name in clean:
        for other in clean:
            if name != other and PurePosixPath(other) in PurePosixPath(name).parents:
                raise _box.BoxError(f"directories: {name!r} lies inside {other!r}, so only {other!r} can be linked.")
    return sorted(set(clean))


def kind(path: Path) -> str:
    """Return what is at ``path``, for the diff."""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return "directory"
    return "file" if path.exists() else "absent"


def same_content(one: Path, other: Path) -> bool:
    """Return whether two entries hold the same: equal links, or regular files with equal bytes."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    return _box.file_sha256(one) == _box.file_sha256(other)


def free_name(path: Path) -> Path:
    """Return the first of ``path.from-repository``, ``path.from-repository-2``, … that does not exist."""
    candidate = path.with_name(path.name + SUFFIX)
    number = 2
    while candidate.is_symlink() or candidate.exists():
        candidate = path.with_name(f"{path.name}{SUFFIX}-{number}")
        number += 1
    return candidate


def move(source: Path, target: Path) -> None:
    """Move one entry to a name that is free. Across file systems the copy is complete before the source goes."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        scratch = target.with_name(f".{target.name}.moving")
        if source.is_dir() and not source.is_symlink():
            # Left over from a move that was cut off; its source is still whole.
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(source, scratch, symlinks=True)
            os.sync()
            scratch.rename(target)
            shutil.rmtree(source)
        else:
            scratch.unlink(missing_ok=True)
            shutil.copy2(source, scratch, follow_symlinks=False)
            if not scratch.is_symlink():
                with scratch.open("rb") as stream:
                    os.fsync(stream.fileno())
            scratch.rename(target)
            source.unlink()


class Merge:
    """Moves one folder's content into another. With ``dry`` set, only counts what it would do."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.moved = 0
        self.conflicts: list[str] = []

    def into(self, source: Path, target: Path) -> None:
        """Merge the folder ``source`` into the folder ``target`` and remove ``source``."""
        for entry in sorted(source.iterdir()):
            place = target / entry.name
            if not place.is_symlink() and not place.exists():
                self.moved += 1
                if not self.dry:
                    move(entry, place)
            elif entry.is_dir() and not entry.is_symlink() and place.is_dir():
                self.into(entry, place)
            elif same_content(entry, place):
                if not self.dry:
                    entry.unlink()
            else:
                kept = free_name(place)
                self.moved += 1
                self.conflicts.append(str(kept))
                if not self.dry:
                    move(entry, kept)
        if not self.dry:
            source.rmdir()


def repository_files(module: AnsibleModule, repository: Path) -> list[str]:
    """Return the files that ``work_tree`` brought to ``repository``: by its record, of a git repository by git."""
    files = _box.read_record(repository.with_name(f".{repository.name}.json")).get("files")
    if isinstance(files, dict):
        return list(files)
    if not (repository / ".git").exists():
        return []
    command = ["git", "-C", str(repository), "ls-files", "--recurse-submodules", "-z"]
    try:
        return _box.run(module, command, purpose="git ls-files").split("\0")
    except _box.BoxError:
        return []  # somebody else's, which git does not read


def find_brought(root: Path, repository: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of those files that the volume will have as the repository has them."""
    found: dict[str, str] = {}
    for name in names:
        source, place = repository / name, root / name
        if source.is_symlink() or not source.is_file():
            continue
        if same_content(source, place) or not (place.is_symlink() or place.exists()):
            found[name] = _box.file_sha256(source)
    return found


def leads_to_volume(root: Path, repository: Path, name: str) -> bool:
    """Return whether a folder above ``name`` is linked to the volume already, so that ``name`` is there as well.

    Raises :class:`BoxError` when such a link leads elsewhere.
    """
    for inner in list(PurePosixPath(name).parents)[-2::-1]:
        above = repository / inner
        if not above.is_symlink():
            continue
        if above.resolve() == (root / inner).resolve():
            return True
        raise _box.BoxError(
            f"{above} is a link to {above.readlink()}, so {name} cannot be linked below it: remove that link from the "
            f"repository, or keep another folder than {name}."
        )
    return False


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring folders and links to the wanted state, or in check mode say what that would take."""
    _box.check_persistent_root(module.params["root"])
    root = Path(module.params["root"])
    if missing := unmounted(FSTAB, at=os.path.realpath(root)):
        raise _box.BoxError(
            f"root={root} lies on the volume at {missing[0]}, which {FSTAB} names and which is not mounted: nothing "
            "was written, since it would go to the disk below. Mount it, or take its line out of that file."
        )
    repository = Path(module.params["repository"]) if module.params["repository"] else None
    names = check_directories(module.params["directories"])
    dry = module.check_mode
    if repository and not repository.is_dir() and not dry:
        raise _box.BoxError(f"The repository {repository} does not exist on this machine.")
    actions: list[str] = []
    conflicts: list[str] = []
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for name in names:
        target = root / name
        before[str(target)], after[str(target)] = kind(target), "directory"
        if (target.is_symlink() or target.exists()) and not target.is_dir():
            raise _box.BoxError(f"{target} exists but is not a folder: move it away first.")
        if not target.is_dir():
            actions.append(f"create {target}")
            if not dry:
                target.mkdir(parents=True)
        if not repository or leads_to_volume(root, repository, name):
            continue
        link = repository / name
        before[str(link)], after[str(link)] = kind(link), f"link to {target}"
        if before[str(link)] == after[str(link)]:
            continue
        if before[str(link)] == "file":
            raise _box.BoxError(f"{link} is a file, so the folder of that name on the volume cannot be linked there.")
        if link.is_dir() and not link.is_symlink():
            merge = Merge(dry)
            if not dry:
                # First, since a move that is cut off does not find again what it has moved.
                tracked = [path for path in repository_files(module, repository) if path.startswith(f"{name}/")]
                _box.note_brought(root, find_brought(root, repository, tracked))
            if target.is_dir():
                merge.into(link, target)
            else:  # only in check mode: everything will move
                merge.moved = len(list(link.iterdir()))
            conflicts += merge.conflicts
            actions.append(f"move {merge.moved} entries of {name}")
        actions.append(f"link {name}")
        if not dry:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    for conflict in conflicts:
        module.warn(f"The repository's version of a file that the volume also has was kept as {conflict}.")
    return {
        "changed": bool(actions),
        "actions": actions,
        "conflicts": conflicts,
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/mnt/persistent"},
            "directories": {"type": "list", "elements": "str", "required": True},
            "repository": {"type": "path"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
