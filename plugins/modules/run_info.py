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
          stages are left, V(interrupted), V(failed) or V(finished); V(unreachable) when it does not answer in time. It
          bills in each of these states.
        - Else V(pending) or V(stopped), as its machine is; V(preempted) when the provider has taken the machine away;
          V(interrupted) when it has no machine and its checkpoints do not say that it ended; V(cancelled) when it was
          torn down, or when all its machines were ended before it had a checkpoint.
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
    stages:
      description:
        - What its machine says of its stages, as C(gpuyard.box.stages status --json) prints it there. C(state) is one
          of those above.
        - With V(failed), C(failure) holds C(stage), C(iteration), C(exit_code), C(reason) and C(last_line).
        - Empty when there is no machine that runs, or with O(ask_boxes=false).
      type: dict
      sample: {state: running, iteration: 0, stage: search, stages_done: 1, stages_total: 4, failure: null}
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

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import BUCKET_OPTIONS, PROVIDER_OPTIONS, run_module

ARGUMENT_SPEC = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str"},
        "workload": {"type": "str"},
        "ask_boxes": {"type": "bool", "default": True},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS = {}


def run(call):
    """Return the runs that the clouds and the bucket know."""
    from gpuyard import config, records
    from gpuyard.box import checkpoints
    from gpuyard.renting import runs, survey, watch

    clouds = config.connect(call.option("provider"), **call.site(), progress=call.progress)
    seen = survey.take(clouds)
    machines = seen.answered()
    settings = config.s3_settings(call.params["bucket"], bucket_endpoint=call.option("bucket_endpoint"), **call.site())
    unanswered = seen.unanswered()
    warnings = list(unanswered.values())
    try:
        store = runs.open_bucket(settings)
        runs.check_answers(store)
        kept = runs.stored(store, costs=True)
        warnings += kept.complaints
    except checkpoints.CheckpointError as error:
        kept = runs.Stored()
        warnings.append(f"The bucket cannot be read, so runs without a machine are missing: {error}")
    found = runs.join(machines, kept, [cloud.name for cloud in clouds if cloud.name not in seen.errors])
    unknown = []
    if run_name := call.option("run"):
        names = ", ".join(one.name for one in found) or "none"
        found = [one for one in found if one.name == run_name]
        if not found:
            unknown = [f"run={run_name!r} is not known to the clouds and the bucket; the runs there are: {names}."]
    if workload := call.option("workload"):
        found = [one for one in found if one.workload == workload]
    if call.params["ask_boxes"] and any(one.is_up for one in found):
        found = watch.asked(found, config.ssh_key(call.option("ssh_key")))
    return {
        "runs": [records.run_to_dict(one) for one in found],
        "unanswered": unanswered,
        "text": "\n".join([*(unknown or records.run_table(found)), *warnings]),
    }


def main():
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
