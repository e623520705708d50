#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A public SSH key that accounts let into their new machines."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_key
short_description: Give a public SSH key to accounts, or take it away
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Works at every cloud that keeps keys for its account, or at the one that O(provider) names.
  - A key that an account has is recognised by its content, whatever it is called there.
  - Machines that live are not changed, whatever happens to the keys of their account.
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
    description: Whether the accounts are to have the key.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - What it is called in the account.
      - With O(state=absent), the key of that name is taken away, unless O(public_key) or O(public_key_file) say which.
    type: str
    default: gpuyard
  public_key:
    description: The public key, one line. By default, that of the key with which gpuyard reaches its machines.
    type: str
  public_key_file:
    description: The path of the file that holds it.
    type: path
  ssh_key:
    description: The path of the private key whose public half is meant where none is given. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.account_info
"""

EXAMPLES = r"""
- name: Let my own key into the machines that are rented from now on
  gpuyard.cloud.ssh_key:
    name: laptop
    public_key_file: ~/.ssh/id_ed25519.pub
"""

RETURN = r"""
resources:
  description: The key in each account; empty when it was taken away.
  returned: success
  type: list
  elements: dict
  sample:
    - {provider: vultr, kind: ssh-key, id: 3b8066a7, name: laptop}
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["make SSH key laptop at Vultr"]
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
    "name": {"type": "str", "default": "gpuyard"},
    "public_key": {"type": "str", "no_log": False},
    "public_key_file": {"type": "path", "no_log": False},
    "ssh_key": {"type": "path", "no_log": False},
}
CONDITIONS: dict[str, Any] = {"mutually_exclusive": [("public_key", "public_key_file")]}


def run(call: Call) -> dict[str, Any]:
    """Give the key to the accounts, or take it away."""
    from gpuyard.api import keys

    site, name = call.site(), call.params["name"]
    text, file = call.option("public_key"), call.option("public_key_file")
    if call.params["state"] == "present":
        key = keys.public_key(site, text, file)
        outcome = keys.add(site, name, key, check=call.check_mode, progress=call.progress)
    else:
        doomed = keys.public_key(site, text, file) if text or file else None
        outcome = keys.remove(site, name, doomed, check=call.check_mode, progress=call.progress)
    return outcome.to_dict(check=call.check_mode)


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
