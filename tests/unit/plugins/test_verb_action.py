# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the base of the verbs reads of the command line and of the collection."""

from __future__ import annotations

import importlib

action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.plugin_utils._given")


def test_words_that_belong_to_no_variable_are_found() -> None:
    given = ["gpu_name=RTX 4090 D", "ssh_key='/my keys/id'", "a=1 b=2 c d=3", "sandbox", "@/a file.yml", '{"a": "b c"}']
    assert action.lost_words(given) == [("gpu_name=RTX", "4090 D"), ("b=2", "c"), ("", "sandbox")]
    assert action.lost_words([]) == []


def test_the_options_of_the_roles_are_read_from_their_documentation() -> None:
    found = action.role_options()
    assert {"rust_version", "python_env_path", "stages_run", "workload_dest"} <= found and "run" not in found
