# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What starts a run again when its machine starts: a script, and where there is one, a unit or a line of cron for it.

At Vast.ai, whose containers have neither, the instance's own start script calls it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

UNIT = "gpuyard-run.service"
SCRIPT = "start-again"
_UNIT = """\
[Unit]
Description=The run that was at work when this machine went down, by gpuyard
Wants=network-online.target
After=network-online.target
RequiresMountsFor={root}

[Service]
Type=oneshot
# The session that it starts goes on without it.
RemainAfterExit=yes
KillMode=process
TimeoutStartSec=infinity
Environment=HOME=/root
ExecStart={script}

[Install]
WantedBy=multi-user.target
"""
_CRON = """\
# The run that was at work when this machine went down goes on, by gpuyard.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
@reboot root {script}
"""


@dataclass(frozen=True)
class AtBoot:
    """The files for a settings folder such as ``/opt/gpuyard/run``. ``base`` is what stands for ``/``."""

    settings: Path
    python: str
    persist_root: str
    base: Path = Path("/")

    @property
    def script(self) -> Path:
        """The script that starts what was at work."""
        return self.settings.parent / SCRIPT

    @property
    def files(self) -> dict[Path, tuple[str, int]]:
        """The content and the mode of each file that belongs on this machine."""
        words = [self.python, "-I", "-m", "gpuyard.box.stages", "again", "--settings", str(self.settings)]
        wanted = {self.script: (f"#!/bin/sh\nexec {shlex.join(words)}\n", 0o755)}
        if (self.base / "run/systemd/system").is_dir():
            text = _UNIT.format(root=_quoted(self.persist_root), script=_quoted(str(self.script)))
            wanted[self._units / UNIT] = (text, 0o644)
        elif (self.base / "etc/cron.d").is_dir() and (self.base / "usr/sbin/cron").exists():
            text = _CRON.format(script=shlex.quote(str(self.script)))
            wanted[self.base / "etc/cron.d/gpuyard-run"] = (text, 0o644)
        return wanted

    @property
    def stale(self) -> list[str]:
        """The files and links that are missing or differ."""
        differ = [str(path) for path, (text, mode) in self.files.items() if not _is_there(path, text, mode)]
        link = self._link
        return differ + ([str(link)] if link is not None and not link.is_symlink() else [])

    def write(self) -> None:
        """Write what is stale. Nothing is started: systemd and cron read it when the machine starts."""
        for path, (text, mode) in self.files.items():
            if not _is_there(path, text, mode):
                _box.write_file(path, text, mode)
        link = self._link
        if link is not None and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../{UNIT}")

    @property
    def _units(self) -> Path:
        return self.base / "etc/systemd/system"

    @property
    def _link(self) -> Path | None:
        there = (self.base / "run/systemd/system").is_dir()
        return self._units / "multi-user.target.wants" / UNIT if there else None


def _is_there(path: Path, text: str, mode: int) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text and path.stat().st_mode & 0o777 == mode
    except (OSError, ValueError):
        return False


def _quoted(text: str) -> str:
    """Return a path for a line of a unit, in which % and spaces mean something."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if " " in text else escaped
