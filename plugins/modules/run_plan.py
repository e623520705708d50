#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything about a run that can be known before it costs money."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_plan
short_description: Everything about a run that can be known before it costs money
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Reads and checks the workload, names the run, looks whether the run has a machine, and asks the bucket what it has
    of it.
  - Ranks what could be rented, says which offer will be taken and why, and what the run is expected to cost.
  - Fails with one sentence when the run could not succeed, such as when a variable of the environment that the
    workload requires is not set, the SSH key or the bucket cannot be used, no offer fits, or the run has finished.
  - Says which writing calls to the providers' APIs a launch would make now, in their order, and makes none of them.
  - Changes nothing but the file that O(report) names. The plan holds no secret.
  - What the machine has to offer is said by the workload. A condition given here takes the place of the workload's; of
    the price limits the lower one counts.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.query
  - gpuyard.cloud.plan
  - gpuyard.cloud.report
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  format:
    description: In which form RV(text) shows the plan.
    type: str
    choices: [table, json]
    default: table
seealso:
  - module: gpuyard.cloud.instance
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: Plan a run
  gpuyard.cloud.run_plan:
    workload: miniprover
    max_price_per_hour: 0.50
  register: planned

- name: Plan a smaller run of one stage
  gpuyard.cloud.run_plan:
    workload: prover
    profiles: [small]
    overrides: [epochs=1, training.batch_size=4]
    stage: finetune
  register: planned

- name: Plan how the interrupted run goes on
  gpuyard.cloud.run_plan:
    mode: resume
  register: planned
