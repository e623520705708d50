#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs, kept at work until they end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_supervise
short_description: Keep runs at work until they end
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Looks at each run again and again, and does what is to be done. A run that has lost its machine gets another one and
    goes on from its newest checkpoint. One whose stages wait for a machine of another pool is handed over. One that has
    ended, or is past its lease or its budget, has its rental ended where that was asked for. A stage that has failed by
    itself is told and not started again.
  - A machine counts as lost when its cloud does not list it as alive and it does not answer, or when it is not listed
    twice in a row. A cloud that does not answer says nothing about its machines.
  - Everything that is known of a run is in the clouds and the bucket. So this may be killed at any moment, and another
    one may go on from anywhere where the keys and the bucket are. Of several, one at a time acts for a run; when it is
    killed, another one takes the run over after half a minute.
  - What happens is told to the people whom C(monitoring.notify) of the workload names, each event once. The variables
    that hold their addresses are read from the environment.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: Nothing is supervised; that the runs are known is checked.
  diff_mode:
    support: none
options:
  runs:
    description:
      - The names of the runs. Without any, those that a supervisor has begun to watch and that have not ended.
    type: list
    elements: str
    default: []
  shutdown:
    description:
      - Whether the rental of a run ends with it, well or not. By default as it was said before of the run, which is
        kept in the bucket, and else not.
    type: bool
  stage:
    description:
      - The one stage that is to run, where the runs were launched with it. By default as it was said before of the run,
        and else all that are left.
    type: str
  stay:
    description: Whether to go on when no run is left, and to take up what another supervisor was told to watch.
    type: bool
    default: false
  interval_s:
    description: How often the clouds are asked what is rented, in seconds.
    type: float
    default: 5
  losses_before_on_demand:
    description: After how many losses the machines of a run are rented on demand. V(0), never.
    type: int
    default: 3
  silent_minutes:
    description:
      - After how many minutes without any sign of life a machine is given up that its cloud calls running. Signs are an
        answer over SSH, the heartbeat in the bucket, and a new checkpoint. One that has never given a sign, or whose
        run has no whole checkpoint, is kept. V(0), never.
    type: float
    default: 10
  ssh_key:
    description: The path of the private SSH key with which machines are reached. By default gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_follow
  - module: gpuyard.cloud.reap
"""

EXAMPLES = r"""
- name: Keep two runs at work, and end their rentals when they end
  gpuyard.cloud.run_supervise:
    runs: [miniprover-0, miniprover-1]
    shutdown: true
"""

RETURN = r"""
ended:
  description: By the names of the runs, why each needs no supervisor any more.
  returned: success
  type: dict
  sample: {miniprover-0: finished}
failed_runs:
  description: The names of the runs of which a stage has failed.
  returned: success
  type: list
  elements: str
text:
  description: The same in sentences.
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
        "runs": {"type": "list", "elements": "str", "default": []},
        "shutdown": {"type": "bool"},
        "stage": {"type": "str"},
        "stay": {"type": "bool", "default": False},
        "interval_s": {"type": "float", "default": 5},
        "losses_before_on_demand": {"type": "int", "default": 3},
        "silent_minutes": {"type": "float", "default": 10},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Supervise the runs."""
    from gpuyard.api import supervise

    names = ("runs", "shutdown", "stay", "interval_s", "losses_before_on_demand", "silent_minutes")
    request = supervise.Supervise(**{name: call.params[name] for name in names}, stage=call.option("stage"))
    done = supervise.supervise(call.site(), request, check=call.check_mode, progress=call.progress)
    return {"changed": bool(done.ended)} | done.to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
