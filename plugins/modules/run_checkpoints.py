#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checkpoints of a run in the bucket."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_checkpoints
short_description: Look into a run's checkpoints, verify and prune them
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Works on the bucket alone. No cloud and no machine is asked, so it needs the bucket's keys and the run's name.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  run:
    description: The name of the run. Needed but for O(do=keep_versions).
    type: str
  node:
    description: The node of a run of several, C(<pool>-<number>), that has checkpoints of its own.
    type: str
  do:
    description:
      - V(list) shows the checkpoints, and whether the bucket keeps versions of what is removed.
      - V(verify) reads O(sequence), or all with O(every), and fails when an object is damaged.
      - V(diff) says what the checkpoint O(against) has otherwise than O(sequence).
      - V(prune) removes all but the newest O(keep_last). It refuses while a machine is publishing, and when the newest
        is not whole. In check mode it only says what would go.
      - V(restore_file) writes the file O(path) of O(sequence) to O(to).
      - V(keep_versions) has the bucket keep what is overwritten or removed in it.
    type: str
    choices: [list, verify, diff, prune, restore_file, keep_versions]
    default: list
  sequence:
    description: The number of the checkpoint. By default the newest.
    type: int
  against:
    description: The number of the one that O(sequence) is compared with. By default the newest.
    type: int
  every:
    description: Whether to verify all checkpoints. What several of them hold is read once.
    type: bool
    default: false
  path:
    description: The file, as it is called below the persistent root.
    type: str
  to:
    description: The new file, or a folder for it. Nothing is overwritten.
    type: path
  keep_last:
    description: How many of the newest checkpoints stay, at least 1.
    type: int
  keep_every:
    description: Besides, checkpoints whose number is a multiple of this stay; 0, none.
    type: int
    default: 0
seealso:
  - module: gpuyard.cloud.run_info
"""

EXAMPLES = r"""
- name: Show a run's checkpoints
  gpuyard.cloud.run_checkpoints:
    run: miniprover-0
    bucket: s3://my-bucket

- name: Say what pruning would remove
  gpuyard.cloud.run_checkpoints:
    run: miniprover-0
    do: prune
    keep_last: 3
    keep_every: 10
  check_mode: true

- name: Fetch one file of a checkpoint
  gpuyard.cloud.run_checkpoints:
    run: miniprover-0
    do: restore_file
    sequence: 12
    path: models/policy.npz
    to: /tmp/policy.npz
"""

RETURN = r"""
checkpoints:
  description: The checkpoints, newest first, each with its number, time, files, bytes and progress.
  returned: with O(do=list)
  type: list
  elements: dict
  sample:
    - {sequence: 12, time: "2026-03-01T12:00:00Z", files: 9, bytes: 14200000, progress: {stage: search}, problem: ""}
keeps_versions:
  description: Whether the bucket keeps what is overwritten or removed; null where it does not say.
  returned: with O(do=list) and O(do=keep_versions)
  type: bool
verified:
  description: What was read, each with its number, files, bytes, and a sentence for each damaged object.
  returned: with O(do=verify)
  type: list
  elements: dict
diff:
  description: The numbers C(before) and C(after), and the paths C(added), C(removed) and C(changed), with their sizes.
  returned: with O(do=diff)
  type: dict
pruned:
  description: The numbers of the C(sets) that went and of those C(kept), and how many C(objects) and C(bytes) that was.
  returned: with O(do=prune)
  type: dict
file:
  description: The file's path, size, SHA-256, and the number of its checkpoint.
  returned: with O(do=restore_file)
  type: dict
text:
  description: The same for people.
  returned: success
  type: str
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    Call,
    run_module,
)

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str"},
        "node": {"type": "str"},
        "do": {
            "type": "str",
            "choices": ["list", "verify", "diff", "prune", "restore_file", "keep_versions"],
            "default": "list",
        },
        "sequence": {"type": "int"},
        "against": {"type": "int"},
        "every": {"type": "bool", "default": False},
        "path": {"type": "str"},
        "to": {"type": "path"},
        "keep_last": {"type": "int"},
        "keep_every": {"type": "int", "default": 0},
    }
)
CONDITIONS: dict[str, Any] = {
    "required_if": [
        ("do", "diff", ["sequence"]),
        ("do", "prune", ["keep_last"]),
        ("do", "restore_file", ["path", "to"]),
    ]
}


def run(call: Call) -> dict[str, Any]:
    """Do what O(do) says."""
    from pathlib import Path

    from gpuyard.api import checkpoints

    site, what, sequence = call.site(), call.params["do"], call.option("sequence")
    request = checkpoints.CheckpointsRequest(call.option("run") or "", call.option("node"))
    if what == "keep_versions":
        answer = checkpoints.keep_versions(site, dry_run=call.check_mode)
    elif what == "verify":
        answer = checkpoints.verify(site, request, sequence=sequence, every=call.params["every"])
    elif what == "diff":
        answer = checkpoints.diff(site, request, sequence, call.option("against"))
    elif what == "prune":
        answer = checkpoints.prune(
            site, request, dry_run=call.check_mode, **{name: call.params[name] for name in ("keep_last", "keep_every")}
        )
    elif what == "restore_file":
        place = Path(call.params["to"])
        answer = checkpoints.restore_file(site, request, sequence=sequence, path=call.params["path"], to=place)
    else:
        answer = checkpoints.list_all(site, request)
    return answer.to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
