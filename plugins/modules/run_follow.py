#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run, followed to its end from machine to machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_follow
short_description: Follow a run to its end, from machine to machine
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - The end of a launch. With O(follow) or O(shutdown), shows what the run does until it ends; a run that does not
    finish fails the task. Without, says what the run does now, and what its machine costs.
  - A run whose stages name several pools may run on one machine after another. Where it waits for a machine of another
    pool, and its last checkpoint is whole in the bucket, it is handed over. The launch is repeated for that, with
    O(options), in a process of its own whose output is shown. It rents a machine for the pool, brings it into shape,
    ends the machine that waits, and then starts the stages. When that fails, the machine that waits is kept and named.
  - With O(shutdown), the machine is destroyed when the run has ended, well or not, and its end is in the bucket. One
    that does not answer any more, or whose last checkpoint is not in the bucket, is kept and named.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: Nothing is followed.
  diff_mode:
    support: none
options:
  run:
    description: The name of the run.
    type: str
    required: true
  follow:
    description: Whether to stay until the run ends. By default only with O(shutdown).
    type: bool
  shutdown:
    description:
      - Whether to end the rental when the run ends. With O(follow=false) that is left to the machine itself, and where
        its cloud gives it no key for it, to M(gpuyard.cloud.reap).
    type: bool
    default: false
  since:
    description:
      - The number of the newest checkpoint before the launch, as RV(gpuyard.cloud.run_plan#module:plan) says it. A
        later one holds the work of the launch that is followed.
    type: int
    default: 0
  options:
    description:
      - The options of the launch, which is repeated with them at a hand-over, as the lookup
        P(gpuyard.cloud.play_options#lookup) returns them.
    type: dict
    default: {}
  hand_over:
    description: Whether this is the launch of a hand-over, which somebody else follows. Nothing is done then.
    type: bool
    default: false
  states:
    description: What the stages of the run's machines do, for the words at the end when nobody follows.
    type: list
    elements: str
    default: []
  machines:
    description: How many machines the run has, for the words at the end when nobody follows.
    type: int
    default: 1
  price_per_hour_usd:
    description: What the machines cost an hour, in US dollars, for the words at the end when nobody follows.
    type: float
    default: 0
  ssh_key:
    description: The path of the private SSH key with which the machine is reached. By default gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_end
  - module: gpuyard.cloud.stage_log
"""

EXAMPLES = r"""
- name: Follow the run, and end the rental when it ends
  gpuyard.cloud.run_follow:
    run: miniprover-0
    shutdown: true
    options: "{{ lookup('gpuyard.cloud.play_options', 'launch') }}"
"""

RETURN = r"""
state:
  description: How the run stood when it ended.
  returned: when the run was followed
  type: str
  sample: finished
hand_overs:
  description: How often the run has moved to another machine meanwhile.
  returned: when the run was followed
  type: int
text:
  description: What bills, and what ends that.
  returned: success
  type: str
failure:
  description: What went wrong, for programs.
  returned: failure
  type: dict
  sample: {kind: NotSavedError}
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    Call,
    run_module,
    stays,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str", "required": True},
        "follow": {"type": "bool"},
        "shutdown": {"type": "bool", "default": False},
        "since": {"type": "int", "default": 0},
        "options": {"type": "dict", "default": {}},
        "hand_over": {"type": "bool", "default": False},
        "states": {"type": "list", "elements": "str", "default": []},
        "machines": {"type": "int", "default": 1},
        "price_per_hour_usd": {"type": "float", "default": 0},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Follow the run."""
    from gpuyard.api import closing, follow

    name, shutdown = call.params["run"], call.params["shutdown"]
    if call.check_mode or call.params["hand_over"]:
        return {}
    if not stays(call):
        words = (call.params[option] for option in ("states", "machines", "price_per_hour_usd", "shutdown"))
        return {"text": "\n".join(closing.left_alone(name, *words))}
    request = follow.Follow(name, shutdown, call.params["since"], call.params["options"])
    followed = follow.follow(call.site(), request, progress=call.progress)
    return {"changed": shutdown or followed.hand_overs > 0} | followed.to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
