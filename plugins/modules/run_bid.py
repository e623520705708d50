#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Another bid for the machine of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_bid
short_description: Bid another price for the machine of a run
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Changes what is bid for the interruptible machine of a run, at clouds that take bids (Vast.ai). The machine goes on
    as it is. One that was outbid may come back by it, with what is on its disk.
  - The new price is written into the ledger in the bucket, from now on.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  run:
    description: The name of the run.
    type: str
    required: true
  bid:
    description: What is bid for the machine, without its disk, in US dollars an hour.
    type: float
    required: true
  node:
    description: The node of a run of several, C(<pool>-<number>).
    type: str
seealso:
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: Bid more for the machine of a run
  gpuyard.cloud.run_bid:
    run: miniprover-0
    bid: 0.35
"""

RETURN = r"""
price_per_hour_usd:
  description: What the machine costs an hour now, with its disk.
  returned: success
  type: float
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
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
        "run": {"type": "str", "required": True},
        "bid": {"type": "float", "required": True},
        "node": {"type": "str"},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Bid another price."""
    from gpuyard.api import bid

    request = bid.BidRequest(call.params["run"], call.params["bid"], call.option("node"))
    return bid.change(call.site(), request, check=call.check_mode, progress=call.progress).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
