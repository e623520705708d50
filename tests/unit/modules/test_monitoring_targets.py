# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine is prepared for what the monitor writes and sends, or says what it lacks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


def test_the_folder_of_the_prometheus_file_is_made_once(run_module: Any, tmp_path: Path) -> None:
    file = tmp_path / "node-exporter/deep/gpuyard.prom"
    predicted = run_module("monitoring_targets", check=True, prometheus=str(file))
    assert predicted["changed"] and predicted["actions"] == [f"make the folder {file.parent}"]
    assert not file.parent.exists()
    made = run_module("monitoring_targets", prometheus=str(file))
    assert made["actions"] == predicted["actions"] and file.parent.stat().st_mode & 0o777 == 0o755
    again = run_module("monitoring_targets", prometheus=str(file))
    assert not again["changed"] and again["actions"] == []
    (tmp_path / "file").touch()
    refused = run_module("monitoring_targets", prometheus=str(tmp_path / "file/gpuyard.prom"))
    assert refused["failed"] and refused["msg"].endswith("is a file, so it can hold none.")


def test_a_run_that_was_killed_leaves_no_folder_that_looks_whole(
    run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node-exporter/gpuyard.prom"

    def killed(_path: Path, _mode: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "chmod", killed)
        run_module("monitoring_targets", prometheus=str(file))
    assert not file.parent.exists()
    assert run_module("monitoring_targets", prometheus=str(file))["changed"]
    assert [one.name for one in tmp_path.iterdir()] == ["node-exporter"]
    assert not run_module("monitoring_targets", prometheus=str(file))["changed"]


def test_mail_without_a_server_needs_a_sendmail(
    run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.monitoring_targets")
    from gpuyard.box.monitor import notify

    assert module.SENDMAIL == notify.SENDMAIL
    monkeypatch.setattr(module, "SENDMAIL", (str(tmp_path / "sendmail"),))
    refused = run_module("monitoring_targets", sendmail=True)
    assert refused["failed"] and "name one with server, or have a package such as msmtp-mta" in refused["msg"]
    (tmp_path / "sendmail").touch(mode=0o755)
    assert not run_module("monitoring_targets", sendmail=True)["changed"]
