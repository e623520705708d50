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
      - When it is not said, the workload is the one of the run.
    type: str
  run:
    description:
      - The name of the run.
      - When it is not said, a launch takes the one run of this workload that has a machine, else the first free name.
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
      - The path of the private SSH key with which the machine will be reached. When it is not said, gpuyard uses a
        key of its own.
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
"""
