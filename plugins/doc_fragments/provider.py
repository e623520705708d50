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
      - Ask only this cloud, for example V(vast) or V(vultr).
      - By default, the environment variable E(GPUYARD_PROVIDER) says it, and without that every cloud is asked for
        which a key is found.
      - A key is never an option, so that it cannot end up in a log, a fact cache or a command line. It comes from the
        environment (E(VAST_API_KEY), E(VULTR_API_KEY)) or from the file in which the provider's own tool keeps it.
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

    # What the plugins that list rented machines have in common.
    INVENTORY = r"""
options:
  provider:
    description:
      - Ask this plugin's cloud only when it is the one named here.
      - The extra variable C(provider) (C(-e provider=vast)) wins over this option.
    type: str
    env:
      - name: GPUYARD_PROVIDER
  sandbox:
    description:
      - Whether to list the machines of the clouds that C(gpuyard sandbox) emulates on this machine instead of the
        real ones.
      - In order of precedence it is said by the extra variable C(sandbox), by this option, by E(GPUYARD_SANDBOX), and
        by C(sandbox) in the C(group_vars/all.yml) next to the inventory.
      - Where nobody says anything, the real cloud is asked when there is a key for it. When there is no key of any
        cloud, and a sandbox runs in the default state folder, the machines of the sandbox are listed, with
        C(gpuyard_emulated) set. So C(ansible-inventory --graph) shows what
        C(ansible-playbook launch.yml -e sandbox=true) has rented.
      - A sandbox that does not run has no hosts; the inventory never starts it.
    type: bool
    env:
      - name: GPUYARD_SANDBOX
  sandbox_state:
    description:
      - The folder in which the sandbox keeps its state, C(~/.gpuyard/sandbox) when nobody says otherwise.
      - The extra variable C(sandbox_state) wins over it.
    type: path
    env:
      - name: GPUYARD_SANDBOX_STATE
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached, gpuyard's own key when nobody says
        otherwise.
      - The extra variable C(ssh_key) wins over it.
    type: path
requirements:
  - gpuyard (the Python package that this collection belongs to), in the Python that runs Ansible
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and say what would change, without changing anything.
  diff_mode:
    description: Can say in diff mode what was changed, or would be changed in check mode.
"""
