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
  - It lets a play skip every role on a machine that matches, which then costs one round trip instead of minutes, and on
    one that differs the roles for what is as it should be.
  - A machine on which stages run is not changed, unless O(update) says so. Then the play prepares what differs beside
    what the running stage uses.
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
  parts:
    description: The parts of which O(fingerprint) consists, by name, as P(gpuyard.cloud.run_plan#module) returns them.
    type: dict
    default: {}
  full:
    description: Whether a machine that matches is changed all the same, so that it is locked and does not match.
    type: bool
    default: false
  update:
    description: Whether a machine on which stages run is changed, too.
    type: bool
    default: false
  not_beside:
    description: The O(parts) that wait until no stage runs, because they cannot be prepared beside what runs.
    type: list
    elements: str
    default: []
  left:
    description: With O(state=recorded), the O(parts) that were left as they are; with any, the machine does not match.
    type: list
    elements: str
    default: []
  repository:
    description: With O(state=recorded), the folder that the stages are to run in.
    type: path
  search_path:
    description: With O(state=recorded), the folders that go in front of E(PATH) for the stages.
    type: list
    elements: path
    default: []
  prune:
    description:
      - With O(state=recorded), folders in which each entry belongs to one state of the code or of its environment.
      - What neither the running stage, nor the settings, nor O(repository) and O(search_path) name is removed there.
    type: list
    elements: path
    default: []
  settings:
    description: The folder in which the machine is told what to run; the lock of its stage runner lies there.
    type: path
    default: /opt/gpuyard/run
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
running:
  description: Whether stages run on the machine.
  type: bool
  returned: always
to_change:
  description: Whether roles have to run.
  type: bool
  returned: always
todo:
  description:
    - The O(parts) for which roles have to run. Empty when the machine matches, and when stages run and O(update) is not
      set.
  type: list
  elements: str
  returned: always
  sample: [repository, build]
waiting:
  description: The O(parts) that differ and wait until no stage runs, by O(not_beside).
  type: list
  elements: str
  returned: always
differs:
  description: The O(parts) that differ from the machine's record.
  type: list
  elements: str
  returned: always
repository:
  description: The folder that the stages are to run in, as it was recorded; empty when there is no record.
  type: str
  returned: always
search_path:
  description: The folders that go in front of E(PATH) for the stages, as they were recorded.
  type: list
  elements: str
  returned: always
removed:
  description: The folders that were removed because nothing needs them any more.
  type: list
  elements: str
  returned: always
recorded:
  description: The fingerprint found on the machine; empty when there is none.
  type: str
  returned: always
"""

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils._disks import FSTAB, unmounted

# What the settings say, and what the runner took up last, see gpuyard.box.stages.taking_up.
IN_USE = ("settings.json", "taken-up.json")
# The part of the state that has to be mounted, too, and the one that may lie on it.
ON_VOLUMES = ("volumes", "persist")


class Record:
    """What the machine was brought to last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        found = _box.read_record(file)
        parts, paths = found.get("parts"), found.get("search_path")
        self.fingerprint = str(found.get("fingerprint") or "")
        self.parts: dict[str, str] = parts if isinstance(parts, dict) else {}
        self.repository = str(found.get("repository") or "")
        self.search_path: list[str] = paths if isinstance(paths, list) else []

    def write(self) -> None:
        """Write it in one step, so that a lost connection leaves the old file or the new one."""
        _box.write_record(
            self.file,
            {
                "fingerprint": self.fingerprint,
                "parts": self.parts,
                "repository": self.repository,
                "search_path": self.search_path,
            },
        )


def prune(folders: list[str], needed: list[str], settings: Path) -> list[str]:
    """Remove the entries of ``folders`` that nobody needs, each with what is noted about it; return their paths."""
    kept = [Path(path) for path in needed if path]
    for name in IN_USE:
        known = _box.read_record(settings / name)
        kept += [Path(str(path)) for path in [known.get("repository"), *(known.get("path") or [])] if path]
    gone = []
    for folder in map(Path, folders):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            name = entry.name
            if name.startswith("."):
                # A note goes with what it is about, which is called .<name>.json or .<name>.build.log.
                about = folder / name[1:].split(".")[0]
                if not about.exists() and not about.is_symlink():
                    entry.unlink()
            elif not any(path == entry or entry in path.parents for path in kept):
                gone.append(str(entry))
                if entry.is_symlink():
                    entry.unlink()
                else:
                    shutil.rmtree(entry)
                for note in folder.glob(f".{name}.*"):
                    note.unlink()
    return gone


def work(module: AnsibleModule) -> dict[str, Any]:
    """Compare, or record; in check mode change nothing."""
    options = module.params
    settings = Path(options["settings"])
    record = Record(Path(options["path"]))
    wanted, parts, state = options["fingerprint"], options["parts"], options["state"]
    before = record.fingerprint
    running = _box.stages_run(settings)
    # A volume that did not come back with a reboot is not as it was recorded.
    lost = ON_VOLUMES if ON_VOLUMES[0] in parts and unmounted(FSTAB, ours=True) else ()
    as_wanted = before == wanted and not lost
    differs = [] if as_wanted else [name for name in parts if name in lost or record.parts.get(name) != parts[name]]
    matches = as_wanted and not options["full"]
    left_alone = running and not options["update"]
    todo = [] if matches or left_alone else list(parts) if options["full"] else differs
    waiting = [name for name in differs if running and name in options["not_beside"]]
    todo = [name for name in todo if not running or name not in options["not_beside"]]
    result: dict[str, Any] = {
        "matches": matches,
        "running": running,
        "to_change": not matches and not left_alone and (bool(todo) or not parts),
        "todo": todo,
        "waiting": waiting,
        "differs": differs,
    }
    after = before if left_alone and state != "recorded" else wanted if matches else ""
    gone: list[str] = []
    if state == "recorded":
        left = {name: record.parts[name] for name in options["left"] if name in record.parts}
        after = "" if options["left"] else wanted
        record.parts = {**{name: value for name, value in parts.items() if name not in options["left"]}, **left}
        record.repository = options["repository"] or ""
        record.search_path = options["search_path"]
    elif not matches:
        # The roles that follow may be interrupted half-way.
        record.parts = {name: value for name, value in record.parts.items() if name in parts and name not in todo}
    changed = after != before
    # Without the lock nothing is changed: another command may be at work.
    if not module.check_mode and (state == "recorded" or (changed and state == "begun")):
        record.fingerprint = after
        record.write()
    if not module.check_mode and state == "recorded":
        needed = [record.repository, *record.search_path]
        # What a command that was killed had begun, and nobody has asked for since.
        _box.end_detached()
        gone = prune(options["prune"], needed, settings)
    return {
        **result,
        "changed": changed or bool(gone),
        "recorded": before,
        "removed": gone,
        "repository": record.repository,
        "search_path": record.search_path,
        "diff": {
            "before": f"{before}\n",
            "after": f"{after}\n",
            "before_header": options["path"],
            "after_header": options["path"],
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "fingerprint": {"type": "str", "required": True},
            "parts": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["compared", "begun", "recorded"], "default": "compared"},
            "full": {"type": "bool", "default": False},
            "update": {"type": "bool", "default": False},
            "not_beside": {"type": "list", "elements": "str", "default": []},
            "left": {"type": "list", "elements": "str", "default": []},
            "repository": {"type": "path"},
            "search_path": {"type": "list", "elements": "path", "default": []},
            "prune": {"type": "list", "elements": "path", "default": []},
            "settings": {"type": "path", "default": "/opt/gpuyard/run"},
            "path": {"type": "path", "default": "/opt/gpuyard/converged.json"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
