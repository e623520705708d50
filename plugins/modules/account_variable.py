#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A variable that clouds keep for an account."""

from __future__ import annotations

DOCUMENTATION = r"""
module: account_variable
short_description: Store a variable in accounts, or delete it
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - A cloud that keeps variables for an account puts them into the environment of each new machine. Where a cloud keeps
    none, the task says how gpuyard delivers them instead.
  - The value is never an option, so that it cannot end up in a log, a fact cache or a command line. It comes from the
    environment of the controller or from a file that nobody else may read, and is in no output, neither with C(--diff).
  - No cloud gives a value back. So a variable that is there is kept, unless O(overwrite=true).
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
  state:
    description: Whether the accounts are to have the variable.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Its name, of upper-case letters, digits and C(_).
    type: str
    required: true
  variable:
    description: The environment variable of the controller that holds the value. By default, that of the same name.
    type: str
  file:
    description: The path of a file that holds the value, and that nobody else may read.
    type: path
  overwrite:
    description: Whether one that is there is stored again, since its value may be another one.
    type: bool
    default: false
seealso:
  - module: gpuyard.cloud.account_environment
  - module: gpuyard.cloud.account_info
"""

EXAMPLES = r"""
- name: Store the key of Weights & Biases that is in the environment
  gpuyard.cloud.account_variable:
    provider: vast
    name: WANDB_API_KEY

- name: Store a token from a file
  gpuyard.cloud.account_variable:
    name: HF_TOKEN
    file: ~/.config/hub/token
    overwrite: true
"""

RETURN = r"""
resources:
  description: The variable in each account, without its value; empty when it was deleted.
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
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "name": {"type": "str", "required": True},
    "variable": {"type": "str"},
    "file": {"type": "path"},
    "overwrite": {"type": "bool", "default": False},
}
CONDITIONS: dict[str, Any] = {"mutually_exclusive": [("variable", "file")]}


def run(call: Call) -> dict[str, Any]:
    """Store the variable, or delete it."""
    from gpuyard.api import variables

    name = call.params["name"]
    how: dict[str, Any] = {"check": call.check_mode, "progress": call.progress}
    variables.check_name(name)
    if call.params["state"] == "absent":
        return variables.remove(call.site(), [name], **how).to_dict(check=call.check_mode)
    value = variables.value_of(name, call.option("variable"), call.option("file"))
    outcome = variables.store(call.site(), {name: value}, overwrite=call.params["overwrite"], **how)
    return outcome.to_dict(check=call.check_mode)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
