#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a run: its stages in good order, then its machines."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_end
short_description: End a run, and lose nothing of it
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lets the stages of a run end in good order and publish a last checkpoint, then destroys every machine of the run at
    every cloud asked, and tells the bucket that the run was not lost but ended.
  - A machine is destroyed only when the bucket holds everything that is on it, as the machine itself says, or when no
    stage has begun on it. Otherwise it is kept and named with what it costs, and the task fails; O(lose) destroys it
    all the same.
  - A machine that does not answer is destroyed only for a whole checkpoint in the bucket that is the end of its run.
    For one that its provider has taken away, or that has failed, any whole checkpoint will do, since it can write no
    more.
  - What the run has beside its machines goes with them, as far as the clouds show whose it is. Volumes, filesystems and
    snapshots are taken from the machine, where a cloud can do that, and destroyed before it; what only the run had
    (an SSH key of the account, a stored variable) is removed. They stay with a machine that is kept, and where no
    machine is left that could say whether all is saved, and the bucket holds no whole checkpoint.
  - At the end the clouds are asked once more whether anything of the run is left.
  - A cloud that does not answer keeps no other cloud's machine. It is named, and the task fails.
  - With O(report), the report of M(gpuyard.cloud.run_report) is written when all has ended.
  - Progress is shown line by line while it runs.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.report
attributes:
  check_mode:
    support: full
    details:
      - Nothing is stopped and no machine is asked, so it is not known whether one would have to be kept.
      - RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: full
options:
  run:
    description: The name of the run. Without it the task fails, and lists the runs that have machines.
    type: str
  node:
    description:
      - The one node of the run to end, C(<pool>-<number>). The run goes on without it, and the bucket is not told of an
        end. By default, all of them.
    type: str
  lose:
    description:
      - Destroy the machines whatever is lost with them. Their stages are asked to end first, but a machine that does
        not answer, or a bucket that does not, is not waited for longer than a minute.
    type: bool
    default: false
  keep_volumes:
    description:
      - Whether the run's volumes, filesystems and snapshots outlive it. They are named with what they cost, and the
        bucket is told, so that an audit does not call them forgotten.
      - By default, those that were kept before are kept again, and all others go. V(false) ends those, too.
    type: bool
  wait_s:
    description:
      - How many seconds the stages have to end.
      - By default, the running stage's own C(grace_s), and five minutes for the last checkpoint.
    type: float
  only:
    description:
      - With V(ended), a machine goes only when its run has ended, well or not; nothing is stopped.
      - With V(not-begun), a machine goes only when no stage has begun on it; nothing is stopped, and the bucket is not
        told of an end.
      - With V(left), a machine goes only when no stage runs on it, since the run goes on elsewhere, and everything that
        is on it is saved.
    type: str
    choices: [ended, not-begun, left]
  since:
    description:
      - With O(only=ended), the number of the newest checkpoint before the launch that has followed the run, as
        RV(gpuyard.cloud.run_plan#module:plan) says it. A later one holds the work of that launch.
    type: int
    default: 0
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached. By default, gpuyard's own.
      - A running machine that this controller has never reached gets this key as well, where its provider can add one
        to a machine that lives.
    type: path
seealso:
  - module: gpuyard.cloud.instance
    description: With O(gpuyard.cloud.instance#module:state=absent) it destroys machines whatever is on them.
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: End a run
  gpuyard.cloud.run_end:
    run: miniprover-0

- name: End a run whose results nobody wants
  gpuyard.cloud.run_end:
    run: miniprover-0
    lose: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["destroy vast 1234567, RTX 4090 in SE, running"]
planned_calls:
  description: The writing calls to the provider's API that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
text:
  description:
    - What each machine that has ended has cost, and the run in all, as the ledger in the bucket says.
    - What was kept, and what that costs.
    - That the run had no machine, or why the bucket could not be told, if so.
  returned: success
  type: str
failure:
  description:
    - What went wrong, for programs. C(kind) is V(NotSavedError) when a machine was kept since it may hold what is not
      in the bucket.
  returned: failure
  type: dict
  sample: {kind: NotSavedError}
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    REPORT_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | REPORT_OPTIONS
    | {
        "run": {"type": "str"},
        "node": {"type": "str"},
        "lose": {"type": "bool", "default": False},
        "keep_volumes": {"type": "bool"},
        "wait_s": {"type": "float"},
        "only": {"type": "str", "choices": ["ended", "not-begun", "left"]},
        "since": {"type": "int", "default": 0},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """End the run."""
    from gpuyard.api import end, report, supervise

    site, file = call.site(), call.option("report")
    report.check_beside_an_end(site, file)
    order = end.Order(
        run=call.option("run") or "",
        node=call.option("node"),
        lose=call.params["lose"],
        wait_s=call.option("wait_s"),
        only=call.option("only") or "",
        since=call.params["since"],
        keep_volumes=call.params["keep_volumes"],
    )
    if order.whole and not order.only and not call.check_mode:
        supervise.give_over(site, order.run, progress=call.progress)
    done = end.end(site, order, check=call.check_mode, progress=call.progress).to_dict()
    if file and not call.check_mode:
        report.report(site, report.ReportRequest(order.run, file=file), progress=call.progress)
    return done


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
