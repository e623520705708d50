#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that bills, ours or not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_info
short_description: Everything that bills in all accounts and in the bucket
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lists instances in any state, volumes, filesystems and snapshots of every account that has a key, whether gpuyard
    made them or not, and what the bucket holds by run, unfinished uploads included.
  - Says of each whose it is, how old and how large it is, what it costs, and whether it has been forgotten. That is
    what belongs to a run which has ended, as the bucket says, what a teardown has ended and is still there, what is
    left of a machine that was lost, and a machine on which no stage has begun in a day. What was launched after that
    end is not, nor what a teardown has kept on purpose, nor anything of a run that this bucket does not know.
  - What cannot be asked is named in RV(unanswered), and the audit is not whole then. Nothing is written anywhere.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
  - gpuyard.cloud.report
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  everything:
    description: Also what costs nothing, such as SSH keys, firewall groups, stored variables and boxes of your own.
    type: bool
    default: false
  format:
    description: In which form it is shown.
    type: str
    choices: [table, json]
    default: table
seealso:
  - module: gpuyard.cloud.reap
  - module: gpuyard.cloud.run_end
"""

EXAMPLES = r"""
- name: Look what bills
  gpuyard.cloud.audit_info:
  register: audit

- name: Fail where something has been forgotten
  ansible.builtin.assert:
    that: audit.whole and audit.orphans | length == 0
"""

RETURN = r"""
holdings:
  description:
    - What there is, by provider, kind and id. C(kind) is V(instance), V(volume), V(filesystem), V(snapshot),
      V(ssh-key), V(variable), V(firewall), V(registry-login), or V(prefix) for a folder of the bucket.
    - C(run) is whose it is, C(ours) whether gpuyard made it, C(age_s) its age in seconds. What the provider does not
      say is null.
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vultr
      kind: volume
      id: b1f2
      name: miniprover-0
      run: miniprover-0
      ours: true
      state: active
      age_s: 86400.0
      size_gb: 1000.0
      price_per_hour_usd: 0.137
      price_per_month_usd: 100.0
      why: its run was torn down at 2026-03-01T12:00:00Z
      orphaned: true
orphans:
  description: Those that have been forgotten.
  returned: success
  type: list
  elements: dict
price_per_month_usd:
  description: What all of it costs a month of 730 hours, as far as prices are known.
  returned: success
  type: float
orphans_per_month_usd:
  description: What the forgotten ones cost a month.
  returned: success
  type: float
unanswered:
  description: For each cloud, shelf (provider and kind) or bucket that could not be asked, a sentence with the reason.
  returned: success
  type: dict
  sample: {}
whole:
  description: Whether everything could be asked.
  returned: success
  type: bool
notes:
  description: What else is to be known, such as create requests that nobody has seen answered.
  returned: success
  type: list
  elements: str
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
        "everything": {"type": "bool", "default": False},
        "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return what the accounts and the bucket hold."""
    from gpuyard.api import audit, reports

    reports.check_file(call.option("report"))
    made = audit.audit(call.site(), audit.AuditRequest(everything=call.params["everything"]))
    return made.to_dict() | reports.keep(
        call.option("report"), made.render(call.params["format"]), check=call.check_mode, progress=call.progress
    )


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
