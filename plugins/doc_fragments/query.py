# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that say what a machine has to offer."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  gpu_count:
    description: The least number of GPUs.
    type: float
  gpu_ram_gb:
    description: The least memory of each GPU, in gigabytes.
    type: float
  gpu_names:
    description:
      - Models of GPU, any of which will do, for example V(RTX 4090) or V(A100 SXM4).
      - A name is a whole one; V(A100) takes every build of it, V(RTX) takes nothing. V(_) stands for a space.
    type: list
    elements: str
    default: []
  cpu_cores:
    description: The least number of CPU cores.
    type: float
  ram_gb:
    description: The least main memory, in gigabytes.
    type: float
  disk_gb:
    description: The disk to rent, in gigabytes; its price is part of an offer's price.
    type: float
  cuda:
    description: The lowest version of CUDA that the driver has to support, for example V("12.4").
    type: str
  reliability:
    description: The least reliability, from 0 to 1, at the providers that publish one.
    type: float
  regions:
    description: Regions, any of which will do, in the provider's own spelling.
    type: list
    elements: str
    default: []
  market:
    description: Whether the provider may take the machine away at any time, for a lower price.
    type: str
    choices: [on-demand, interruptible, any]
  max_price_per_hour:
    description: The highest price that will do, in US dollars an hour for the whole machine and its disk.
    type: float
"""
