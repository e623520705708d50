"""What the next stage takes up: code, environment and commands as the settings on the box say them at that moment.

A running stage keeps what it began with. Code and environment lie in folders of their own for each state of them, so a
new state is prepared beside, and the settings name the folders. What the stages wrote into the old code folder, and
nobody keeps in a persistent one, moves into the new folder when the first stage begins there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpuyard.box.stages.spec import BoxSpec, load_spec
from gpuyard.errors import UsageError
from gpuyard.files import write_whole

TAKEN_UP = "taken-up.json"
SETTINGS_LOCK = "settings.lock"  # the module stage_session holds it while it writes several files that belong together
_LEFT = {".git", "__pycache__"}
_NAMED = 5  # files and folders that are named when they have moved


def take_up(spec: BoxSpec, say: Callable[[str], None]) -> BoxSpec:
    """Return ``spec`` with what the settings on the box say now of the code, the environment and the stages' commands.

    Which stages there are, their order and the run stay as they were when the runner began. Settings that cannot be
    read are told, and what was there before is used.
    """
    try:
        with (spec.folder / SETTINGS_LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            now = load_spec(spec.folder)
    except (UsageError, OSError) as error:
        say(f"Warning: the settings cannot be read, so the next stage takes what the last one had: {error}")
        now = spec
    if (now.run, now.root) != (spec.run, spec.root):
        now = spec
    if now.repository != spec.repository:
        say(f"the code is now that of {now.repository}")
    stages = {stage.name: stage for stage in now.stages}
    taken = replace(
        spec,
        repository=now.repository,
        path=now.path,
        environment=now.environment,
        stages=tuple(stages.get(stage.name, stage) for stage in spec.stages),
    )
    before = _last(spec.folder)
    # Another parent is another workload's, whose machine this was before.
    is_ours = before is not None and before != taken.repository and before.parent == taken.repository.parent
    if before and is_ours and before.is_dir() and taken.repository.is_dir():
        moved: list[str] = []
        try:
            moved = carry_over(before, taken.repository)
        except OSError as error:
            say(f"Warning: what stages wrote into {before} was not all moved to {taken.repository}: {error}")
        if moved:
            say(f"what stages wrote into {before} is now in {taken.repository}: {', '.join(sorted(moved)[:_NAMED])}")
    note = {"repository": str(taken.repository), "path": list(taken.path)}
    with contextlib.suppress(OSError):  # a full disk: the next stage will say so
        write_whole(spec.folder / TAKEN_UP, json.dumps(note).encode(), mode=0o644)
    return taken


def carry_over(old: Path, new: Path) -> list[str]:
    """Move what ``old`` has besides its repository to ``new``, where that has nothing of the name; return the names.

    Links to folders elsewhere are left: ``new`` has its own. What cannot be moved stays where it is.
    """
    known = _known(old)
    above = {parent.as_posix() for name in known for parent in Path(name).parents}
    moved: list[str] = []
    waiting = [Path()]
    while waiting:
        folder = waiting.pop()
        for entry in sorted((old / folder).iterdir()):
            name = folder / entry.name
            target = new / name
            if entry.name in _LEFT or name.as_posix() in known:
                continue
            if entry.is_symlink() and entry.readlink().is_absolute():
                continue
            if entry.is_dir() and not entry.is_symlink():
                # A cache that the new build has made is as good; the rest may hold what only a stage can make.
                if (entry / "CACHEDIR.TAG").is_file() and target.exists():
                    continue
                if name.as_posix() in above or target.is_dir():
                    waiting.append(name)
                    continue
            if not os.path.lexists(target):
                with contextlib.suppress(OSError):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(entry, target)
                    moved.append(name.as_posix())
    return moved


def _last(folder: Path) -> Path | None:
    """Return the code folder that the last stage ran in, ``None`` when none has run."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Path(json.loads((folder / TAKEN_UP).read_bytes())["repository"])
    return None


def _known(repository: Path) -> set[str]:
    """Return the files that belong to the repository, by the record of who brought it, or by git."""
    record = repository.with_name(f".{repository.name}.json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        files = json.loads(record.read_bytes())["files"]
        if files:
            return set(files)
    command = ["git", "-C", str(repository), "ls-files", "--recurse-submodules", "-z"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    return set()