"""

RETURN = r"""
plan:
  description: The plan.
  returned: success
  type: dict
  contains:
    run:
      description: The name of the run.
      type: str
    mode:
      description: V(launch) or V(resume).
      type: str
    provider:
      description:
        - The provider at which the machine is looked for and rented, for O(gpuyard.cloud.instance#module:provider).
          Empty for all of them, which is also so when a lost machine has left something at another one.
      type: str
    replace_preempted:
      description: Whether the bucket holds a checkpoint to go on from, so that what is left of a lost machine may go.
      type: bool
    workload:
      description: The workload as it goes to the machine.
      type: dict
    tree:
      description: The folder with the workload's repository on the controller; empty for one that is cloned.
      type: str
    fingerprint:
      description: What M(gpuyard.cloud.convergence) recognises a machine by that is in shape already.
      type: str
    parts:
      description: The parts of which the fingerprint consists, by name, for M(gpuyard.cloud.convergence).
      type: dict
    not_beside:
      description: The parts that wait until no stage runs, for M(gpuyard.cloud.convergence).
      type: list
      elements: str
    disk_gb:
      description: The disk to rent, in gigabytes.
      type: float
    workload_file:
      description: The file that the workload was read from.
      type: str
    image:
      description: The container image to rent with, where the provider takes one.
      type: str
    environment_required:
      description: The names of the variables that have to reach the machine as secrets.
      type: list
      elements: str
    environment_optional:
      description: The names of the variables that reach the machine as secrets when they are set.
      type: list
      elements: str
    environment_files:
      description: The paths of secret files on the controller, by the variables that are to name them on the machine.
      type: dict
    nodes:
      description:
        - The nodes of the run, each with its C(node) (V(main-0) for the one node of a run), the C(pools) whose stages
          it runs, the C(place) of its checkpoints in the bucket, and its C(offers), C(disk_gb), C(instance),
          C(provider), C(replace_preempted) and C(price_per_hour_usd).
        - A node whose stages are done and that has no machine is not among them.
      type: list
      elements: dict
    offers:
      description: What fits the first node to be rented, the best first; empty when every node has a machine.
      type: list
      elements: dict
    cost:
      description: What the run is expected to cost in US dollars, and at worst.
      type: dict
    bucket:
      description: Where the checkpoints go, without keys. C(url) is empty for nowhere.
      type: dict
      contains:
        url:
          description: The address.
          type: str
        endpoint:
          description: The S3 service, as the controller reaches it.
          type: str
        endpoint_from_boxes:
          description: The S3 service, as the machine reaches it.
          type: str
        region:
          description: The region of the S3 service.
          type: str
    mirrors:
      description: Where the machine gets toolchains from instead of their official servers, by toolchain.
      type: dict
    origins:
      description:
        - The values of the workload that are not its file's own, each with its C(key), its C(value) and the C(layer)
          that says it, such as C(profile small) or C(-e overrides).
      type: list
      elements: dict
    choice:
      description: Which stages are to run.
      type: dict
      contains:
        stage:
          description: The one stage; empty for all.
          type: str
        from_stage:
          description: The stage from which on everything runs; empty for what is left.
          type: str
        until_stage:
          description: The last stage to run; empty for all that are left.
          type: str
        iteration:
          description: The iteration that is meant; V(-1) for the current one.
          type: int
    progress:
      description: The progress in the newest checkpoint; empty when there is none.
      type: dict
    checkpoint:
      description: The number of the newest checkpoint in the bucket, whole or not; V(0) when there is none.
      type: int
    lease_end:
      description: Until when the run is rented, in seconds since 1970, null for no end.
      type: float
    budget_usd:
      description: What all machines of the run may cost together, in US dollars, null for no limit.
      type: float
    expected_checkpoint:
      description:
        - The number of the newest checkpoint that a machine should find in the bucket. V(0) where there is certainly
          none, V(-1) where this controller cannot know.
      type: int
    restore:
      description: The number of the checkpoint that O(restore) asks for; V(-1) for the newest one.
      type: int
    node:
      description: The node whose machine the run goes on with.
      type: str
    volumes:
      description:
        - What the nodes get from their clouds as volumes, with cloud, region and price in US dollars a month. C(id) is
          empty for one that has to be made.
      type: list
      elements: dict
    turn_pools:
      description: The pools whose stages that machine runs, of a run that moves; empty for every stage.
      type: list
      elements: str
    behind:
      description: The nodes whose machines the run leaves.
      type: list
      elements: str
    by_pools:
      description:
        - On which machines a run of several pools goes on, what moving between them costs and saves, and the C(reason).
          Empty for a run of one pool, and where nothing has to be rented.
      type: dict
    instance:
      description: The run's machine; empty when it has none.
      type: dict
    connection:
      description: What Ansible needs to reach that machine, as host variables.
      type: dict
costs:
  description:
    - What the run costs in all, in US dollars. C(machines_usd) and C(all_usd) have the expected and the worst value.
    - C(loss_usd) is what one loss of an interruptible machine costs, and is part of the worst value.
    - What nobody names a price for is V(null), and C(notes) say so.
  returned: success
  type: dict
  sample:
    machines_usd: {expected: 13.0, worst: 19.5}
    bucket_gb: 110.0
    bucket_usd_per_month: 2.53
    traffic_gb: 110.0
    traffic_usd: 0.55
    traffic_usd_per_gb: 0.005
    loss_usd: null
    all_usd: {expected: 16.08, worst: 22.58}
    lower_bound: false
    notes: []
actions:
  description: What a launch would do now, in words.
  returned: success
  type: list
  elements: str
planned_calls:
  description: The writing calls to the providers' APIs that a launch would make now, in their order.
  returned: success
  type: list
  elements: dict
text:
  description: All of it in the form that O(format) names.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    PLAN_OPTIONS,
    REPORT_OPTIONS,
    Call,
    plan_request,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PLAN_OPTIONS
    | REPORT_OPTIONS
    | {
        "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return the plan."""
    from gpuyard.api import plan, reports

    reports.check_file(call.option("report"))
    made = plan.plan(call.site(), plan_request(call), progress=call.progress)
    text = made.render(call.params["format"])
    return made.to_dict() | reports.keep(call.option("report"), text, check=call.check_mode, progress=call.progress)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
