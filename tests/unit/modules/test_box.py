# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the box's modules share: programs get the words that they were given."""

from __future__ import annotations

import importlib
import json
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


def fill(box: Any, module: AnsibleModule) -> dict[str, Any]:
    box.run(module, ["cp", "/proc/version", "/dev/full"], purpose="Installing")
    return {}


def write(_box: Any, _module: AnsibleModule) -> dict[str, Any]:
    with open("/dev/full", "w", encoding="utf-8") as full:
        full.write("more")
    return {}


def fail(box: Any, module: AnsibleModule) -> dict[str, Any]:
    box.run(module, ["false"], purpose="Installing")
    return {}


@pytest.mark.parametrize(("work", "is_full"), [(fill, True), (write, True), (fail, False)])
def test_u10_a_module_that_meets_a_full_disk_says_so(
    box: Any, module: AnsibleModule, capsys: pytest.CaptureFixture[str], work: Any, is_full: bool
) -> None:
    """Whichever program it was that said it: the launch then takes a machine with a larger disk."""
    with patch_module_args({}), pytest.raises(SystemExit):
        box.guarded(module, lambda given: work(box, given))
    answer = json.loads(capsys.readouterr().out)
    assert answer["failed"] and answer["disk_full"] is is_full
