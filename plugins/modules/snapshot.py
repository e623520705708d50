#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A cloud's own snapshot of a machine or a volume: there, or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot
short_description: Make and delete a cloud's own snapshot of a machine or a volume
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - A snapshot is found by its name and is never made twice. It bills until it is deleted.
  - Few clouds have snapshots of their own. M(gpuyard.cloud.run_snapshot) and the role
    P(gpuyard.cloud.snapshot_bundle#role) keep the state of a machine in the bucket, at every cloud.
  - One that gpuyard did not make is deleted only with O(foreign=true).
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
    description: Whether it is to be there, or deleted and confirmed gone.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - What it is called. At the cloud it is called C(gpuyard-) and this name, so that it is known as gpuyard's.
      - Needed with O(state=present).
    type: str
  id:
    description: With O(state=absent), the id of one that is there, in place of its name.
    type: str
  run:
    description: The run of whose machine it is made. In place of O(instance) and O(volume).
    type: str
  instance:
    description: The id of the machine that it is made of.
    type: str
  volume:
    description: The id of the volume that it is made of.
    type: str
  foreign:
    description: Whether one may be deleted that gpuyard did not make.
    type: bool
    default: false
  timeout:
    description: How many seconds it may take until it can be used.
    type: int
    default: 3600
seealso:
  - module: gpuyard.cloud.snapshot_info
  - module: gpuyard.cloud.run_snapshot
"""

EXAMPLES = r"""
- name: Keep the machine of a run as it is
  gpuyard.cloud.snapshot:
    provider: vultr
    name: prover-built
    run: prover-0

- name: Delete it
  gpuyard.cloud.snapshot:
    name: prover-built
    state: absent
"""

RETURN = r"""
resources:
  description: The snapshot; empty when it was deleted.
  returned: success
  type: list
  elements: dict
  sample:
    - {provider: vultr, kind: snapshot, id: 9f20ab11, name: prover-built, run: "", size_gb: 40, ready: true,
       price_per_month_usd: 2.0}
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["make snapshot prover-built of run prover-0 at Vultr"]
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
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "name": {"type": "str"},
    "id": {"type": "str"},
    "run": {"type": "str"},
    "instance": {"type": "str"},
    "volume": {"type": "str"},
    "foreign": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 3600},
}
CONDITIONS: dict[str, Any] = {
    "mutually_exclusive": [("instance", "volume", "run"), ("name", "id")],
    "required_one_of": [("name", "id")],
    "required_if": [("state", "present", ("name",))],
}


def run(call: Call) -> dict[str, Any]:
    """Make the snapshot, or delete it."""
    from gpuyard.api import resources
    from gpuyard.providers.resources import Kind

    request = resources.ResourceRequest(
        kinds=(Kind.SNAPSHOT,),
        source=call.option("instance") or call.option("volume") or "",
        timeout_s=call.params["timeout"],
        source_run=call.option("run"),
        **call.given("name", "id", "foreign"),
    )
    verb = resources.absent if call.params["state"] == "absent" else resources.present
    outcome = verb(call.site(), request, check=call.check_mode, progress=call.progress)
    return outcome.to_dict(check=call.check_mode)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
