# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machines that gpuyard rents at Vultr, as inventory hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vultr
short_description: Machines that gpuyard rents at Vultr
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lists the machines of the account whose tags say that gpuyard rented them.
  - A host has the name of its run; where a run has several nodes, C(<run>.<node>). A second machine of a node, and one
    that was taken away, has the end of its instance id behind that.
  - Every host is in the group C(gpuyard) and in groups by provider, run, workload, pool, GPU, region and state, for
    example C(provider_vultr), C(run_miniprover_0), C(workload_miniprover), C(pool_main),
    C(gpu_a16), C(region_ewr), C(state_running).
  - Variables of a host are C(gpuyard_provider), C(gpuyard_instance_id), C(gpuyard_run), C(gpuyard_workload),
    C(gpuyard_node), C(gpuyard_state), C(gpuyard_status_text), C(gpuyard_gpu_name), C(gpuyard_gpu_count),
    C(gpuyard_gpu_ram_gb), C(gpuyard_region), C(gpuyard_market), C(gpuyard_price_per_hour_usd), C(gpuyard_created_at),
    C(gpuyard_emulated), and what Ansible needs to reach it over SSH with its host key pinned.
  - Without a key there are no hosts and no error. A cloud that does not answer is a warning.
  - The file must be named C(vultr.yml) or C(vultr.yaml), or end with it, as in C(my.vultr.yml).
extends_documentation_fragment:
  - constructed
  - inventory_cache
  - gpuyard.cloud.provider.inventory
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [gpuyard.cloud.vultr]
"""

EXAMPLES = r"""
# inventories/vultr.yml
plugin: gpuyard.cloud.vultr

# Groups and variables of one's own, and a cache for large inventories:
# plugin: gpuyard.cloud.vultr
# cache: true
# cache_plugin: ansible.builtin.jsonfile
# cache_connection: .ansible/inventory
# cache_timeout: 60
# groups:
#   cheap: gpuyard_price_per_hour_usd < 0.5
# keyed_groups:
#   - key: gpuyard_market
#     prefix: market
# compose:
#   cost_per_day: gpuyard_price_per_hour_usd * 24
"""

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._inventory import CloudInventory


class InventoryModule(CloudInventory):
    """The inventory plugin gpuyard.cloud.vultr."""

    NAME = "gpuyard.cloud.vultr"
    provider = "vultr"
