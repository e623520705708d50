#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a run, brought to the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_sync
short_description: Bring a run's results here
version_added: 0.2.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Brings files of a run into a folder of the controller, from its machine over SSH, or from its newest whole
    checkpoint in the bucket. So it works when the machine is gone, and when there is no bucket.
  - Only what differs is brought. From a checkpoint, that is what has another hash than the manifest says; from a
    machine, what has another size or time.
  - Each file is verified before it gets its name, so there is never half a file, and a file that a stage writes to is
    sent again. Nothing is removed.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: Lists what would be brought.
  diff_mode:
    support: none
options:
  run:
    description: The name of the run. By default, the only one that there is.
    type: str
  node:
    description: The node of a run of several, C(<pool>-<number>). Default, the first whose machine runs.
    type: str
  to:
    description: The folder that the files go to, with the paths that they have below the persistent root.
    type: path
    required: true
  what:
    description:
      - Which files, as a list or as a text with commas. Each word is a kind of the workload's C(persist.rules), such as
        V(results) or V(models), or a pattern of paths as in those.
      - By default, all but gpuyard's own files.
    type: list
    elements: str
    default: []
  source:
    description: Where the files are read from. By default the machine where it runs and answers, else the bucket.
    type: str
    choices: [box, bucket]
  ssh_key:
    description: The path of the private SSH key with which the machine is reached. By default, gpuyard's own.
    type: path
seealso:
  - module: gpuyard.cloud.stage_log
"""

EXAMPLES = r"""
- name: Bring the results and the models
  gpuyard.cloud.run_sync:
    run: miniprover-0
    to: results/
    what: [results, models]
"""

RETURN = r"""
source:
  description: What the files were read from, in words.
  returned: success
  type: str
  sample: checkpoint 12 of 2026-03-01T12:00:00Z
folder:
  description: The folder here.
  returned: success
  type: str
files:
  description: The files that were brought, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The path below the folder.
      type: str
    size:
      description: The size in bytes.
      type: int
unchanged:
  description: How many of the wanted files were here already.
  returned: success
  type: int
problems:
  description: What could not be brought whole, in sentences.
  returned: success
  type: list
  elements: str
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
        "to": {"type": "path", "required": True},
        "what": {"type": "list", "elements": "str", "default": []},
        "source": {"type": "str", "choices": ["box", "bucket"]},
        "ssh_key": {"type": "path", "no_log": False},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Bring the files."""
    from gpuyard.api import sync

    request = sync.SyncRequest(
        run=call.option("run"),
        to=call.params["to"],
        what=[word for word in call.params["what"] if word],
        source=call.option("source") or "",
        node=call.option("node"),
    )
    return sync.sync(call.site(), request, check=call.check_mode, progress=call.progress).to_dict()


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
