# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules of this collection as Ansible has packed them, kept from one play to the next.

Ansible packs a module with all that it imports when a task first needs it, a fifth of a second each, into a folder
that ends with the play. Here the packed ones are put aside, and given back to a play of the same code. Nothing is lost
where that fails or Ansible names them otherwise: it packs them anew. Private to this collection.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from ansible import constants as C
from ansible.release import __version__ as ansible_version

COLLECTION = Path(__file__).resolve().parents[2]
_PREFIX = "ansible_collections.gpuyard.cloud.plugins.modules."
_UNFINISHED = (".lock", "-part")
_PACKED_FROM = ("plugins/modules", "plugins/module_utils")
_UNUSED_S = 7 * 86_400.0


class Packed:
    """The packed modules of one state of this collection, in a folder below ``folder``, and those of this play."""

    def __init__(self, folder: Path) -> None:
        self._all = folder
        self._kept = folder / self._state()
        # Where Ansible looks before it packs one.
        self._used = Path(C.DEFAULT_LOCAL_TMP) / "ansiballz_cache"

    def bring(self) -> None:
        """Give this play what is kept of its state."""
        self._copy(self._kept, self._used)

    def keep(self) -> None:
        """Put aside what this play has packed, and forget what no play has used for a week."""
        if not self._copy(self._used, self._kept):
            return
        os.utime(self._kept)
        with suppress(OSError):
            for one in self._all.iterdir():
                if one != self._kept and one.stat().st_mtime < time.time() - _UNUSED_S:
                    shutil.rmtree(one, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Return whether this play has the module ``name`` packed."""
        return any(file.name.startswith(f"{_PREFIX}{name}-") for file in _finished(self._used))

    def _state(self) -> str:
        """Return a digest of all that a packed module is made of; files count by size and time."""
        digest = hashlib.sha256(f"{ansible_version} {platform.python_version()} {COLLECTION}".encode())
        for folder in _PACKED_FROM:
            for file in sorted((COLLECTION / folder).glob("*.py")):
                seen = file.stat()
                digest.update(f"{file.name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _copy(self, source: Path, target: Path) -> int:
        """Copy what ``target`` lacks, each file whole or not at all; return how many were copied."""
        copied = 0
        with suppress(OSError):
            for file in _finished(source):
                if not (there := target / file.name).exists():
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part = there.with_name(f"{uuid4().hex}-part")
                    shutil.copyfile(file, part)
                    part.rename(there)
                    copied += 1
        return copied


def _finished(folder: Path) -> list[Path]:
    """Return the packed modules of this collection in ``folder``."""
    with suppress(OSError):
        return [
            file for file in folder.iterdir() if file.name.startswith(_PREFIX) and not file.name.endswith(_UNFINISHED)
        ]
    return []
