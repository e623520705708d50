#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run has taken and cost, against what was planned."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_report
short_description: Report what a run has taken and cost
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Sets what was planned beside the truth, in hours and US dollars, by stage and machine, with the share of the hours
    in which no stage ran, losses, stages that began again, and bytes published.
  - Dollars are those of the ledger in the bucket. What the stages took is in the journal of the newest checkpoint, what
    was planned in the workload that the bucket keeps.
  - As HTML it is one page that needs nothing else, with a timeline of machines, stages and losses. Beside a Markdown
    file the timeline is an SVG of the same name.
  - It reads only, and works at any time, also when the run has no machine any more.
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
  run:
    description: The name of the run. Without it the task fails, and lists the runs there are.
    type: str
  format:
    description: The form. By default what the name of the file in O(report) says, else V(markdown).
    type: str
    choices: [markdown, html, json]
seealso:
  - module: gpuyard.cloud.run_end
"""

EXAMPLES = r"""
- name: Report on a run
  gpuyard.cloud.run_report:
    run: miniprover-0
    report: miniprover-0.html
"""

RETURN = r"""
text:
  description: The report.
  returned: success
  type: str
report:
  description: The report as values. Hours are hours, money is US dollars, times are seconds since 1970.
  returned: success
  type: dict
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
    | {"run": {"type": "str"}, "format": {"type": "str", "choices": ["markdown", "html", "json"]}}
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Report on the run."""
    from gpuyard.api import report

    request = report.ReportRequest(call.option("run") or "", call.option("format") or "", call.option("report"))
    return report.report(call.site(), request, check=call.check_mode, progress=call.progress)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
