# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Roles are cut off by a SIGKILL of Ansible, on one real box, and the next run ends what was begun.

The others are cut off in tests of their own: cuda, health, lean, pantograph, nvme, persistent_storage, model_weights,
dataset, monitoring and snapshot_bundle in tests/unit/modules, container_image in test_snapshots.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Yard
from .test_converging import start

RUN = "killed-0"


@dataclass(frozen=True)
class Case:
    """How a role is killed in the middle, and what the next run has to make of it."""

    variables: dict[str, Any]
    did: str  # what the next run says that it did
    check: str  # a command that shows on the box that all is there


CASES = {
    "base": Case(
        {"base_packages": ["jq"]},
        "",
        "dpkg -s jq && grep -c '^Commandline:.* jq' /var/log/apt/history.log | grep -qx 1",
    ),
    "rust": Case(
        {"rust_dist_server": "http://mirror:8080"},
        "actions:\n    - write launchers\n",
        "cargo --version",
    ),
    "python_env": Case(
        {"python_env_path": "/opt/gpuyard/envs/killed", "python_env_packages": ["numpy"]},
        "- install 1 requirements",
        "/opt/gpuyard/envs/killed/bin/python -c 'import numpy'",
    ),
    "workload": Case(
        {
            "workload_name": "killed",
            "workload_src": str(ROOT / "extensions/molecule/workload/files"),
            "workload_build": ["echo begun >> times; sleep 6", "echo ended >> times"],
        },
        "- run 2 build commands",
        "tr '\\n' ' ' < /opt/gpuyard/src/killed/times | grep -qx 'begun ended '",
    ),
}


class Box:
    """The rented box, and how to reach it."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard

    def ssh(self, script: str) -> subprocess.CompletedProcess[str]:
        configuration = Path(self.yard.environment["GPUYARD_HOME"]) / "ssh_config"
        words = ["ssh", "-F", str(configuration), RUN, script]
        return subprocess.run(
            words, env=self.yard.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def play(self, role: str, case: Case, file: Path) -> Path:
        """Write a play that brings the box into shape with one role, as a launch does with all of them."""
        shape = {"fingerprint": role}
        tasks = [
            {"gpuyard.cloud.convergence": shape | {"state": "begun"}},
            {"ansible.builtin.include_role": {"name": f"gpuyard.cloud.{role}"}, "vars": case.variables},
            {"gpuyard.cloud.convergence": shape | {"state": "recorded"}},
        ]
        python = {"ansible_python_interpreter": "/usr/bin/python3"}
        file.write_text(yaml.safe_dump([{"hosts": RUN, "gather_facts": False, "vars": python, "tasks": tasks}]))
        return file


def kill_all(play: int) -> None:
    """Kill a play with its workers, each of which has a session of its own, and with their connections."""
    workers = subprocess.run(["pgrep", "-P", str(play)], capture_output=True, text=True, check=False).stdout.split()
    for pid in (play, *map(int, workers)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def box(running: Yard) -> Iterator[Box]:
    running.task("instance", run=RUN, workload="tiny", provider="vultr")
    box = Box(running)
    assert box.ssh("apt-get -qq update && apt-get -qq install -y python3-venv").returncode == 0
    yield box
    running.task("instance", run=RUN, state="absent")


@pytest.mark.parametrize("role", CASES)
def test_the_next_run_ends_what_a_killed_one_has_begun(box: Box, role: str, tmp_path: Path) -> None:
    """B5, B6, B8, B10, U6; and the run after that changes nothing more."""
    case = CASES[role]
    play = box.play(role, case, tmp_path / "play.yml")
    first = start(box.yard, play)
    try:
        begun = box.ssh("for i in $(seq 999); do ls /opt/gpuyard/detached/*/record.json && exit; sleep .1; done; false")
        assert begun.returncode == 0 and first.poll() is None, begun.stderr
    finally:
        kill_all(first.pid)
        printed = first.communicate()[0]
    assert "PLAY RECAP" not in printed
    said = box.yard.ansible("ansible-playbook", "-v", str(play))
    assert case.did in said, said
    done = box.ssh(case.check)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{said}"
    assert box.ssh("ls /opt/gpuyard/detached").stdout == ""
    assert " changed=0 " in box.yard.ansible("ansible-playbook", str(play))
