"""Variables and ports of a machine, as Vast's create call says them; RunPod's are checked alike."""

from __future__ import annotations

import json
import re

from gpuyard.sandbox.fields import BadField, shown
from gpuyard.sandbox.model import SSH

_ENV_MAX_BYTES = 32_768
_MOST_PORTS = 64
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT_FLAG = re.compile(r"-p\s+(\d{1,5}):(\d{1,5})(?:/tcp)?")
_LINE_ENDS = re.compile(r"[\r\n\0]")


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
            if port != SSH and port not in ports:
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
