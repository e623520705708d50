# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that every verb over the clouds shares, and what check and diff mode mean for them."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  provider:
    description:
      - Ask only this cloud, V(vast), V(vultr), V(lambda) or V(runpod), or V(own) for the boxes that belong to the
        user. Those are the hosts of C(inventories/own.yml), or of the file that E(GPUYARD_OWN_BOXES) names.
      - With V(skypilot), the clouds that E(GPUYARD_SKYPILOT) names in their order, through SkyPilot. It needs the extra
        C(gpuyard[skypilot]).
      - By default, the environment variable E(GPUYARD_PROVIDER) says it, and without that every cloud is asked for
        which a key is found.
      - A key is never an option, so that it cannot end up in a log, a fact cache or a command line. It comes from the
        environment (E(VAST_API_KEY), E(VULTR_API_KEY), E(LAMBDA_API_KEY), E(RUNPOD_API_KEY)) or from the file in which
        the provider's own tool keeps it.
    type: str
  sandbox:
    description:
      - Whether to use the clouds that C(gpuyard sandbox) emulates on this machine instead of the real ones.
      - By default, the environment variable E(GPUYARD_SANDBOX) decides, and without that it is off.
    type: bool
  sandbox_state:
    description:
      - The folder in which the sandbox keeps its state; it names one of several sandboxes.
      - By default, the environment variable E(GPUYARD_SANDBOX_STATE) is used, and without that C(~/.gpuyard/sandbox).
      - What plans a launch or rents starts a sandbox that does not run; to everything else, one that does not run is an
        error, so that a misspelt folder does not become another sandbox.
    type: path
requirements:
  - gpuyard (the Python package that this collection belongs to), in the Python that runs Ansible
notes:
  - This runs on the controller, whatever host the task is for, in the Python that runs Ansible.
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and say what would change, without changing anything.
  diff_mode:
    description: Can say in diff mode what was changed, or would be changed in check mode.
"""
