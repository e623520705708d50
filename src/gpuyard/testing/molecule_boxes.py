"""What the driver's playbooks run: ``python -m gpuyard.testing.molecule_boxes FOLDER PLATFORMS INSTANCES``.

``PLATFORMS`` is a JSON list as it stands in ``molecule.yml``; ``INSTANCES`` is where molecule finds each of them.
Without platforms the sandbox in ``FOLDER`` ends. An expected failure is one sentence, and leaves nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpuyard.errors import GpuyardError
from gpuyard.files import write_whole
from gpuyard.testing import kit

_NO_CONDITIONS = {"name", "provider", "groups", "children"}


def create(folder: Path, platforms: list[dict[str, Any]], instances: Path) -> None:
    """Start the sandbox, rent a box for each platform, and write how each is reached."""
    sandbox = kit.start(folder)
    rows = []
    try:
        for platform in platforms:
            conditions = {name: value for name, value in platform.items() if name not in _NO_CONDITIONS}
            box = sandbox.rent(platform.get("provider", "vast"), run=platform["name"], **conditions)
            way = box.variables
            rows.append(
                {
                    "instance": box.name,
                    "address": way["ansible_host"],
                    "port": str(way["ansible_port"]),
                    "user": way["ansible_user"],
                    "identity_file": way["ansible_ssh_private_key_file"],
                }
            )
    except GpuyardError:
        kit.end(folder)
        raise
    write_whole(instances, json.dumps(rows, indent=1))


def main(folder: str, platforms: str, instances: str) -> int:
    """Create or end; the exit code is 1 after a failure."""
    try:
        if wanted := json.loads(platforms):
            create(Path(folder), wanted, Path(instances))
        else:
            kit.end(Path(folder))
    except GpuyardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
