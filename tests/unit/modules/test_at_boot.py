# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What starts a run again with its machine, on machines with systemd, with cron, and with neither."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpuyard.cloud.plugins.module_utils._at_boot import AtBoot


def boot(base: Path, root: str = "/mnt/my run", python: str = "/usr/bin/true") -> AtBoot:
    return AtBoot(base / "opt/gpuyard/run", python, root, base)


@pytest.mark.parametrize(
    ("there", "written"),
    [
        (["run/systemd/system"], ["etc/systemd/system/gpuyard-run.service"]),
        (["run/systemd/system", "etc/cron.d", "usr/sbin/cron"], ["etc/systemd/system/gpuyard-run.service"]),
        (["etc/cron.d", "usr/sbin/cron"], ["etc/cron.d/gpuyard-run"]),
        (["etc/cron.d"], []),  # a folder that a package has left, without cron
        ([], []),
    ],
)
def test_what_is_written_where(tmp_path: Path, there: list[str], written: list[str]) -> None:
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    made = boot(tmp_path)
    assert made.stale
    made.write()
    assert boot(tmp_path).stale == []
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("gpuyard-run*") if not path.is_symlink()}
    assert files == set(written)
    script = tmp_path / "opt/gpuyard/start-again"
    assert subprocess.run([script], check=False).returncode == 0
    assert f"-m gpuyard.box.stages again --settings {tmp_path}/opt/gpuyard/run" in script.read_text()
    for name in written:
        text = (tmp_path / name).read_text()
        assert str(script) in text
        assert ("@reboot root" in text) if "cron" in name else ('RequiresMountsFor="/mnt/my run"\n' in text)
    if "run/systemd/system" in there:
        link = tmp_path / "etc/systemd/system/multi-user.target.wants/gpuyard-run.service"
        assert link.resolve() == tmp_path / "etc/systemd/system/gpuyard-run.service"
        link.unlink()
        assert boot(tmp_path).stale == [str(link)]


def test_what_differs_is_written_again(tmp_path: Path) -> None:
    boot(tmp_path).write()
    script = tmp_path / "opt/gpuyard/start-again"
    script.chmod(0o644)
    assert boot(tmp_path).stale == [str(script)]
    boot(tmp_path).write()
    assert script.stat().st_mode & 0o777 == 0o755
    assert boot(tmp_path, python="/usr/bin/false").stale == [str(script)]
