#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the clouds rent out now, compared."""

from __future__ import annotations

DOCUMENTATION = r"""
module: offer_report
short_description: Compare what the clouds rent out now
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Asks the clouds at the same time what they rent out, and compares what fits, with the price on demand beside the
    price of an interruptible machine, for a GPU and for what a GPU does.
  - Says of each condition how many offers it removed, and of each cloud in short what it has, what is preinstalled, how
    reliable its machines are, and what to know before renting there.
  - A cloud that does not answer is named, and hides no other. Hosts that have failed before are left out.
  - How fast a machine is comes from Vast.ai, which measures DLPerf on each of its machines. For another cloud's machine
    the median of Vast.ai's offers with the same GPU stands, where there are any now, else what its data sheet says.
  - Says of the next three offers why each comes behind the first.
  - Where there is a bucket, what its newest runs measured stands beside, by cloud and GPU; that is how long a machine
    took from being rented to its first stage, and how long each stage took and what that cost.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.query
  - gpuyard.cloud.report
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
  profiles:
    description: The profiles of the workload to use, each over the one before.
    type: list
    elements: str
    default: []
  by:
    description:
      - What is shown first. With V(price), the cheapest machine with its disk; with V(gpu_price), the cheapest hour of
        a GPU; with V(value), the cheapest DLPerf; else the most GPU memory, or the most reliable.
      - What has no such figure comes last. By default, it is the order in which a launch takes them, O(rank).
    type: str
    choices: [price, gpu_price, value, gpu_ram, reliability]
  format:
    description: In which form RV(text) shows it.
    type: str
    choices: [table, markdown, json]
    default: table
  list_prices:
    description:
      - Whether list prices of clouds that are only compared (AWS, GCP, Azure, Nebius and others) stand beside.
      - They are of gpuhunt's catalogue, which needs the extra C(gpuyard[catalogue]), and is fetched once a day. The
        environment variable E(GPUHUNT_CATALOG_DIR) names a folder that has its files, so that nothing is fetched.
      - They say nothing of what is to be had now, and are without a disk.
      - A note says why they are left out, when they cannot be had within eight seconds.
    type: bool
    default: false
seealso:
  - module: gpuyard.cloud.offer_info
  - module: gpuyard.cloud.run_plan
"""

EXAMPLES = r"""
- name: Compare what fits a workload by its price for what it does
  gpuyard.cloud.offer_report:
    workload: miniprover
    by: value

- name: Keep a page of what has 24 GB of GPU memory
  gpuyard.cloud.offer_report:
    gpu_ram_gb: 24
    format: markdown
    report: market.md
"""

RETURN = r"""
offers:
  description: What fits, the best first. An offer that can be had on both markets is there once, with both prices.
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vast
      id: "6001"
      gpu_name: RTX 4090
      gpu_count: 1.0
      region: SE
      market: interruptible
      price_per_hour_usd: 0.21
      on_demand_usd_per_hour: 0.43
      interruptible_usd_per_hour: 0.21
      usd_per_gpu_hour: 0.21
      usd_per_hour_of_100_dlperf: 0.3
      dlperf: 70.0
      dlperf_from: this machine
runners_up:
  description: Why each of the next three offers comes behind the first, when O(by) does not name another order.
  returned: success
  type: list
  elements: str
  sample: ["2. vast 6002, on-demand, lost: $0.1000 an hour dearer, +25%."]
removed:
  description: How many offers each condition removed.
  returned: success
  type: list
  elements: dict
  sample:
    - {condition: gpu_ram_gb >= 24, removed: 11, total: 40, best_seen: "16"}
providers:
  description:
    - The clouds in short. Prices are those of the cheapest machine that fits but for its market; C(problem) says why a
      cloud could not be asked.
  returned: success
  type: list
  elements: dict
unanswered:
  description: A sentence for each cloud that could not be asked.
  returned: success
  type: dict
  sample: {}
conditions:
  description: What was asked for, by the names of the options.
  returned: success
  type: dict
by:
  description: What the offers are ordered by.
  returned: success
  type: str
measured:
  description:
    - What the newest 20 runs in the bucket measured, of the workload when one is named. All figures are medians.
    - Runs of several nodes, and stages that were cut off, are not counted.
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vast
      gpu_name: RTX 4090
      machines: 2
      setup_minutes: 15.0
      stages:
        - {workload: prover, stage: tune, times: 2, hours: 1.5, usd: 0.75}
list_prices:
  description:
    - What fits by the list prices of clouds that are only compared, in the form of RV(offers), with RV(by) as order.
    - None of it can be rented by its id.
    - Each machine is there once, in its cheapest region.
  returned: success
  type: list
  elements: dict
  sample: []
notes:
  description: Where figures come from.
  returned: success
  type: list
  elements: str
text:
  description: All of it in the form that O(format) names.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    QUERY_OPTIONS,
    REPORT_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | QUERY_OPTIONS
    | REPORT_OPTIONS
    | {
        "workload": {"type": "str"},
        "profiles": {"type": "list", "elements": "str", "default": []},
        "by": {"type": "str", "choices": ["price", "gpu_price", "value", "gpu_ram", "reliability"]},
        "format": {"type": "str", "choices": ["table", "markdown", "json"], "default": "table"},
        "list_prices": {"type": "bool", "default": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return what can be rented now, compared."""
    from gpuyard.api import offers, reports

    reports.check_file(call.option("report"))
    request = offers.OffersRequest(call.option("workload"), call.given(*QUERY_OPTIONS), call.params["profiles"])
    found = offers.compare(
        call.site(),
        request,
        by=call.option("by") or "",
        with_list_prices=call.params["list_prices"],
        progress=call.progress,
    )
    text = found.render(call.params["format"])
    return found.to_dict() | reports.keep(call.option("report"), text, check=call.check_mode, progress=call.progress)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
