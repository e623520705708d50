#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots there are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: List snapshots of the accounts
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Asks every cloud that has snapshots at the same time, and lists them with size, price and owner.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  name:
    description: Only those of this name.
    type: str
  run:
    description: Only those of this run.
    type: str
  foreign:
    description: Whether to list those as well that gpuyard did not make.
    type: bool
    default: false
  partial:
    description: Whether a cloud that does not answer is only named. Without it that fails the task.
    type: bool
    default: false
seealso:
  - module: gpuyard.cloud.snapshot
"""

EXAMPLES = r"""
- name: List the snapshots of a run
  gpuyard.cloud.snapshot_info:
    run: prover-0
"""

RETURN = r"""
resources:
  description: What was found, in the order of cloud, kind and name.
  returned: success
  type: list
  elements: dict
  sample:
    - {provider: vultr, kind: snapshot, id: 9f20ab11, name: prover-built, run: "", size_gb: 40, ready: true,
       price_per_month_usd: 2.0}
unanswered:
  description: A sentence for each cloud that could not be asked.
  returned: success
  type: dict
  sample: {}
text:
  description: The same as a table.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "name": {"type": "str"},
    "run": {"type": "str"},
    "foreign": {"type": "bool", "default": False},
    "partial": {"type": "bool", "default": False},
}
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return the snapshots that are wanted."""
    from gpuyard.api import resources
    from gpuyard.providers.resources import Kind

    request = resources.ResourcesRequest((Kind.SNAPSHOT,), **call.given("name", "run", "foreign", "partial"))
    found = resources.find(call.site(), request)
    return found.to_dict() | {"text": found.render()}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
