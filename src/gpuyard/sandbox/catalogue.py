"""What the emulated clouds offer, from ``catalogue.json``: realistic prices and sizes, and the traps of real lists.

Vast's records are kept short there; :func:`vast_offer` renders the many fields of the real answer
(docs/reference/vast.md, Offers).
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import cast

from gpuyard.sandbox.bill import HOURS_PER_MONTH
from gpuyard.sandbox.model import Json

DEFAULT_STORAGE_GB = 8.0  # what Vast counts into dph_total when the search does not say
_ASKS_PER_MACHINE = 1000
_HOST_OFFSET = 60_000


@functools.cache
def load() -> Json:
    """Return the catalogue as it stands in the package."""
    return cast(Json, json.loads((Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8")))


def vast_records() -> list[Json]:
    """Return Vast's machines."""
    return list(load()["vast"]["offers"])


def vast_market(count: int, seed: int) -> list[Json]:
    """Return ``count`` machines that look like Vast's own, the same ones for the same ``seed``.

    Each is one of the catalogue's with another id, price, place and reliability, and other sizes.
    """
    dice = random.Random(seed)
    machines = vast_records()
    places = sorted({str(machine["geolocation"]) for machine in machines if machine["geolocation"]})
    found = []
    for number in range(count):
        machine = dice.choice(machines)
        price = machine["dph_base"] * dice.uniform(0.7, 1.6)
        found.append(
            {
                **machine,
                "machine_id": 100_000 + number,
                "dph_base": round(price, 4),
                "min_bid": round(price * dice.uniform(0.4, 0.7), 4),
                "disk_space": dice.choice([40, 120, 400, 1600]),
                "reliability": round(dice.uniform(0.85, 0.9999), 4),
                "cpu_cores_effective": dice.choice([4, 8, 16, 32]),
                "inet_up": dice.randrange(20, 2000),
                "inet_down": dice.randrange(50, 4000),
                "dlperf": round(machine["dlperf"] * dice.uniform(0.85, 1.1), 1),
                "geolocation": dice.choice(places),
                "hosting_type": dice.randrange(2),
            }
        )
    return found


def vast_ask_id(record: Json, listing: int) -> int:
    """Return the id of a machine's ask; every new listing of the machine has a new one."""
    return int(record["machine_id"]) * _ASKS_PER_MACHINE + listing


def storage_per_hour(record: Json, disk_gb: float) -> float:
    """Return what ``disk_gb`` costs an hour on this machine, in dollars."""
    return float(record["storage_cost"]) * disk_gb / HOURS_PER_MONTH


def vast_offer(record: Json, *, listing: int, rentable: bool, bid: bool, storage_gb: float, now: float) -> Json:
    """Return one offer as a search answers it; memory in MB, disk in GB, prices in dollars an hour."""
    ask = vast_ask_id(record, listing)
    gpus = int(record["num_gpus"])
    base = float(record["min_bid"] if bid else record["dph_base"])
    storage = storage_per_hour(record, storage_gb)
    total = base + storage
    listed_s = float(record["days_listed"]) * 86400
    machine_gpus = max(gpus, round(gpus * record["cpu_cores"] / record["cpu_cores_effective"]))
    score = record["dlperf"] / total * record["reliability"]
    offer = {key: value for key, value in record.items() if key != "days_listed"}
    offer.update(
        {
            "id": ask,
            "ask_contract_id": ask,
            "bundle_id": ask + 500_000,
            "host_id": _HOST_OFFSET + int(record["machine_id"]) % 1000,
            "gpu_total_ram": record["gpu_ram"] * gpus,
            "gpu_frac": gpus / machine_gpus,
            "gpu_arch": "nvidia",
            "gpu_ids": list(range(gpus)),
            "gpu_lanes": 16,
            "gpu_max_temp": 88.0,
            "gpu_display_active": False,
            "bw_nvlink": 0.0,
            "pcie_bw": 24.0,
            "pci_gen": 4.0,
            "cpu_arch": "amd64",
            "cpu_ghz": 3.4,
            "has_avx": 1,
            "mobo_name": "emulated",
            "disk_bw": 2400.0,
            "disk_name": "emulated",
            "driver_vers": driver_number(record["driver_version"]),
            "dph_base": base,
            "dph_total": total,
            "dph_total_adj": total,
            "discounted_dph_total": total,
            "storage_total_cost": storage,
            "search": {
                "gpuCostPerHour": base,
                "diskHour": storage,
                "totalHour": total,
                "discountTotalHour": 0.0,
                "discountedTotalPerHour": total,
            },
            "internet_up_cost_per_tb": record["inet_up_cost"] * 1000,
            "internet_down_cost_per_tb": record["inet_down_cost"] * 1000,
            "dlperf_per_dphtotal": record["dlperf"] / total,
            "total_flops": record["dlperf"] * 1.1,
            "flops_per_dphtotal": record["dlperf"] * 1.1 / total,
            "score": score,
            "reliability2": record["reliability"],
            "expected_reliability": record["reliability"],
            "verified": record["verification"] == "verified",
            "vericode": 1 if record["verification"] == "verified" else 0,
            "datacenter": record["hosting_type"] == 1,
            "static_ip": record["hosting_type"] == 1,
            "public_ipaddr": "127.77.0.1",
            "geolocode": None,
            "duration": listed_s,
            "time_remaining": "",
            "start_date": now - 30 * 86400,
            "end_date": now + listed_s,
            "rentable": rentable,
            "rented": not rentable,
            "is_bid": bid,
            "external": False,
            "resource_type": "gpu",
            "vms_enabled": False,
            "os_version": "22.04",
            "cluster_id": None,
            "avail_vol_ask_id": None,
            "avail_vol_dph": None,
            "avail_vol_size": None,
            "emulated": True,
        }
    )
    return offer


def driver_number(version: str) -> int:
    """Return ``535.86.05`` as 535086005, as the search compares it."""
    parts = [*version.split("."), "0", "0"][:3]
    return int("".join(f"{int(part):03d}" for part in parts))


def vultr_regions() -> list[Json]:
    """Return Vultr's regions."""
    return list(load()["vultr"]["regions"])


def vultr_os() -> list[Json]:
    """Return Vultr's operating systems."""
    return list(load()["vultr"]["os"])


def vultr_plans() -> list[Json]:
    """Return Vultr's plans for virtual machines."""
    return [{**plan, "emulated": True} for plan in load()["vultr"]["plans"]]


def vultr_metal() -> list[Json]:
    """Return Vultr's bare-metal plans."""
    return [{**plan, "emulated": True} for plan in load()["vultr"]["plans_metal"]]


def lambda_regions() -> list[Json]:
    """Return Lambda's regions."""
    return list(load()["lambda"]["regions"])


def lambda_types() -> list[Json]:
    """Return Lambda's instance types, each with the ``regions`` that have it."""
    return [{**kind, "emulated": True} for kind in load()["lambda"]["types"]]


def runpod_gpus() -> list[Json]:
    """Return RunPod's GPU types, each with ``where`` it is, by cloud, and the most of it that goes with one GPU."""
    return [{**kind, "emulated": True} for kind in load()["runpod"]["gpus"]]


def vultr_price(plan: Json, region: str) -> tuple[float, float]:
    """Return a plan's hourly and monthly price in a region."""
    here = {**plan, **plan["location_cost"].get(region, {})}
    suffix = "" if plan["deploy_ondemand"] else "_preemptible"
    return float(here[f"hourly_cost{suffix}"]), float(here[f"monthly_cost{suffix}"])
