#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be rented now, ranked."""

from __future__ import annotations

DOCUMENTATION = r"""
module: offer_info
short_description: What can be rented now, the best first
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Asks the clouds what they rent out now, and ranks what fits, the cheapest first.
  - Says of what does not fit which condition it failed.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.query
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  workload:
    description:
      - Take the conditions from this workload, a name in C(workloads/) or the path of a YAML file.
      - The other options win over what the workload says.
    type: str
seealso:
  - module: gpuyard.cloud.instance
  - module: gpuyard.cloud.run_plan
"""

EXAMPLES = r"""
- name: Find the cheapest machines with 24 GB of GPU memory
  gpuyard.cloud.offer_info:
    gpu_ram_gb: 24
    market: on-demand
    max_price_per_hour: 0.60
  register: market

- name: Find what the workload could run on at one cloud
  gpuyard.cloud.offer_info:
    provider: vast
    workload: miniprover
"""

RETURN = r"""
offers:
  description: What fits, the best first.
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vast
      id: "6001"
      gpu_name: RTX 4090
      gpu_count: 1.0
      gpu_ram_gb: 24.0
      region: SE
      market: on-demand
      price_per_hour_usd: 0.43
      emulated: false
rejected:
  description: What does not fit, each with the reasons.
  returned: success
  type: list
  elements: dict
  sample:
    - offer: {provider: vultr, id: vcg-a16-2c-16g-4vram, gpu_name: A16}
      reasons: ["GPU memory 4 GB is below 24 GB"]
text:
  description: The same for people.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    PROVIDER_OPTIONS,
    QUERY_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | QUERY_OPTIONS | {"workload": {"type": "str"}}
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return what can be rented now, ranked, and why the rest does not fit."""
    from gpuyard.api import offers

    request = offers.OffersRequest(call.option("workload"), call.given(*QUERY_OPTIONS))
    return offers.find(call.site(), request, progress=call.progress).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
