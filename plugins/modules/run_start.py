#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machines of a stopped run, up again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_start
short_description: Start the machine of a stopped run
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Starts the machines of a run that are stopped, and waits until each answers over SSH, under the key that is pinned
    for it. The address may be another one.
  - The stages are not started; C(start.yml) goes on with what C(launch.yml) does.
  - Where the GPU of a stopped machine is let to somebody else, its cloud may queue the start. That is taken back, and
    the task fails with a sentence that names what the machine costs and where the run can go on.
  - Nothing is ever rented.
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
    description: The name of the run. Without it the task fails, and lists the runs that have machines.
    type: str
  timeout:
    description: How many seconds a machine may take to run, and then to answer.
    type: int
    default: 900
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_stop
  - module: gpuyard.cloud.run_launch
"""

EXAMPLES = r"""
- name: Have the machine of a stopped run up again
  gpuyard.cloud.run_start:
    run: miniprover-0
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["start vast 1234567"]
text:
  description: That nothing was stopped, if so.
  returned: success
  type: str
failure:
  description: What went wrong, for programs. C(kind) is V(NoCapacityError) when somebody else has got the GPU.
  returned: failure
  type: dict
  sample: {kind: NoCapacityError, provider: vast}
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
        "run": {"type": "str"},
        "timeout": {"type": "int", "default": 900},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Start what is stopped."""
    from gpuyard.api import stop_start

    return stop_start.start(
        call.site(),
        call.option("run") or "",
        timeout_s=call.params["timeout"],
        check=call.check_mode,
        progress=call.progress,
    ).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
