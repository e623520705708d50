#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: health_check
short_description: See whether a box that is in shape can do its work
description:
  - Measures GPUs and disk with what gpuyard has brought onto the box, looks whether the data are there, and lets the
    environment's own torch compute on every GPU, with several of them also over NCCL.
  - Keeps the answer on the box as JSON. It changes only when a verdict does.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  gpu_count:
    description: How many GPUs there have to be; V(0) looks at none.
    type: int
    default: 0
  gpu_ram_gb:
    description: How much memory each has to have, in gigabytes; V(0) for any.
    type: float
    default: 0
  least:
    description:
      - The least that will do, by name. The names are V(gpu_bandwidth_gb_s), V(disk_mb_s) and V(disk_free_gb).
    type: dict
    default: {}
  data:
    description: Absolute paths or patterns that have to be there and hold something.
    type: list
    elements: str
    default: []
  python:
    description: The Python of the environment whose torch is tried; empty for none.
    type: str
    default: ""
  emulated:
    description: Whether the box is known to be the sandbox's, which has no GPU.
    type: bool
    default: false
  required:
    description: Whether a check that fails is an error.
    type: bool
    default: true
  box_zip:
    description: gpuyard's own code on the box.
    type: path
    default: /opt/gpuyard/box.zip
  report:
    description: Where the answer is kept.
    type: path
    default: /opt/gpuyard/health.json
attributes:
  check_mode:
    description: Measures nothing in check mode, and tells the last answer.
    support: partial
    details: What a measurement would say is not known before.
  diff_mode:
    description: Shows the verdicts before and after.
    support: full
"""

EXAMPLES = r"""
- name: See that there are two GPUs, and that torch computes on both
  gpuyard.cloud.health_check:
    gpu_count: 2
    python: /opt/gpuyard/envs/example/bin/python
"""

RETURN = r"""
checks:
  description: One entry a check, with C(name), C(state), C(found), C(wanted) and C(why).
  type: list
  elements: dict
  returned: always
table:
  description: The same as lines for people.
  type: list
  elements: str
  returned: always
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

# All kinds of checks run side by side, and each ends by itself long before.
LIMIT_S = 300.0


def measure(module: AnsibleModule) -> dict[str, Any]:
    """Return what the box code says, ``{"checks": [...], "table": [...]}``."""
    options = module.params
    if not Path(options["box_zip"]).is_file():
        raise _box.BoxError(f"There is no {options['box_zip']}: run the role checkpoints first, which brings it.")
    request = {name: options[name] for name in ("gpu_count", "gpu_ram_gb", "data", "python", "emulated")}
    request.update({name: value for name, value in options["least"].items() if value is not None})
    command = ["python3", "-m", "gpuyard.box.health", "--table"]
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            command,
            input=json.dumps(request),
            env={"PYTHONPATH": options["box_zip"], "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise _box.BoxError(f"The checks have not ended within {LIMIT_S:.0f} s.") from None
    except (ValueError, IndexError):
        raise _box.BoxError(f"The checks broke off:\n{_box.tail(done.stderr)}") from None
    return answer


def verdicts(checks: list[dict[str, str]]) -> dict[str, str]:
    """Return the state of each check by its name."""
    return {one["name"]: one["state"] for one in checks}


def work(module: AnsibleModule) -> dict[str, Any]:
    """Measure, keep the answer, and raise :class:`BoxError` where something that is required fails."""
    report = Path(module.params["report"])
    last = _box.read_record(report)
    before = verdicts(last.get("checks") or [])
    answer = {"checks": last.get("checks") or [], "table": []} if module.check_mode else measure(module)
    after = verdicts(answer["checks"])
    if not module.check_mode:
        _box.write_record(report, {"version": 1, **answer})
    failed = [name for name, state in after.items() if state == "failed"]
    if failed and module.params["required"] and not module.check_mode:
        lines = "\n".join(answer["table"])
        raise _box.BoxError(f"This machine cannot do its work ({', '.join(failed)}):\n{lines}", unfit=True, **answer)
    return {"changed": before != after, **answer, "diff": {"before": before, "after": after}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "gpu_count": {"type": "int", "default": 0},
            "gpu_ram_gb": {"type": "float", "default": 0},
            "least": {"type": "dict", "default": {}},
            "data": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "str", "default": ""},
            "emulated": {"type": "bool", "default": False},
            "required": {"type": "bool", "default": True},
            "box_zip": {"type": "path", "default": "/opt/gpuyard/box.zip"},
            "report": {"type": "path", "default": "/opt/gpuyard/health.json"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
