#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of what bills and should not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: reap
short_description: End what runs have left behind, and runs past their limits
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - With O(orphans), ends what is ours and has been forgotten, as M(gpuyard.cloud.audit_info) says it, run by run, each
    as M(gpuyard.cloud.run_end) ends a run. Every end is confirmed.
  - With O(limits), ends each run whose lease is over, or whose machines have together cost its budget, as the bucket
    (without one, the labels) and the ledger there say. Its stages save their work first, where a machine answers. A run
    that has cost 80 % of its budget is told in RV(notes).
  - Nothing that may hold the only copy of a run's work is ended, unless O(lose) says so. It is named in RV(problems),
    as is what could not be confirmed gone, with its id. No run hinders another one.
  - A run that has been launched again meanwhile is left alone. What is not ours is never touched.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.report
attributes:
  check_mode:
    support: full
    details:
      - No machine is asked, so it is not known whether one would have to be kept.
      - RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: none
options:
  orphans:
    description: Whether to end what has been forgotten.
    type: bool
    default: false
  limits:
    description: Whether to end runs that are past their lease or their budget.
    type: bool
    default: false
  lose:
    description: End also what may hold what is not in the bucket.
    type: bool
    default: false
  format:
    description: In which form it is shown.
    type: str
    choices: [table, json]
    default: table
  ssh_key:
    description:
      - The path of the private SSH key with which machines are asked whether all is saved. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.audit_info
  - module: gpuyard.cloud.run_end
"""

EXAMPLES = r"""
- name: End what has been forgotten
  gpuyard.cloud.reap:
    orphans: true
  register: reaped

- name: End every run that is past its lease or its budget
  gpuyard.cloud.reap:
    limits: true
  register: reaped

- name: Fail where something could not be ended
  ansible.builtin.assert:
    that: reaped.problems | length == 0
"""

RETURN = r"""
reaped:
  description:
    - For each run of which something was to end, C(run), C(why), C(actions), and C(problem), empty when all is gone.
  returned: success
  type: list
  elements: dict
  sample:
    - run: miniprover-0
      why: its run was torn down at 2026-03-01T12:00:00Z
      actions: ["destroy vultr volume b1f2, 1000 GB in ewr"]
      problem: ""
problems:
  description: What could not be ended, in sentences with ids and prices.
  returned: success
  type: list
  elements: str
unanswered:
  description: For each cloud, shelf (provider and kind) or bucket that could not be asked, a sentence with the reason.
  returned: success
  type: dict
  sample: {}
notes:
  description: What else is to be known.
  returned: success
  type: list
  elements: str
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
planned_calls:
  description: The writing calls to the providers' APIs that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
text:
  description: The same in the form that O(format) names.
  returned: success
  type: str
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
        "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
        "orphans": {"type": "bool", "default": False},
        "limits": {"type": "bool", "default": False},
        "lose": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """End what the options name."""
    from gpuyard.api import reap, reports

    reports.check_file(call.option("report"))
    request = reap.ReapRequest(**{name: call.params[name] for name in ("orphans", "limits", "lose")})
    done = reap.reap(call.site(), request, check=call.check_mode, progress=call.progress)
    told = reports.keep(
        call.option("report"), done.render(call.params["format"]), check=call.check_mode, progress=call.progress
    )
    values = done.to_dict()
    return values | told | {"changed": bool(values["changed"] or told["changed"])}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
