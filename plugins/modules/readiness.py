#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether everything is there that a launch needs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: readiness
short_description: Check what a launch needs, before anything is rented
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Asks each cloud that has a key whether it takes the key, lets it read what has to be read, and has credit.
  - Lists the bucket, writes a small object below C(_check/), reads it back and deletes it; compares the clocks.
  - Checks the SSH key and the programs of the controller.
  - With O(workload), also the variables that it requires and, where it names E(WANDB_API_KEY), whether Weights & Biases
    (or the server that E(WANDB_BASE_URL) names) takes that key.
  - What is missing does not fail the task; RV(failed_checks) names it.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.report
attributes:
  check_mode:
    support: full
    details: The bucket is checked in check mode as well, since nothing stays of that.
  diff_mode:
    support: none
options:
  workload:
    description: The workload that is to be launched, a name in C(workloads/) or the path of a YAML file.
    type: str
  profiles:
    description: The profiles of the workload to use, each over the one before.
    type: list
    elements: str
    default: []
  ssh_key:
    description: The path of the private SSH key to check. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_plan
"""

EXAMPLES = r"""
- name: Check what a launch needs
  gpuyard.cloud.readiness:
    workload: miniprover
  register: ready

- name: Refuse to go on without it
  ansible.builtin.assert:
    that: ready.failed_checks | length == 0
"""

RETURN = r"""
checks:
  description:
    - What was looked at. C(level) is V(ok), V(warning), V(failed) for what a launch would fail at, or V(skipped).
    - C(todo) says what to do, where something is to be done.
  returned: success
  type: list
  elements: dict
  sample:
    - what: Vast.ai
      level: failed
      found: "Vast.ai refused: Invalid user key"
      todo: Put a valid key into VAST_API_KEY.
failed_checks:
  description: What a launch would fail at.
  returned: success
  type: list
  elements: str
  sample: [Vast.ai]
text:
  description: The same as a table for people.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    REPORT_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | REPORT_OPTIONS
    | {
        "workload": {"type": "str"},
        "profiles": {"type": "list", "elements": "str", "default": []},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return what a launch needs, and whether it is there."""
    from gpuyard.api import check, reports

    reports.check_file(call.option("report"))
    request = check.CheckRequest(call.option("workload"), call.params["profiles"])
    done = check.check(call.site(), request)
    return done.to_dict() | reports.keep(
        call.option("report"), done.render(), check=call.check_mode, progress=call.progress
    )


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
