#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a launch that has failed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_give_up
short_description: Say what a failed launch leaves, and give back what nobody waits for
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - For the C(rescue) of a launch. A machine that the launch has rented and on which no stage has begun is destroyed
    when nobody stays to see it bill (O(shutdown)), or when the run was to be moved to it from another one
    (O(hand_over)), or when it cannot do the work (O(unfit)). Every other machine is kept.
  - One whose disk is full (O(disk_full)) is destroyed as well. Where O(options) say how the run was launched, it is
    launched once more with twice the disk, in a process of its own whose output is shown, within the limits of the
    workload. When the run is at work then, the task succeeds.
  - Else it fails, with a sentence that says what failed, what was destroyed, and what bills until which command.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: Nothing is destroyed.
  diff_mode:
    support: none
options:
  run:
    description: The name of the run.
    type: str
    required: true
  task:
    description: The name of the task that has failed.
    type: str
    required: true
  node:
    description: The node of the run whose machine it is about, C(<pool>-<number>).
    type: str
    required: true
  rented:
    description: Whether this launch has rented it.
    type: bool
    default: false
  shutdown:
    description: Whether the rental was to end with the run.
    type: bool
    default: false
  profile:
    description: The profiles with which it was launched, to be named in the command that tries again.
    type: str
    default: ""
  overrides:
    description: The overrides with which it was launched, to be named in the command that tries again.
    type: str
    default: ""
  hand_over:
    description: Whether the run was to be moved to it from another machine.
    type: bool
    default: false
  unfit:
    description: Whether the machine itself cannot do the work, so that only another one can.
    type: bool
    default: false
  disk_full:
    description: Whether its disk has no room for what was to be installed.
    type: bool
    default: false
  disk_gb:
    description: The size of the disk that was asked for, in gigabytes.
    type: float
    default: 0
  price_per_hour_usd:
    description: What the machine costs an hour.
    type: float
    default: 0
  spent:
    description: What it took to rent it, as RV(gpuyard.cloud.run_launch#module:hosts) says it.
    type: dict
    default: {}
  follow:
    description: Whether this command follows the run to its end.
    type: bool
    default: false
  options:
    description: The options of the launch, by name, for one that begins anew. Without, it does not.
    type: dict
    default: {}
  own:
    description: Whether it is a box of the user's own, which costs nothing.
    type: bool
    default: false
  ssh_key:
    description: The path of the private SSH key with which the machine is reached. By default gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_end
"""

EXAMPLES = r"""
- name: Say what is left
  gpuyard.cloud.run_give_up:
    run: miniprover-0
    task: "{{ ansible_failed_task.name }}"
    node: main-0
    rented: true
    shutdown: true
"""

RETURN = r"""
failure:
  description: What went wrong, for programs.
  returned: failure
  type: dict
  sample: {kind: GpuyardError}
replaced:
  description: Whether the run is at work on a machine with a larger disk now.
  returned: success
  type: bool
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
        "task": {"type": "str", "required": True},
        "node": {"type": "str", "required": True},
        "rented": {"type": "bool", "default": False},
        "shutdown": {"type": "bool", "default": False},
        "profile": {"type": "str", "default": ""},
        "overrides": {"type": "str", "default": ""},
        "hand_over": {"type": "bool", "default": False},
        "unfit": {"type": "bool", "default": False},
        "disk_full": {"type": "bool", "default": False},
        "disk_gb": {"type": "float", "default": 0},
        "price_per_hour_usd": {"type": "float", "default": 0},
        "spent": {"type": "dict", "default": {}},
        "follow": {"type": "bool", "default": False},
        "options": {"type": "dict", "default": {}},
        "own": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Give back what nobody waits for, and fail unless the run is at work elsewhere."""
    from gpuyard.api import closing
    from gpuyard.errors import GpuyardError
    from gpuyard.renting.rent import Spent

    failure = closing.Failure(
        rented=call.params["rented"] and not call.check_mode,
        layers={name: call.params[name] for name in ("profile", "overrides") if call.params[name]},
        followed=call.params["follow"] or call.params["shutdown"],
        spent=Spent.from_dict(call.params["spent"]),
        **{name: call.params[name] for name in ("run", "task", "node", "shutdown", "hand_over", "unfit", "own")},
        **{name: call.params[name] for name in ("disk_full", "disk_gb", "price_per_hour_usd", "options")},
    )
    done = closing.give_up(call.site(), failure, progress=call.progress)
    if not done.replaced:
        raise GpuyardError(done.text)
    return done.to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
