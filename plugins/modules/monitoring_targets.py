#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: monitoring_targets
short_description: Prepare a machine for what the monitor writes and sends
description:
  - Makes the folder of the text file that Prometheus' node_exporter collects.
  - Sees that the machine has a C(sendmail), where alerts are to be mailed without a mail server.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  prometheus:
    description: The file that gets what the monitor sees, below node_exporter's C(--collector.textfile.directory).
    type: path
  sendmail:
    description: Whether alerts are handed to the machine's own C(sendmail).
    type: bool
    default: false
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have the folder that node_exporter reads
  gpuyard.cloud.monitoring_targets:
    prometheus: /var/lib/prometheus/node-exporter/gpuyard.prom
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [make the folder /var/lib/prometheus/node-exporter]
"""

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

# As gpuyard.box.monitor.notify looks for it; the last two are not on every PATH.
SENDMAIL = ("sendmail", "/usr/sbin/sendmail", "/usr/lib/sendmail")


def work(module: AnsibleModule) -> dict[str, Any]:
    """Make what is missing, or in check mode say it."""
    file = module.params["prometheus"]
    if module.params["sendmail"] and not any(map(shutil.which, SENDMAIL)):
        raise _box.BoxError(
            "This machine has no sendmail, and monitoring.notify.mail names no server: name one with server, or have "
            "a package such as msmtp-mta in packages."
        )
    actions, diff = [], {}
    folder = Path(file).parent if file else None
    if folder is not None and not folder.is_dir():
        if folder.exists():
            raise _box.BoxError(f"prometheus={file}: {folder} is a file, so it can hold none.")
        actions.append(f"make the folder {folder}")
        diff = {"before": "", "after": f"{folder}\n"}
        if not module.check_mode:
            # Killed in between, it leaves nothing that looks whole.
            part = folder.with_name(f".{folder.name}.part")
            part.mkdir(parents=True, exist_ok=True)
            part.chmod(0o755)
            part.rename(folder)
    return {"changed": bool(actions), "actions": actions, "diff": diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"prometheus": {"type": "path"}, "sendmail": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
