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
  - Changes nothing. The plan holds no secret.
  - What the machine has to offer is said by the workload. A condition given here takes the place of the workload's; of
    the price limits the lower one counts.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.query
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  mode:
    description:
      - With V(launch), a run is started, or looked at again when it has a machine.
      - With V(resume), a run that was interrupted goes on. When no run is named, it is the one that can be resumed;
        when there are several, they are listed and nothing is done.
    type: str
    choices: [launch, resume]
    default: launch
  workload:
    description:
      - The workload, a name in C(workloads/) or the path of a YAML file.
      - By default, the workload is the one of the run.
    type: str
  run:
    description:
      - The name of the run.
      - By default, a launch takes the one run of this workload that has a machine, else the first free name.
    type: str
  offer:
    description: The id of the one offer to take, as RV(gpuyard.cloud.offer_info#module:offers) says it.
    type: str
  restore:
    description:
      - The number of the checkpoint to go on from, in place of the newest one. It has to be in the bucket.
      - The way on when the newest one cannot be read.
    type: int
  ssh_key:
    description:
      - The path of the private SSH key with which the machine will be reached. By default, gpuyard uses a key
        of its own.
    type: path
  converge:
    description:
      - How much of the machine the play will look at. The plan does not depend on it.
      - The play's own switches are options here so that a wrong value is refused before anything is rented.
    type: str
    choices: [auto, full]
    default: auto
  follow:
    description: Whether the play will show the stages' progress. The plan does not depend on it.
    type: bool
    default: false
  shutdown:
    description: Whether the play will end the rental when the run ends. It is refused where there is no bucket.
    type: bool
    default: false
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
    offers:
      description: What fits, the best first; empty when the run has a machine.
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
    progress:
      description: The progress in the newest checkpoint; empty when there is none.
      type: dict
    restore:
      description: The number of the checkpoint that O(restore) asks for; V(-1) for the newest one.
      type: int
    instance:
      description: The run's machine; empty when it has none.
      type: dict
    connection:
      description: What Ansible needs to reach that machine, as host variables.
      type: dict
text:
  description: The plan for people.
  returned: success
  type: str
"""

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    QUERY_OPTIONS,
    run_module,
)

ARGUMENT_SPEC = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | QUERY_OPTIONS
    | {
        "mode": {"type": "str", "choices": ["launch", "resume"], "default": "launch"},
        "workload": {"type": "str"},
        "run": {"type": "str"},
        "offer": {"type": "str"},
        "restore": {"type": "int"},
        "ssh_key": {"type": "path", "no_log": False},
        "converge": {"type": "str", "choices": ["auto", "full"], "default": "auto"},
        "follow": {"type": "bool", "default": False},
        "shutdown": {"type": "bool", "default": False},
    }
)
CONDITIONS = {}


def run(call):
    """Return the plan."""
    from gpuyard import planning
    from gpuyard import ssh

    request = planning.PlanRequest(
        mode=call.params["mode"],
        bucket=call.params["bucket"],
        max_price_per_hour_usd=call.option("max_price_per_hour"),
        shutdown=call.params["shutdown"],
        conditions=call.given(*(name for name in QUERY_OPTIONS if name not in ("market", "max_price_per_hour"))),
        **call.given("workload", "run", "provider", "market", "ssh_key", "bucket_endpoint", "offer", "restore"),
        **call.site(),
    )
    made = planning.make(request, progress=call.progress)
    machine = made.run.machine
    return {
        "plan": made.to_dict() | {"connection": ssh.ansible_vars(machine, made.key) if machine else {}},
        "text": "\n".join(made.text),
    }


def main():
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
