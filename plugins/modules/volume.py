#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A volume of an account or of a run: there, as large as wanted, attached, or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Make, grow, attach, detach and delete storage that outlives a machine
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Brings one volume into a state. A volume is block storage, a shared filesystem, a network volume or a local volume,
    whatever the cloud has.
  - It is found by its name, or by its run where it belongs to one, and is never made twice. A create whose answer was
    lost is looked up by its label.
  - One that is smaller than O(size_gb) is made larger, where the cloud can. It never shrinks, and never moves to
    another region.
  - A volume bills until it is deleted, whether a machine has it or not. One that a living machine has is not deleted,
    and one that gpuyard did not make only with O(foreign=true).
  - What a cloud cannot do is refused before it is asked, in a sentence that names the clouds that can.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
    details: RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: full
options:
  state:
    description:
      - With V(present), it is there, can be used, and is as large as O(size_gb); with O(attached_to), that machine
        has it.
      - With V(absent), it is deleted with everything on it, and confirmed gone. With O(run), every
        volume of the run.
      - With V(attached) and V(detached), one that is there is given to a living machine, or taken from it.
    type: str
    choices: [present, absent, attached, detached]
    default: present
  name:
    description:
      - What it is called, for one that belongs to the account and outlives every run.
      - At the cloud it is called C(gpuyard-) and this name, so that it is known as gpuyard's. One of exactly this name
        is found as well.
    type: str
  run:
    description: The run that it belongs to, in place of a name. A run has one volume at a cloud.
    type: str
  id:
    description: The id of one that is there, in place of its name.
    type: str
  workload:
    description: The run's workload, which is on the label. By default, as the run's machine at that cloud says.
    type: str
  kind:
    description:
      - Whether a volume or a filesystem is meant, at a cloud that has both. By default, a volume where there is one.
    type: str
    choices: [volume, filesystem]
  size_gb:
    description: The least size, in gigabytes. Needed to make one, but for filesystems that grow by themselves.
    type: float
  region:
    description: Where it is to be, in the provider's own spelling. Machines of other regions cannot have it.
    type: str
  options:
    description: What only one provider knows, such as a tier of Vultr's block storage.
    type: dict
    default: {}
  attached_to:
    description: The machine that is to have it, by its id or its run.
    type: str
  foreign:
    description: Whether one may be deleted that gpuyard did not make.
    type: bool
    default: false
  timeout:
    description: How many seconds it may take until it can be used.
    type: int
    default: 900
seealso:
  - module: gpuyard.cloud.volume_info
  - module: gpuyard.cloud.snapshot
"""

EXAMPLES = r"""
- name: Keep a terabyte in San Jose for data sets
  gpuyard.cloud.volume:
    provider: vultr
    name: cache
    size_gb: 1000
    region: sjc

- name: Give it to the machine of a run
  gpuyard.cloud.volume:
    provider: vultr
    name: cache
    state: attached
    attached_to: prover-0

- name: Delete everything that a run kept there
  gpuyard.cloud.volume:
    run: prover-0
    state: absent
"""

RETURN = r"""
resources:
  description: The volume as it is now; empty when it was deleted.
  returned: success
  type: list
  elements: dict
  sample:
    - {provider: vultr, kind: volume, id: 5b1f3c1e, name: cache, run: "", region: sjc, size_gb: 1000, ready: true,
       attached_to: [], price_per_month_usd: 100.0}
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["make block storage cache at Vultr, 1000 GB, $100.00 a month"]
planned_calls:
  description: The writing calls to the provider's API that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
text:
  description: What a person should know of it.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "state": {"type": "str", "choices": ["present", "absent", "attached", "detached"], "default": "present"},
    "name": {"type": "str"},
    "id": {"type": "str"},
    "run": {"type": "str"},
    "workload": {"type": "str"},
    "kind": {"type": "str", "choices": ["volume", "filesystem"]},
    "size_gb": {"type": "float"},
    "region": {"type": "str"},
    "options": {"type": "dict", "default": {}},
    "attached_to": {"type": "str"},
    "foreign": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 900},
}
CONDITIONS: dict[str, Any] = {
    "mutually_exclusive": [("name", "run", "id")],
    "required_one_of": [("name", "run", "id")],
}


def run(call: Call) -> dict[str, Any]:
    """Bring the volume into the wanted state."""
    from gpuyard.api import resources
    from gpuyard.providers.resources import Kind

    verbs = {
        "present": resources.present,
        "absent": resources.absent,
        "attached": resources.attached,
        "detached": resources.detached,
    }
    state, kind = call.params["state"], call.option("kind")
    named = call.given("name", "id", "run", "workload", "region", "size_gb", "attached_to", "foreign")
    request = resources.ResourceRequest(
        kinds=(Kind(kind),) if kind else resources.DISKS,
        options={name: str(value) for name, value in call.params["options"].items()},
        timeout_s=call.params["timeout"],
        **named,
    )
    outcome = verbs[state](call.site(), request, check=call.check_mode, progress=call.progress)
    return outcome.to_dict(check=call.check_mode)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
