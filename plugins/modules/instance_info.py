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
  description: The machines, in the order of provider, run and id.
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
"""

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, run_module

ARGUMENT_SPEC = PROVIDER_OPTIONS | {
    "run": {"type": "str"},
    "workload": {"type": "str"},
    "state": {"type": "str", "choices": ["pending", "running", "stopped", "preempted", "failed", "unknown"]},
    "all": {"type": "bool", "default": False},
}
CONDITIONS = {}


def run(call):
    """Return the machines that the clouds asked list and the options let through."""
    from gpuyard import config, records, runs

    clouds = config.connect(call.option("provider"), **call.site(), progress=call.progress)
    wanted = call.given("run", "workload", "state")
    found = [
        values
        for values in map(records.instance_to_dict, runs.instances(clouds))
        if (values["run"] or call.params["all"]) and all(values[name] == value for name, value in wanted.items())
    ]
    return {"instances": sorted(found, key=lambda one: (one["provider"], one["run"], one["id"]))}


def main():
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
