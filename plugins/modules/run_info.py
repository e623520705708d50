#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runs: machines joined with what the bucket knows."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_info
short_description: The runs, their machines, progress and cost
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Joins the machines that the clouds list with the records and checkpoints in the bucket.
  - Asks each machine that runs over SSH what its stages do, all at the same time and for five seconds altogether.
  - A bucket that does not answer is a warning in RV(text), and the machines are listed all the same.
  - A cloud that does not answer is in RV(unanswered), and the others' machines are listed all the same; the task fails
    when none answers.
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
    description: Only this run.
    type: str
  workload:
    description: Only runs of this workload.
    type: str
  ask_boxes:
    description: Whether to ask the machines. Without it a machine that runs is V(running), whatever its stages do.
    type: bool
    default: true
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached. By default, gpuyard's own.
      - A running machine that this controller has never reached gets this key as well, where its provider can add one
        to a machine that lives.
    type: path
seealso:
  - module: gpuyard.cloud.instance_info
  - module: gpuyard.cloud.run_plan
"""

EXAMPLES = r"""
- name: Show all runs
  gpuyard.cloud.run_info:
  register: all_runs
"""

RETURN = r"""
runs:
  description: The runs, in the order of their names.
  returned: success
  type: list
  elements: dict
  contains:
    run:
      description: The name of the run.
      type: str
    workload:
      description: The name of its workload.
      type: str
    state:
      description:
        - Of a machine that runs, what its stages do. V(not-started), V(running), V(idle) when nothing runs though
          stages are left, V(waiting) when a machine of another pool has to go on, V(interrupted), V(failed) or
          V(finished); V(unreachable) when it does not answer in time. It bills in each of these states.
        - Else V(pending) or V(stopped), as its machine is; V(preempted) when the provider has taken the machine away;
          V(interrupted) when it has no machine and its checkpoints do not say that it ended; V(cancelled) when it was
          torn down, or when all its machines were ended before it had a checkpoint.
        - Of several nodes it is the state of the one that most needs somebody.
        - V(finished) or V(failed), as its checkpoints say it ended, when no machine says otherwise.
      type: str
    resumable:
      description: Whether it has no running machine and can go on from its checkpoint.
      type: bool
    progress:
      description: What the newest checkpoint says; empty when there is none.
      type: dict
    problem:
      description: Why its newest checkpoint cannot be read, and what to do; empty when nothing is wrong.
      type: str
    provider:
      description: The provider of its machine, empty when it has none.
      type: str
    price_per_hour_usd:
      description: What its machines cost an hour as they are now; a stopped or lost one costs its disk only at Vast.
      type: float
    hours:
      description: For how long its machines have been rented.
      type: float
    cost_usd:
      description: What its machines of now have cost so far, as the price and the hours say.
      type: float
    lease_end:
      description: Until when it is rented, in seconds since 1970, null for no end.
      type: float
    budget_usd:
      description: What all its machines may cost together, in US dollars, null for no limit.
      type: float
    spent_usd:
      description:
        - What all its machines have cost so far, those included that are gone, as the ledger in the bucket says
          (C(<run>/ledger/)). Without a bucket, what its machines of now have cost.
        - No provider says when it took a machine away. Such a machine counts at its full price until it was last seen
          alive, by a task or by its newest checkpoint, so this is a lower bound. Traffic and bucket are not in it.
      type: float
    instances:
      description: Its machines.
      type: list
      elements: dict
    nodes:
      description:
        - Its nodes, by pool and number, each with its C(node), C(state), C(progress), C(checkpoint), C(problem),
          C(price_per_hour_usd), C(hours), C(spent_usd), C(instances) and C(stages), as they are here for the run.
        - C(machines) says what each of its machines has cost, those that are gone included.
        - What is said here of C(progress), C(checkpoint), C(problem) and C(stages) is that of the first node.
      type: list
      elements: dict
    stages:
      description:
        - What its machine says of its stages, as C(gpuyard.box.stages status --json) prints it there. C(state) is one
          of those above.
        - With V(failed), C(failure) holds C(stage), C(iteration), C(exit_code), C(reason) and C(last_line).
        - C(machine) is what the machine itself says. C(gpus), each with C(index), C(name), C(use_percent),
          C(memory_used_gb) and C(memory_total_gb), as C(nvidia-smi) has them; empty where there is none. C(disk) of
          the persistent root, with C(total_gb), C(used_gb), C(free_gb) and C(used_percent). C(load), the processes
          that want a processor in the last minute, of C(cores).
        - C(alerts) are those that have begun and not ended (role P(gpuyard.cloud.monitoring#role)), each with C(alert),
          C(text) and C(time).
        - C(links) are the addresses at which experiment trackers (C(wandb), C(mlflow), C(tensorboard)) show the run, as
          its logs say them.
        - Empty when there is no machine that runs, or with O(ask_boxes=false).
      type: dict
      sample:
        state: running
        iteration: 0
        stage: search
        stages_done: 1
        stages_total: 4
        failure: null
        machine:
          gpus:
            - {index: 0, name: NVIDIA A100, use_percent: 97, memory_used_gb: 34.2, memory_total_gb: 85.9}
          disk: {path: /mnt/persistent, total_gb: 200, used_gb: 84, free_gb: 116, used_percent: 42}
          load: 3.1
          cores: 16
        alerts: []
        links: {wandb: "https://wandb.ai/me/canyon/runs/1a2b3c4d"}
unanswered:
  description: For each cloud that could not be asked, by its name, a sentence with the reason.
  returned: success
  type: dict
  sample: {}
text:
  description: The same as a table for people.
  returned: success
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
        "workload": {"type": "str"},
        "ask_boxes": {"type": "bool", "default": True},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return the runs that the clouds and the bucket know."""
    from gpuyard.api import status

    request = status.StatusRequest(**call.given("run", "workload"), ask_boxes=call.params["ask_boxes"])
    return status.status(call.site(), request).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
