#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that stops, and keeps its machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_stop
short_description: Stop a run, and keep its machine
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lets the stages of a run end in good order and publish a last checkpoint, looks whether that is whole in the bucket,
    and stops the machines at their clouds. None is destroyed.
  - What a machine costs while it is stopped is told, and counts in the ledger from then on. Vast.ai bills its disk.
  - Where a cloud bills a stopped machine in full (Vultr), nothing is stopped without O(force). Where a cloud can only
    destroy (Lambda), the task fails. Either sentence names the way out, before anything is touched.
  - A box of the user's own stays on. Only its stages end.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: Nothing is stopped and no machine is asked.
  diff_mode:
    support: full
options:
  run:
    description: The name of the run. Without it the task fails, and lists the runs that have machines.
    type: str
  force:
    description:
      - Stop the machine also where that saves nothing, and where the bucket does not hold everything that is on it, so
        that its disk holds the only copy.
    type: bool
    default: false
  wait_s:
    description:
      - How many seconds the stages have to end.
      - By default, the running stage's own C(grace_s), and five minutes for the last checkpoint.
    type: float
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_start
  - module: gpuyard.cloud.run_end
"""

EXAMPLES = r"""
- name: Stop a run over the weekend
  gpuyard.cloud.run_stop:
    run: miniprover-0
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["end the stages on vast 1234567 in good order, and stop it"]
text:
  description: What each stopped machine costs, and how the run goes on.
  returned: success
  type: str
failure:
  description:
    - What went wrong, for programs. C(kind) is V(NotSavedError) when the stages have ended, and a machine was not
      stopped since the bucket does not hold everything.
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
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str"},
        "force": {"type": "bool", "default": False},
        "wait_s": {"type": "float"},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Stop the run."""
    from gpuyard.api import stop_start

    request = stop_start.StopRequest(call.option("run") or "", call.params["force"], call.option("wait_s"))
    return stop_start.stop(call.site(), request, check=call.check_mode, progress=call.progress).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
