#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each account has and may do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: account_info
short_description: Show balance, keys, rights and what bills in each account
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Asks every cloud that has a key at the same time, whether it takes the key, what the account's balance is, what it
    bills an hour now (machines, volumes, filesystems and snapshots), what the key may do, and which SSH keys and stored
    variables the account has.
  - For a key that is refused it says what to do, also where the cloud takes it from certain addresses only.
  - A cloud that does not answer hides no other one. No cloud's API says what its quotas are.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options: {}
seealso:
  - module: gpuyard.cloud.readiness
  - module: gpuyard.cloud.account_variable
  - module: gpuyard.cloud.ssh_key
"""

EXAMPLES = r"""
- name: See what is in all accounts
  gpuyard.cloud.account_info:
  register: accounts
"""

RETURN = r"""
accounts:
  description:
    - The accounts. A value is empty where the cloud does not say it, or the key may not read it.
    - C(key_valid) is empty where the cloud could not be asked. C(problem) says what went wrong, C(hint) what to do.
    - C(unpriced) names what bills at a price that the cloud does not say; it is not in C(billed_per_hour_usd).
  returned: success
  type: list
  elements: dict
  sample:
    - provider: vultr
      title: Vultr
      key_valid: true
      credit_usd: 41.5
      billed_per_hour_usd: 1.34
      instances: 1
      unpriced: []
      rights: [provisioning, subscriptions_view]
      can_rent: true
      variables: null
      ssh_keys: [gpuyard]
      problem: ""
      hint: ""
      sandbox: false
without_key:
  description: The clouds for which there is no key.
  returned: success
  type: list
  elements: str
text:
  description: The same as a table.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = dict(PROVIDER_OPTIONS)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Return what the accounts have."""
    from gpuyard.api import account

    found = account.accounts(call.site())
    return found.to_dict() | {"text": found.render()}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
