#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rented machines."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_info
short_description: The rented machines
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lists the machines that gpuyard rented, or all machines of the accounts.
  - A cloud that does not answer fails the task, so that a machine that cannot be seen is never taken for one that is
    gone.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  run:
    description: Only machines of this run.
    type: str
  workload:
    description: Only machines of runs of this workload.
    type: str
  state:
    description: Only machines in this state.
    type: str
    choices: [pending, running, stopped, preempted, failed, unknown]
  all:
    description: Also machines that gpuyard did not rent.
    type: bool
    default: false
  partial:
    description:
      - Whether one cloud that does not answer is only told in RV(unanswered). Without this the task fails, since what
        cannot be seen may still be there.
      - With V(true) the task fails only when no cloud answers.
    type: bool
    default: false
  ssh_key:
    description: The path of the private SSH key for the connections. By default, gpuyard's own key.
    type: path
seealso:
  - module: gpuyard.cloud.instance
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: List what runs for a workload
  gpuyard.cloud.instance_info:
    workload: miniprover
    state: running
  register: rented

- name: List everything that the accounts hold
  gpuyard.cloud.instance_info:
    all: true
"""

RETURN = r"""
instances:
  description:
    - The machines, in the order of provider, run and id.
    - C(connection) of each is what Ansible needs to reach it, as host variables; empty as long as it has no address.
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vast
      id: "1234567"
      run: miniprover-0
      workload: miniprover
      state: running
      region: SE
      gpu_name: RTX 4090
      price_per_hour_usd: 0.43
      emulated: false
      connection:
        ansible_host: 203.0.113.7
        ansible_port: 40022
        ansible_user: root
unanswered:
  description: For each cloud that could not be asked, by its name, a sentence with the reason.
  returned: success
  type: dict
  sample: {}
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "run": {"type": "str"},
    "workload": {"type": "str"},
    "state": {"type": "str", "choices": ["pending", "running", "stopped", "preempted", "failed", "unknown"]},
    "all": {"type": "bool", "default": False},
    "partial": {"type": "bool", "default": False},
    "ssh_key": {"type": "path", "no_log": False},
}
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return the machines that the clouds asked list and the options let through."""
    from gpuyard.api import instances

    request = instances.InstancesRequest(
        **call.given("run", "workload", "state"), foreign=call.params["all"], partial=call.params["partial"]
    )
    return instances.find(call.site(), request).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
