# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The secret files that a box needs, straight from the controller's disk."""

from __future__ import annotations

DOCUMENTATION = r"""
name: box_secret_files
short_description: Secret files that a rented machine needs
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Returns one dictionary with the content of files of the controller, in Base64, by the environment variables that are
    to hold their paths on the machine.
  - Use it in the arguments of a task with C(no_log), directly in the expression that delivers the files.
options:
  _terms:
    description: Dictionaries from a variable's name to the path of the file on the controller.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Have the stages run
  ansible.builtin.include_role:
    name: gpuyard.cloud.stages
  vars:
    stages_run: miniprover-0
    stages_workload: "{{ gpuyard_workload }}"
    stages_secret_files: >-
      {{ lookup('gpuyard.cloud.box_secret_files', {'GOOGLE_APPLICATION_CREDENTIALS': '/home/me/key.json'}) }}
"""

RETURN = r"""
_raw:
  description: One dictionary, from the name of an environment variable to the file's content in Base64.
  type: list
  elements: dict
"""

import base64
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """The lookup gpuyard.cloud.box_secret_files."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        """Return the files; raises AnsibleError, naming variable and file, when one cannot be read."""
        contents: dict[str, str] = {}
        for name, path in [item for term in terms for item in term.items()]:
            try:
                with open(path, "rb") as stream:
                    contents[name] = base64.b64encode(stream.read()).decode()
            except OSError as error:
                raise AnsibleError(f"{name}: {path} cannot be read: {error.strerror}.") from None
        return [contents]
