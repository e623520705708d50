#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run with a machine for each of its nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_launch
short_description: Plan a run, and have a machine for each of its nodes
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Makes the plan of M(gpuyard.cloud.run_plan), shows it, and then has a machine for each node of the run, as
    M(gpuyard.cloud.instance) has one for one. All nodes are rented side by side, each exactly once.
  - A run has one node, unless a pool of its workload has more. Where every pool has one node, one machine serves all of
    them, and is what the strictest of them needs.
  - No two nodes begin with the same machine. When one cannot be had, what was rented for the others in this task goes
    back, confirmed, unless the run had a machine before; the task fails with one sentence.
  - A machine that the run has is kept. One that its cloud has taken away is replaced only with O(mode=resume), and only
    where the bucket holds a checkpoint of its node.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.query
  - gpuyard.cloud.plan
attributes:
  check_mode:
    support: full
    details: RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: full
options:
  timeout:
    description: How many seconds to wait for one machine before it is given back and the next offer is tried.
    type: int
    default: 900
  spent:
    description:
      - What the same launch has taken before, when it begins anew since the disk of its machine was full, as
        RV(hosts) says it. It counts towards the limits of the workload.
    type: dict
    default: {}
seealso:
  - module: gpuyard.cloud.run_plan
  - module: gpuyard.cloud.instance
"""

EXAMPLES = r"""
- name: Have the machines of a run
  gpuyard.cloud.run_launch:
    workload: miniprover
  register: launched

- name: Take them into the inventory
  ansible.builtin.add_host:
    name: "{{ item.name }}"
    ansible_host: "{{ item.vars.ansible_host }}"
  loop: "{{ launched.hosts }}"
"""

RETURN = r"""
plan:
  description: The plan, as RV(gpuyard.cloud.run_plan#module:plan).
  returned: success
  type: dict
hosts:
  description: The nodes that have a machine, each as a host.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the host, that of the run where it has one node, else C(<run>.<node>).
      type: str
    node:
      description: The node, C(<pool>-<number>).
      type: str
    pool:
      description: The pool of the node.
      type: str
    stages:
      description: What the box is to be told of its node, C(node), C(pools) and C(place); empty for a run of one node.
      type: dict
    restore:
      description: Whether its machine has to look in the bucket for a checkpoint before the stages start.
      type: bool
    rented:
      description: Whether this task has rented its machine, which then holds no work yet.
      type: bool
    spent:
      description: What it took to rent it, C(attempts), C(usd) and C(seconds), and when that was, C(rented_at).
      type: dict
    instance:
      description: The machine, as RV(gpuyard.cloud.instance_info#module:instances) describes each.
      type: dict
    vars:
      description: What Ansible needs to reach it, as host variables.
      type: dict
price_per_hour_usd:
  description: What the machines of the run cost an hour as they are now.
  returned: success
  type: float
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
planned_calls:
  description: The writing calls to the providers' APIs that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
failure:
  description: What went wrong, for programs.
  returned: failure
  type: dict
  sample: {kind: NoCapacityError, provider: vast}
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PLAN_OPTIONS, Call, plan_request, run_module

ARGUMENT_SPEC: dict[str, Any] = PLAN_OPTIONS | {
    "timeout": {"type": "int", "default": 900},
    "spent": {"type": "dict", "default": {}},
}
CONDITIONS: dict[str, Any] = {}
# What launch.yml sends to every machine, whatever its state.
FIRST_ON_MACHINES = ("convergence", "stage_session")


def run(call: Call) -> dict[str, Any]:
    """Plan the run, and have its machines."""
    from gpuyard import fingerprint
    from gpuyard.api.launch import launch
    from gpuyard.renting.rent import Spent

    call.next_on_machines([*FIRST_ON_MACHINES, *fingerprint.modules({})])
    done = launch(
        call.site(),
        plan_request(call),
        timeout_s=call.params["timeout"],
        spent=Spent.from_dict(call.params["spent"]),
        check=call.check_mode,
        progress=call.progress,
        planned=lambda plan: call.next_on_machines(fingerprint.modules(plan.workload.to_box())),
    )
    return done.to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
