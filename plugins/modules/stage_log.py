#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The log of a stage, wherever it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stage_log
short_description: The log of a stage, and what a run is doing
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Shows the log of a stage from the run's machine, or from its newest checkpoint when the machine is gone.
  - With O(follow), shows what the run does as it happens, until it ends.
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
  run:
    description: The name of the run. By default, the only one that there is.
    type: str
  stage:
    description: The stage. By default, the one whose log was written to last.
    type: str
  iteration:
    description: The iteration. By default, the last one of the stage.
    type: int
  lines:
    description: How many lines to show, from the end of the log.
    type: int
    default: 50
  errors:
    description: Show only lines that look like errors.
    type: bool
    default: false
  follow:
    description: Show the run's progress instead of a log, until it ends. A run that does not finish fails the task.
    type: bool
    default: false
  ssh_key:
    description: The path of the private SSH key with which the machine is reached. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: Show the end of the search's log
  gpuyard.cloud.stage_log:
    run: miniprover-0
    stage: search

- name: Watch the run until it ends
  gpuyard.cloud.stage_log:
    run: miniprover-0
    follow: true
"""

RETURN = r"""
lines:
  description: The lines of the log; empty with O(follow).
  returned: success
  type: list
  elements: str
state:
  description: How the run stood when O(follow) ended, V(finished), V(idle), V(failed) or V(interrupted).
  returned: with O(follow)
  type: str
"""

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import BUCKET_OPTIONS, PROVIDER_OPTIONS, run_module

ARGUMENT_SPEC = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str"},
        "stage": {"type": "str"},
        "iteration": {"type": "int"},
        "lines": {"type": "int", "default": 50},
        "errors": {"type": "bool", "default": False},
        "follow": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS = {}


def run(call):
    """Show a log, or follow a run."""
    from gpuyard import config
    from gpuyard.box import checkpoints
    from gpuyard.renting import runs, survey, watch
    from gpuyard.errors import GpuyardError, UsageError

    if call.params["lines"] < 1:
        raise UsageError(f"lines={call.params['lines']} must be at least 1.")
    clouds = config.connect(call.option("provider"), **call.site(), progress=call.progress)
    settings = config.s3_settings(call.params["bucket"], bucket_endpoint=call.option("bucket_endpoint"), **call.site())
    store = runs.open_bucket(settings)
    seen = survey.take(clouds)
    machines = seen.answered()
    if call.option("run") not in [one.ref.run for one in survey.owned(machines)]:
        # It may be at the cloud that does not answer.
        seen.complete()
    try:
        runs.check_answers(store)
        kept = runs.stored(store)
    except checkpoints.CheckpointError as error:
        # A machine can be asked all the same.
        kept = runs.Stored()
        if not any(one.machine and call.option("run") in (None, one.name) for one in runs.join(machines, kept)):
            raise
        call.progress(f"The bucket cannot be read, so runs without a machine are missing: {error}")
    one = watch.choose(runs.join(machines, kept), call.option("run"))
    key = config.ssh_key(call.option("ssh_key"))
    if call.params["follow"]:
        if not one.machine:
            raise UsageError(f"Run {one.name} has no machine, so there is nothing to follow.")
        state = ""
        call.progress(
            f"Following run {one.name}; Ctrl-C ends the following only: the run goes on, and its machine bills."
        )
        for record in watch.progress(one.machine, key):
            if line := watch.tell(record):
                call.progress(line)
            state = str(record.get("state") or state)
        bills = (
            f"As long as its machine is there, it bills {one.machine.cost_now_per_hour_usd:.4f} USD an hour: "
            f"`ansible-playbook teardown.yml -e run={one.name}` ends that."
        )
        if state != "finished":
            raise GpuyardError(f"{watch.how_it_ended(one, one.machine, key, state)}\n{bills}")
        return {"lines": [], "state": state, "text": bills}
    query = watch.LogQuery(call.option("stage"), call.option("iteration"), call.params["lines"], call.params["errors"])
    if one.machine and one.machine.state == "running":
        lines = list(watch.lines(one.machine, key, query.words()))
    elif store is None:
        raise UsageError(f"Run {one.name} has no running machine, and no bucket that could hold its logs.")
    else:
        lines = watch.published_log(one, store, query)
    return {"lines": lines, "text": "\n".join(lines)}


def main():
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
