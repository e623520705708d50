#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The variables of a file, stored in accounts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: account_environment
short_description: Store the variables of a .env file in accounts, or list what is stored
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Stores the variables of a file of C(NAME=value) lines at every cloud that keeps variables for an account, and says
    how gpuyard delivers them to machines of the others.
  - A file that others may read is refused. What the file leaves empty comes from the environment of the controller.
  - Without a file, those of E(WANDB_API_KEY), E(WANDB_PROJECT), E(WANDB_ENTITY), E(B2_KEY_ID), E(B2_APP_KEY),
    E(B2_S3_ENDPOINT), E(B2_S3_REGION) and E(B2_BUCKET) are stored that are set in the environment.
  - No value is in any output, neither with C(--diff). A variable that is there is kept, unless O(overwrite=true),
    since no cloud gives a value back.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
    details: RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: full
options:
  env_file:
    description: The path of the file. By default C(.env), where there is one.
    type: path
  names:
    description: Which variables. By default, all of the file.
    type: list
    elements: str
    default: []
  list:
    description: Whether to list what is stored, by name, and to store nothing.
    type: bool
    default: false
  overwrite:
    description: Whether what is there is stored again.
    type: bool
    default: false
seealso:
  - module: gpuyard.cloud.account_variable
"""

EXAMPLES = r"""
- name: Store what .env says
  gpuyard.cloud.account_environment:
    overwrite: true

- name: List what is stored
  gpuyard.cloud.account_environment:
    list: true
"""

RETURN = r"""
resources:
  description: The variables in each account, without their values.
  returned: success
  type: list
  elements: dict
  sample:
    - {provider: vast, kind: variable, id: WANDB_API_KEY, name: WANDB_API_KEY}
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["make stored variable WANDB_API_KEY at Vast.ai"]
planned_calls:
  description: The writing calls to the provider's API that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
text:
  description: What a person should know of it.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "env_file": {"type": "path"},
    "names": {"type": "list", "elements": "str", "default": []},
    "list": {"type": "bool", "default": False},
    "overwrite": {"type": "bool", "default": False},
}
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Store the variables of the file, or list what is stored."""
    from gpuyard.api import variables

    site = call.site()
    if call.params["list"]:
        found = variables.stored(site)
        return found.to_dict() | {"actions": [], "text": found.render()}
    values = variables.collected(call.option("env_file"), call.params["names"])
    overwrite = call.params["overwrite"]
    outcome = variables.store(site, values, overwrite=overwrite, check=call.check_mode, progress=call.progress)
    return outcome.to_dict(check=call.check_mode)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
