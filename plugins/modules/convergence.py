#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: convergence
short_description: Recognise a machine that already is what a run needs
description:
  - Compares, or records, the fingerprint of the state that the roles last brought this machine to.
  - It lets a play skip every role on a machine that matches, which then costs one round trip instead of minutes.
  - One command at a time changes a machine. When it has to be changed, the action plugin takes a lock there, which the
    machine's kernel holds, and waits for a command that has it, saying for whom. The lock ends when the new state is
    recorded, when the play ends, however it ends, and when the machine has heard nothing from the controller for a
    minute.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  fingerprint:
    description: The fingerprint of the wanted state, as P(gpuyard.cloud.run_plan#module) returns it.
    type: str
    required: true
  state:
    description:
      - V(compared) answers whether the recorded fingerprint is this one. When it is not, the machine is locked and a
        different one is forgotten, because the roles that follow change the machine and may be interrupted half-way.
      - V(begun) forgets a different one, too, and does not lock. The action plugin uses it once it has the lock.
      - V(recorded) writes the fingerprint down, once the roles are through, and ends the lock.
    type: str
    choices: [compared, begun, recorded]
    default: compared
  full:
    description: Whether a machine that matches is changed all the same, so that it is locked and does not match.
    type: bool
    default: false
  path:
    description: The file on the machine that holds the fingerprint.
    type: path
    default: /opt/gpuyard/converged.json
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
notes:
  - The lock is held over connections of the types C(ssh) and C(local).
"""

EXAMPLES = r"""
- name: Compare the machine with what the run needs
  gpuyard.cloud.convergence:
    fingerprint: "{{ plan.fingerprint }}"
  register: box

- name: Bring the machine into shape
  ansible.builtin.include_role:
    name: gpuyard.cloud.rust
  when: not box.matches
"""

RETURN = r"""
matches:
  description: Whether the machine is in the wanted state, by its own record.
  type: bool
  returned: always
recorded:
  description: The fingerprint found on the machine; empty when there is none.
  type: str
  returned: always
"""

import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule


def read(path: str) -> str:
    """Return the recorded fingerprint, empty when there is none or the file is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write(module: AnsibleModule, path: str, fingerprint: str) -> None:
    """Write the fingerprint in one step, so that a lost connection leaves the old file or the new one."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"fingerprint": fingerprint}, file)
    os.chmod(temporary, 0o644)
    module.atomic_move(temporary, path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "fingerprint": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["compared", "begun", "recorded"], "default": "compared"},
            "full": {"type": "bool", "default": False},
            "path": {"type": "path", "default": "/opt/gpuyard/converged.json"},
        },
        supports_check_mode=True,
    )
    path, wanted, state = module.params["path"], module.params["fingerprint"], module.params["state"]
    before = read(path)
    matches = before == wanted and not module.params["full"]
    after = wanted if state == "recorded" or matches else ""
    changed = after != before
    # Without the lock nothing is changed: another command may be at work.
    if changed and state != "compared" and not module.check_mode:
        if after:
            write(module, path, after)
        else:
            os.unlink(path)
    module.exit_json(
        changed=changed,
        matches=matches,
        recorded=before,
        diff={"before": f"{before}\n", "after": f"{after}\n", "before_header": path, "after_header": path},
    )


if __name__ == "__main__":
    main()
