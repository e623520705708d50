# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that a play was given, wherever they were said."""

from __future__ import annotations

DOCUMENTATION = r"""
name: play_options
short_description: The options that a play was given
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Returns one dictionary of the options of a play of this collection that are set, in extra variables, C(group_vars)
    or the play itself, with their values worked out. A launch can be repeated with it.
  - Extra variables that are options of this collection's roles are among them. Other variables are not.
options:
  _terms:
    description: The name of the play.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Show what the launch was given
  ansible.builtin.debug:
    msg: "{{ lookup('gpuyard.cloud.play_options', 'launch') }}"
"""

RETURN = r"""
_raw:
  description: One dictionary, from the name of an option to its value.
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._given import play_options, role_options


class LookupModule(LookupBase):
    """The lookup gpuyard.cloud.play_options."""

    def run(
        self, terms: Sequence[Any], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return the options."""
        require_core(AnsibleError)
        known = variables or {}
        names = [name for play in self._flatten(terms) for name in play_options(play)]
        extra = load_extra_vars(self._loader)
        names += [name for name in extra if name not in names and name in role_options()]
        values = {name: self._templar.template(known[name]) for name in names if name in known}
        return [{name: value for name, value in values.items() if value not in (None, "")}]
