# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation shared by what plans a run."""

from __future__ import annotations


class ModuleDocFragment:
    """What is to run, and how."""

    DOCUMENTATION = r"""
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
  profiles:
    description: The profiles of the workload to use, each over the one before.
    type: list
    elements: str
    default: []
  overrides:
    description:
      - Values in place of the workload's and its profiles', each as C(name=value), in a list or in a text in which they
        are apart by spaces or commas.
      - The name is that of a parameter of the workload, or a key of the workload with dots (C(needs.gpu_count),
        C(stages.finetune.timeout)). Anything else goes to the commands of the stages that take overrides.
    type: raw
  iterations:
    description: How many iterations the run has, in place of what the workload says.
    type: int
  stage:
    description: The one stage to run. It runs again where it is done, and goes on where it was cut off.
    type: str
  from_stage:
    description: The stage from which on everything runs, again where it is done.
    type: str
  until_stage:
    description:
      - The last stage to run, where it comes next after the place where the run begins. What comes later is left for
        another launch.
    type: str
  iteration:
    description:
      - The iteration that O(stage) or O(from_stage) means. When it is not said, it is the current one.
      - Without them, everything from this iteration on runs.
    type: int
  lease_hours:
    description:
      - For how many hours from now on the run is rented; V(0) is without end. The play C(reap.yml) ends it then.
      - By default, what the run was launched with, else what its workload says, else it has no end.
    type: float
  budget_usd:
    description:
      - US dollars that all machines of the run may cost together; V(0) is no limit. It needs a bucket, which counts.
      - A launch that is expected to cost more is refused. Who follows the run, and the play C(reap.yml), warn at 80 %,
        and at 100 % let it save its work and end it.
      - By default, what the run was launched with, else what its workload says, else there is none.
    type: float
  offer:
    description: The id of the one offer to take, as RV(gpuyard.cloud.offer_info#module:offers) says it.
    type: str
  box:
    description:
      - The one box of the user's own to take, by its name in the inventory. It stands for O(offer) with
        V(provider=own).
    type: str
  move:
    description:
      - With O(mode=resume), whether a run that has a machine goes on with another one, which O(provider), O(offer) or
        O(box) says.
      - Before anything is rented the stages end in good order, and their last checkpoint has to be whole in the bucket.
        The machine that the run leaves is in RV(plan) as C(behind); whoever starts the stages on the other one ends it
        before.
    type: bool
    default: false
  restore:
    description:
      - The number of the checkpoint to go on from, in place of the newest one. It has to be in the bucket.
      - The way on when the newest one cannot be read.
    type: int
  update:
    description:
      - What a run goes on with that has begun, where the bucket has the workload and the source that it began with.
      - With V(false), it is those. What is different here is named.
      - With V(true), it is the workload and the source that are here, which take the place of the bucket's.
    type: bool
    default: false
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
    description:
      - Whether the play will show the stages' progress until the run ends.
      - A run whose stages name several pools of one node each then moves from machine to machine between its stages,
        where that saves more than it costs. Else one machine runs them all.
      - By default, it stays with O(shutdown) only.
    type: bool
  shutdown:
    description:
      - Whether the rental will end when the run ends. It is refused where there is no bucket.
      - The play ends it as long as it stays, else the machine itself, where its cloud gives it a key for that.
    type: bool
    default: false
"""
