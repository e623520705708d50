"""What a rental's box is given at its first start, made from what the create call said.

Nothing but the rental itself is needed for it, so that a box whose making was interrupted can be made once more.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuyard.sandbox import boxes
from gpuyard.sandbox.fields import BadField, shown
from gpuyard.sandbox.model import Json, Rental

_ENV_MAX_BYTES = 32_768
_MOST_PORTS = 64
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT_FLAG = re.compile(r"-p\s+(\d{1,5}):(\d{1,5})(?:/tcp)?")
_LINE_ENDS = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Boot:
    """What a rental's container is given at its first start."""

    gpu: Json
    environment: Mapping[str, str] = field(default_factory=dict)
    onstart: str = ""
    user_data: bytes = b""


def boot(rental: Rental, own_key: str = "") -> Boot:
    """Return what the rental's box is given; ``own_key`` is that of the instance, where its cloud gives it one."""
    if rental.provider == "vultr":
        user_data = base64.b64decode(rental.request.get("user_data") or "")
        return Boot(_vultr_gpu(rental.item_record), user_data=user_data)
    if rental.provider == "lambda":
        return Boot(_lambda_gpu(rental.item_record), user_data=str(rental.request.get("user_data") or "").encode())
    if rental.provider == "runpod":
        return Boot(_runpod_gpu(rental), {**_runpod_variables(rental), "RUNPOD_API_KEY": own_key})
    variables, _ = vast_environment(rental.request.get("env"))
    # What the create call says comes before what the account has stored.
    given = _vast_variables(rental, {**rental.request.get("account_env", {}), **variables})
    given["CONTAINER_API_KEY"] = own_key
    return Boot(_vast_gpu(rental.item_record), given, str(rental.request.get("onstart") or ""))


def vast_environment(given: object) -> tuple[dict[str, str], list[int]]:
    """Split ``env`` into variables and container ports; a string in its place is ignored, as by the real server.

    What begins with a dash are options of Docker, of which the sandbox carries out TCP ports.
    """
    if given is None or isinstance(given, str):
        return {}, []
    if not isinstance(given, dict):
        raise BadField("env is not an object.")
    if len(json.dumps(given).encode()) > _ENV_MAX_BYTES:
        raise BadField(f"env is longer than {_ENV_MAX_BYTES} bytes.")
    variables: dict[str, str] = {}
    ports: list[int] = []
    for name, value in given.items():
        if name.startswith("-"):
            port = _port(name)
            if port != boxes.SSH and port not in ports:
                ports.append(port)
        elif not _VARIABLE.fullmatch(name):
            raise BadField(f"env: {shown(name)!r} is not a variable's name (letters, digits and _).")
        elif not isinstance(value, str | int | float) or _LINE_ENDS.search(str(value)):
            raise BadField(f"env: the value of {shown(name)} is not a text of one line.")
        else:
            variables[name] = str(value)
    if len(ports) >= _MOST_PORTS:
        raise BadField(f"env: more than {_MOST_PORTS} ports.")
    return variables, ports


def _port(option: str) -> int:
    flag = _PORT_FLAG.fullmatch(option)
    if flag is None:
        raise BadField(f"env: the sandbox does not carry out {shown(option)!r}, only TCP ports as in '-p 8080:8080'.")
    # From 70000 on Vast means "the same number outside", which is not carried out here.
    if not all(1 <= int(port) <= 65_535 for port in flag.groups()):
        raise BadField(f"env: {shown(option)!r} names a port that is not between 1 and 65535.")
    return int(flag[2])


def _vast_variables(rental: Rental, variables: Mapping[str, str]) -> dict[str, str]:
    ports = {f"VAST_TCP_PORT_{inside}": str(outside) for inside, outside in rental.ports.items()}
    return {
        **variables,
        **ports,
        "CONTAINER_ID": rental.id,
        "VAST_CONTAINERLABEL": f"C.{rental.id}",
        "PUBLIC_IPADDR": rental.address,
        "GPU_COUNT": str(rental.item_record["num_gpus"]),
        "DATA_DIRECTORY": "/workspace",
    }


def _vast_gpu(record: Json) -> Json:
    return {
        "name": record["gpu_name"],
        "count": record["num_gpus"],
        "memory_mb": record["gpu_ram"],
        "driver": record["driver_version"],
        "cuda": str(record["cuda_max_good"]),
        "compute_cap": f"{record['compute_cap'] / 100:.1f}",
    }


def _runpod_variables(rental: Rental) -> dict[str, str]:
    ports = {f"RUNPOD_TCP_PORT_{inside}": str(outside) for inside, outside in rental.ports.items()}
    return {**rental.request["env"], **ports, "RUNPOD_POD_ID": rental.id, "RUNPOD_PUBLIC_IP": rental.address}


def _runpod_gpu(rental: Rental) -> Json:
    kind = rental.item_record
    return {
        "name": kind["id"],
        "count": rental.request["count"],
        "memory_mb": kind["memory"] * 1024,
        "driver": "565.57.01",
        "cuda": "12.7",
    }


def _lambda_gpu(kind: Json) -> Json:
    model, _, rest = kind["gpu_description"].partition(" (")
    return {
        "name": f"NVIDIA {model}",
        "count": kind["specs"]["gpus"],
        "memory_mb": int(rest.split()[0]) * 1024 if rest else 0,
        "driver": "570.148.08",
        "cuda": "12.8",
    }


def _vultr_gpu(plan: Json) -> Json:
    if not plan["gpu_count"]:
        return {"name": "none", "count": 0, "memory_mb": 0, "driver": "0", "cuda": "0"}
    # A share of a GPU shows as one GPU with the share's memory.
    count = 1 if isinstance(plan["gpu_count"], str) else int(plan["gpu_count"])
    return {
        "name": plan["gpu_type"].replace("_", " "),
        "count": count,
        "memory_mb": int(plan["gpu_vram_gb"] * 1024 / count),
        "driver": "550.90.07",
        "cuda": "12.4",
    }
