# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The play shows how far long work on a rented machine is, over the connection that Ansible holds open."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from .conftest import ROOT, Yard


def test_the_play_shows_how_far_a_machine_is(yard: Yard, tmp_path: Path) -> None:
    yard.task("instance", run="far-0", workload="tiny", provider="vast")
    variables = {
        "workload_name": "far",
        "workload_src": str(ROOT / "extensions/molecule/workload/files"),
        "workload_build": ["for i in $(seq 40); do echo Compiling part $i; sleep 0.4; done"],
    }
    tasks = [{"ansible.builtin.include_role": {"name": "gpuyard.cloud.workload"}, "vars": variables}]
    play = tmp_path / "play.yml"
    python = {"ansible_python_interpreter": "/usr/bin/python3"}
    play.write_text(yaml.safe_dump([{"hosts": "far-0", "gather_facts": False, "vars": python, "tasks": tasks}]))
    said = yard.ansible("ansible-playbook", str(play))
    shown = re.findall(r"^  far-0: The build: Compiling part \d+ \((\d+) s\)$", said, re.MULTILINE)
    assert len(shown) >= 2 and all(int(seconds) >= 1 for seconds in shown), said
    # One sign of life is enough.
    assert "  … " not in said.partition("far-0: The build")[2].partition("TASK")[0]
