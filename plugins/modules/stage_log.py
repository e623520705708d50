#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The log of a stage, wherever it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stage_log
short_description: The log of a stage, and what a run is doing
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Shows the log of a stage from the run's machine, or from its newest checkpoint when the machine is gone.
  - With O(follow), shows what all nodes of the run do as it happens, until it ends.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  run:
    description: The name of the run. By default, the only one that there is.
    type: str
  node:
    description: The node of a run of several, C(<pool>-<number>). Default, the first whose machine runs.
    type: str
  stage:
    description: The stage. By default, the one whose log was written to last.
    type: str
  iteration:
    description: The iteration. By default, the last one of the stage.
    type: int
  lines:
    description: How many lines to show, from the end of the log.
    type: int
    default: 50
  errors:
    description:
      - Show only errors and warnings. These are the lines that hold, in capitals or not, C(error), C(exception),
        C(traceback), C(panicked), C(fatal), C(killed), C(out of memory), C(warn) or C(warning), C(segmentation fault)
        or C(core dumped).
      - Of a Python traceback and of a Rust panic all lines are shown, also when that makes more than O(lines).
      - The machine itself looks for them, so only what is shown travels.
    type: bool
    default: false
  source:
    description:
      - V(run), the log of a stage; V(provider), what the run's provider keeps of the machine itself (Vast.ai and RunPod
        do), which needs no SSH.
    type: str
    choices: [run, provider]
    default: run
  follow:
    description: Show the run's progress instead of a log, until it ends. A run that does not finish fails the task.
    type: bool
    default: false
  ssh_key:
    description:
      - The path of the private SSH key with which the machine is reached. By default, gpuyard's own.
      - A running machine that this controller has never reached gets this key as well, where its provider can add one
        to a machine that lives.
    type: path
seealso:
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: Show the end of the search's log
  gpuyard.cloud.stage_log:
    run: miniprover-0
    stage: search

- name: Watch the run until it ends
  gpuyard.cloud.stage_log:
    run: miniprover-0
    follow: true
"""

RETURN = r"""
lines:
  description: The lines of the log; empty with O(follow).
  returned: success
  type: list
  elements: str
links:
  description: Where experiment trackers show the run, as its logs say it, by their names.
  returned: without O(follow)
  type: dict
  sample: {wandb: "https://wandb.ai/me/canyon/runs/1a2b3c4d"}
state:
  description: How the run stood when O(follow) ended, V(finished), V(idle), V(failed) or V(interrupted).
  returned: with O(follow)
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str"},
        "node": {"type": "str"},
        "stage": {"type": "str"},
        "iteration": {"type": "int"},
        "lines": {"type": "int", "default": 50},
        "errors": {"type": "bool", "default": False},
        "source": {"type": "str", "choices": ["run", "provider"], "default": "run"},
        "follow": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Show a log, or follow a run."""
    from gpuyard.api import logs

    if call.params["follow"]:
        return logs.follow(call.site(), call.option("run"), progress=call.progress).to_dict()
    request = logs.LogRequest(
        **call.given("run", "node", "stage", "iteration"),
        lines=call.params["lines"],
        errors=call.params["errors"],
        from_provider=call.params["source"] == "provider",
    )
    return logs.read(call.site(), request, progress=call.progress).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
