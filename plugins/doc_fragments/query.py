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
  most_gpu_ram_gb:
    description: The most memory of each GPU, in gigabytes.
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
  driver:
    description: The lowest version of NVIDIA's driver, for example V("535.86"), at the providers that publish it.
    type: str
  compute_capability:
    description:
      - The lowest compute capability of the GPU, for example V("8.0"). Where a provider does not publish it, the
        model's own counts.
    type: str
  reliability:
    description: The least reliability, from 0 to 1, at the providers that publish one.
    type: float
  internet_mbit_s:
    description:
      - The least network speed in the slower direction, in millions of bits a second, at the providers that publish it.
    type: float
  static_ip:
    description: Whether the machine's address has to stay the same, at the providers that publish that.
    type: bool
  data_center:
    description: Whether the machine has to stand in a data centre, at the providers that publish that.
    type: bool
  regions:
    description:
      - Regions, any of which will do, in the provider's own spelling. With O(rank=regions), the first is the best.
    type: list
    elements: str
    default: []
  countries:
    description:
      - Countries of two letters, any of which will do, for example V(SE). An offer whose country is not known will not.
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
  rank:
    description:
      - What decides among the offers that fit; what is equal in that goes by the price.
      - With V(price), the price with disk and the workload's own traffic. With V(value), that price for what the GPUs
        do. With V(distance), how near the bucket is. With V(regions), the order in which O(regions) are named.
    type: str
    choices: [price, value, distance, regions]
"""
