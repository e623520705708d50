# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one action of all verbs, in real plays, and what the plays were given."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

from .conftest import ROOT

given = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.plugin_utils._given")
heartbeat = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.callback.heartbeat")


def test_words_that_belong_to_no_variable_are_found() -> None:
    words = ["gpu_name=RTX 4090 D", "ssh_key='/my keys/id'", "a=1 b=2 c d=3", "sandbox", "@/a file.yml", '{"a": "b c"}']
    assert given.lost_words(words) == [("gpu_name=RTX", "4090 D"), ("b=2", "c"), ("", "sandbox")]
    assert given.lost_words([]) == []


def test_the_options_of_the_roles_are_read_from_their_documentation() -> None:
    found = given.role_options()
    assert {"rust_version", "python_env_path", "stages_run", "workload_dest"} <= found and "run" not in found


PLAY = """
- hosts: localhost
  gather_facts: false
  ignore_errors: true
  module_defaults:
    group/gpuyard.cloud.all: {provider: of-the-group}
    gpuyard.cloud.offer_info: {gpu_count: 2, provider: of-the-verb}
  tasks:
    - gpuyard.cloud.instance_info:
    - gpuyard.cloud.offer_info:
    - gpuyard.cloud.run_info:
        provider: of-the-task
    - gpuyard.cloud.instance_info:
        provider: ""
      environment: "{{ item }}"
      loop:
        - {VAST_API_KEY: "not a key"}
        - {}
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in ``folder``, without any account."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_NOCOLOR": "1",
    }
    command = ["ansible-playbook", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_one_action_serves_all_verbs_with_their_own_defaults_and_environment(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    done = run(tmp_path, "play.yml")
    failures = re.findall(r'"msg": "(.*?)[.;]', done.stdout)
    assert [text.split(" is not")[0] for text in failures[:3]] == [
        "provider='of-the-group'",
        "provider='of-the-verb'",
        "provider='of-the-task'",
    ], done.stdout + done.stderr
    # Of two items in a loop the second one goes without the environment of the first.
    assert failures[3].startswith("The Vast") and failures[4].startswith("There is no key of any cloud"), done.stdout


def test_where_clouds_and_bucket_are_goes_to_each_verb_of_a_play_of_ours(tmp_path: Path) -> None:
    tasks = [{"gpuyard.cloud.instance_info": {}}, {"gpuyard.cloud.instance_info": {"sandbox_state": "/of/the/task"}}]
    play = {"hosts": "localhost", "gather_facts": False, "ignore_errors": True, "tasks": tasks}
    plays = [{**play, "vars": {"gpuyard_play": "status"}}, play]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    said = run(tmp_path, "play.yml", "-e", "sandbox=true", "-e", "sandbox_state=/of/the/play").stdout
    failures = re.findall(r'"msg": "(.*?)[:;]', said)
    no_key = "There is no key of any cloud"
    assert failures == ["sandbox_state=/of/the/play", "sandbox_state=/of/the/task", no_key, no_key], said


def test_what_tells_itself_needs_no_sign_of_life() -> None:
    assert heartbeat.tells_itself("gpuyard.cloud.run_end") and not heartbeat.tells_itself("ansible.builtin.apt")
