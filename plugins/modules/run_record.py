#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bucket says of a run as a whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_record
short_description: Say in the bucket that a run was torn down on purpose
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - A run without a machine is one to resume, unless its record says that it ended. The machine itself writes there
    that a run is done or has failed; that the user gave it up, only the user can say.
  - No checkpoint is removed. A cancelled run can be resumed when it is named.
  - Uploads that the run's machines did not finish are removed. They take room that no listing shows.
  - Changes nothing when there is no bucket, when the bucket does not know the run, and when the run had ended.
  - A bucket that does not answer is a warning, since what matters more, the end of the rental, does not need it.
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
    description: The name of the run.
    type: str
    required: true
  outcome:
    description: What became of the run.
    type: str
    choices: [cancelled]
    default: cancelled
seealso:
  - module: gpuyard.cloud.run_info
  - module: gpuyard.cloud.instance
"""

EXAMPLES = r"""
- name: Give a run up
  gpuyard.cloud.run_record:
    run: miniprover-0
"""

RETURN = r"""
text:
  description: Why the bucket could not be told, if so.
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
        "run": {"type": "str", "required": True},
        "outcome": {"type": "str", "choices": ["cancelled"], "default": "cancelled"},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Write the run's end into its record."""
    from gpuyard.api import end

    return end.cancel(call.site(), call.params["run"], check=call.check_mode).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
