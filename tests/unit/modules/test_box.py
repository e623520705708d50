# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the box's modules share: programs get the words that they were given."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args


@pytest.fixture
def box(run_module: Any) -> Any:
    return importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._box")


@pytest.fixture
def module() -> AnsibleModule:
    with patch_module_args({}):
        return AnsibleModule(argument_spec={})


def test_a_program_gets_its_words_and_its_variables(box: Any, module: AnsibleModule) -> None:
    command = ["sh", "-c", 'printf "%s " "$@" "$NAME"', "sh", "$HOME", "~", "*"]
    assert box.run(module, command, purpose="Saying", environment={"NAME": "value"}) == "$HOME ~ * value "


def test_a_program_that_fails_is_a_sentence_and_its_last_lines(box: Any, module: AnsibleModule) -> None:
    with pytest.raises(box.BoxError) as failed:
        box.run(module, ["sh", "-c", "echo out; printf 'bad \\377\\n' >&2; exit 3"], purpose="Trying")
    assert str(failed.value) == "Trying failed with exit code 3:\nout\n\nbad \ufffd" and failed.value.details == {
        "rc": 3
    }
    with pytest.raises(box.BoxError) as missing:
        box.run(module, ["/nowhere/program"], purpose="Trying")
    assert str(missing.value) == "Trying failed: /nowhere/program: No such file or directory."
