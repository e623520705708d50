# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: box_zip
author: gpuyard contributors (@gpuyard)
version_added: "0.1.0"
short_description: The archive with gpuyard's own code for rented machines
description:
  - Builds the archive that holds the stage runner and the checkpoint code, and returns its path on the controller.
  - The archive's bytes depend on its sources only, so a machine that has it already is recognised by its hash.
options: {}
"""

EXAMPLES = r"""
- name: Have gpuyard's own code on the machine
  ansible.builtin.copy:
    src: "{{ lookup('gpuyard.cloud.box_zip') }}"
    dest: /opt/gpuyard/box.zip
    mode: "0644"
"""

RETURN = r"""
_raw:
  description: The archive's path on the controller.
  type: list
  elements: path
"""

from contextlib import suppress
import hashlib
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core

with suppress(ImportError):  # told when the lookup runs
    from gpuyard import boxzip, paths


class LookupModule(LookupBase):
    """Builds the archive."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the path of the archive that belongs to this gpuyard."""
        require_core(AnsibleError)
        try:
            # By its content: another gpuyard of the same user may be at work, and must not have its archive replaced.
            path = paths.cache() / f"box-{hashlib.sha256(boxzip.content()).hexdigest()[:16]}.zip"
            boxzip.build(path)
        except OSError as problem:
            raise AnsibleError(f"The archive for rented machines cannot be written: {problem}.") from problem
        return [str(path)]
