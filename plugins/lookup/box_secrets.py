# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The secrets that a box needs, straight from the controller's environment."""

from __future__ import annotations

DOCUMENTATION = r"""
name: box_secrets
short_description: Secrets that a rented machine needs
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Returns one dictionary of environment variables with what must not be an extra variable, a fact or a registered
    result. These are the variables that the workload requires, and the keys of the bucket.
  - Use it in the arguments of a task with C(no_log), directly in the expression that delivers the secrets.
  - The keys of the clouds are never among them, since the account's key never goes to a rented machine.
options:
  _terms:
    description: Names of environment variables that have to be set on the controller.
    type: list
    elements: str
  optional:
    description: Names of environment variables that are returned when they are set on the controller.
    type: list
    elements: str
    default: []
  bucket:
    description:
      - The bucket's address, as in M(gpuyard.cloud.run_plan). An S3 bucket adds C(AWS_ACCESS_KEY_ID),
        C(AWS_SECRET_ACCESS_KEY) and C(AWS_DEFAULT_REGION), a container at Azure C(AZURE_STORAGE_SAS_TOKEN), or without
        that C(AZURE_STORAGE_KEY) and C(AZURE_STORAGE_CONNECTION_STRING) as far as they are set. A bucket at Google adds
        nothing, since its key is a file; see the lookup P(gpuyard.cloud.box_secret_files#lookup).
    type: str
  bucket_endpoint:
    description: The address of the bucket's service, as in M(gpuyard.cloud.run_plan).
    type: str
  sandbox:
    description: Whether the sandbox's bucket is meant.
    type: bool
    env:
      - name: GPUYARD_SANDBOX
  sandbox_state:
    description: The folder in which the sandbox keeps its state.
    type: path
    env:
      - name: GPUYARD_SANDBOX_STATE
"""

EXAMPLES = r"""
- name: Deliver the secrets to a file that only root can read
  ansible.builtin.copy:
    content: |
      {% for name, value in lookup('gpuyard.cloud.box_secrets', 'WANDB_API_KEY') | dictsort %}
      {{ name }}={{ value | quote }}
      {% endfor %}
    dest: /opt/gpuyard/run/secrets.env
    mode: "0600"
  no_log: true
"""

RETURN = r"""
_raw:
  description: One dictionary, from the name of an environment variable to its value.
  type: list
  elements: dict
"""

import os
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core

with suppress(ImportError):  # told when the lookup runs
    from gpuyard import config
    from gpuyard.errors import GpuyardError
    from gpuyard.formats.location import KEY_FILES


class LookupModule(LookupBase):
    """The lookup gpuyard.cloud.box_secrets."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        """Return the secrets; raises AnsibleError, naming the variables, when one is not set."""
        require_core(AnsibleError)
        self.set_options(var_options=variables, direct=kwargs)
        names = self._flatten(terms)
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise AnsibleError(f"Not set in the controller's environment: {', '.join(missing)}.")
        optional = [name for name in self.get_option("optional") if os.environ.get(name)]
        secrets = {name: os.environ[name] for name in [*names, *optional]}
        return [secrets | self._bucket_keys()]

    def _bucket_keys(self) -> dict[str, str]:
        """Return the bucket's keys under the names that the clouds' own tools read, nothing where it has none."""
        options = {name: self.get_option(name) for name in ("bucket_endpoint", "sandbox", "sandbox_state")}
        try:
            settings = config.s3_settings(self.get_option("bucket"), **options)
        except GpuyardError as error:
            raise AnsibleError(str(error)) from error
        keys = {name: value for name, value in config.keys_for_boxes(settings).items() if name not in KEY_FILES}
        return keys | ({"AWS_DEFAULT_REGION": settings.region} if keys and settings.region else {})
