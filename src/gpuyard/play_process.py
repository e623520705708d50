"""A play of the collection in a process of its own, with its output line by line as it comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuyard.files import write_whole
from gpuyard.providers.base import Progress


def run(verb: str, variables: Mapping[str, Any], *, tell: Progress) -> int:
    """Run ``gpuyard.cloud.<verb>`` with these extra variables, and return its exit status.

    It has this process's folder and environment, and so its configuration and keys. ``variables`` are in a file that
    only the user can read, as long as the play runs. It ends with this process: nobody would read on.
    """
    with tempfile.TemporaryDirectory(prefix="gpuyard-play-") as folder:
        file = Path(folder) / "variables.json"
        write_whole(file, json.dumps(dict(variables)))
        process = subprocess.Popen(
            # It is next to this Python, which need not be an activated environment.
            [str(Path(sys.executable).with_name("ansible-playbook")), f"gpuyard.cloud.{verb}", "-e", f"@{file}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            text=True,
            errors="replace",
        )
        assert process.stdout is not None  # asked for above
        try:
            for line in process.stdout:
                if line.strip():
                    tell(line.rstrip())
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
