# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a launch says of a machine on which stages run."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"running": False, "differs": ["repository"], "todo": ["repository"]}, []),
        ({"matches": True}, []),
        ({}, ["Stages run on canyon-0, nothing is changed."]),
        (
            {"differs": ["repository", "python"]},
            [
                "Stages run on canyon-0, nothing is changed. Here is another state of: the repository, the Python "
                "environment.",
                "-e update=true prepares it beside what the running stage uses, and the next stage takes it.",
            ],
        ),
        (
            {"differs": ["build", "gpuyard"], "todo": ["build"], "waiting": ["gpuyard"]},
            [
                "Stages run on canyon-0. Prepared beside what the running stage uses: the build.",
                "This waits until no stage runs: gpuyard's own code.",
            ],
        ),
        # An update would not help, so it is not advised.
        (
            {"differs": ["gpuyard"], "waiting": ["gpuyard"]},
            ["Stages run on canyon-0, nothing is changed.", "This waits until no stage runs: gpuyard's own code."],
        ),
    ],
)
def test_what_is_said_of_a_machine_at_work(found: dict[str, Any], said: list[str]) -> None:
    action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.action.convergence").ActionModule
    lines: list[str] = []

    class Shown(action):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            """Need no connection."""

        def _show(self, line: str) -> None:
            lines.append(line)

    nothing = {"matches": False, "running": True, "todo": [], "waiting": [], "differs": []}
    Shown()._tell(nothing | found, "canyon-0")
    assert lines == said
