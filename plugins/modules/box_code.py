#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: box_code
short_description: Have gpuyard's own code on a machine
description:
  - Brings the archive that M(gpuyard.cloud.stage_session) runs from, and compiles what is in it for one Python, so that
    each of gpuyard's programs begins in half the time. Any other Python runs it from the sources in the same archive.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  src:
    description: The archive on the controller, see P(gpuyard.cloud.box_zip#lookup). The module itself gets O(content).
    type: path
    required: true
  content:
    description: What is in O(src), in Base64. The controller's half of the module fills this in.
    type: str
    default: ""
  dest:
    description: The archive on the machine. It is replaced in one step.
    type: path
    default: /opt/gpuyard/box.zip
  python:
    description: The Python to compile for. Where it is not there yet, nothing is compiled.
    type: path
    default: /opt/gpuyard/venv/bin/python
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have gpuyard's own code
  gpuyard.cloud.box_code:
    src: "{{ lookup('gpuyard.cloud.box_zip') }}"
"""

RETURN = r"""
state:
  description: What the archive is made of, which is its comment.
  type: str
  returned: success
  sample: 8f0b6c2d… for cpython-311
"""

import base64
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

# Copies an archive and puts beside each source what Python makes of it. It is told apart from one of another Python
# by its magic number; nobody compares it with the source, which lies beside it and never changes.
COMPILE = """
import pathlib, py_compile, sys, tempfile, zipfile
source, target, comment = sys.argv[1:]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
    new.comment = comment.encode()
    text, code = pathlib.Path(folder, "text.py"), pathlib.Path(folder, "code.pyc")
    for entry in old.infolist():
        data = old.read(entry)
        new.writestr(entry, data)
        if entry.filename.endswith(".py"):
            text.write_bytes(data)
            py_compile.compile(str(text), str(code), entry.filename, doraise=True, invalidation_mode=mode)
            new.writestr(zipfile.ZipInfo(entry.filename + "c", entry.date_time), code.read_bytes())
"""


def comment_of(archive: Path) -> str:
    """Return the comment of an archive; empty where there is none that can be read."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.comment.decode(errors="replace")
    except (OSError, zipfile.BadZipFile):
        return ""


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the archive, or in check mode say whether it would be brought."""
    options = module.params
    data = base64.b64decode(options["content"])
    target, python = Path(options["dest"]), options["python"]
    named = ""
    if os.access(python, os.X_OK):
        named = _box.run(
            module, [python, "-c", "import sys; print(sys.implementation.cache_tag)"], purpose=python
        ).strip()
    wanted = f"{hashlib.sha256(data).hexdigest()} for {named or 'any Python'}"
    before = comment_of(target)
    right = before == wanted and target.stat().st_mode & 0o777 == 0o644
    if not right and not module.check_mode:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            plain, made = Path(folder, "plain.zip"), Path(folder, "made.zip")
            plain.write_bytes(data)
            if named:
                command = [python, "-I", "-c", COMPILE, str(plain), str(made), wanted]
                _box.run(module, command, purpose="Compiling gpuyard's own code")
            else:
                made = plain
                with zipfile.ZipFile(made, "a") as archive:
                    archive.comment = wanted.encode()
            made.chmod(0o644)
            made.replace(target)
    return {
        "changed": not right,
        "state": wanted,
        "diff": {
            "before_header": str(target),
            "after_header": str(target),
            "before": f"{before}\n" if before else "",
            "after": f"{wanted}\n",
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path", "required": True},
            "content": {"type": "str", "default": ""},
            "dest": {"type": "path", "default": "/opt/gpuyard/box.zip"},
            "python": {"type": "path", "default": "/opt/gpuyard/venv/bin/python"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
