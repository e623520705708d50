#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots: of which machine, which there are, and their end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_snapshot
short_description: Find the machine to make a snapshot of, list snapshots, and delete them
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - With O(state=present), says of which machine of a run a snapshot is to be made and how. The role
    P(gpuyard.cloud.snapshot_bundle#role) makes it.
  - Snapshots are bundles in the bucket, found by the state that a machine is to have.
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
  state:
    description: Whether to prepare one, to list them all, or to delete one.
    type: str
    choices: [present, listed, absent]
    default: present
  run:
    description: With O(state=present), the run whose machine it is made of.
    type: str
  bundle:
    description: With O(state=absent), the key of the bundle, or its beginning.
    type: str
  ssh_key:
    description: The path of the private SSH key with which the machines are reached. By default, gpuyard's own.
    type: path
"""

EXAMPLES = r"""
- name: List all snapshots
  gpuyard.cloud.run_snapshot:
    state: listed

- name: Delete one
  gpuyard.cloud.run_snapshot:
    state: absent
    bundle: 0d7c1f3a9be2
"""

RETURN = r"""
hosts:
  description: The machine that a snapshot is to be made of.
  returned: success
  type: list
  elements: dict
bundles:
  description: The bundles that there are, or that were deleted.
  returned: success
  type: list
  elements: dict
text:
  description: A line for each of them.
  returned: success
  type: str
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
        "state": {"type": "str", "choices": ["present", "listed", "absent"], "default": "present"},
        "run": {"type": "str"},
        "bundle": {"type": "str"},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Prepare a snapshot, list them, or delete one."""
    from gpuyard.api import snapshot

    state, site = call.params["state"], call.site()
    if state == "present":
        target = snapshot.prepare(site, call.option("run") or "", progress=call.progress)
        return {"hosts": [target.to_dict()], "bundles": [], "text": ""}
    if state == "listed":
        found = snapshot.listed(site)
        text = [snapshot.describe(bundle) for bundle in found] or ["The bucket has no bundle."]
    else:
        found = snapshot.delete(site, call.option("bundle") or "", check=call.check_mode)
        text = [f"{'Would delete' if call.check_mode else 'Deleted'} {snapshot.describe(bundle)}" for bundle in found]
    shown = [{"key": bundle.key, "platform": bundle.platform, "bytes": bundle.size} for bundle in found]
    return {"changed": state == "absent", "hosts": [], "bundles": shown, "text": "\n".join(text)}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
