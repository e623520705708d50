"""What lies below the persistent root of a box, listed or sent to a controller.

The text of this file is run on the box by ``python3 -c``, whatever version of gpuyard is there, so it stands alone:
Python 3.10 and the standard library. A request is one JSON object on standard input:

* ``{"do": "list"}`` is answered with one JSON object: ``root``, the workload's ``rules``, and ``files``, each with
  ``path``, ``size`` (bytes), ``mode``, ``mtime_ns`` and, for a symbolic link, its target in ``link``.
* ``{"do": "send", "paths": […]}`` is answered, for each path, with a line of JSON that holds its ``path`` and ``size``,
  then exactly as many bytes, then a line with their ``sha256``, the ``mode`` and ``mtime_ns``, and whether the file was
  ``whole``: not written to, and not shorter, while it was sent. A file that is gone has a ``size`` of -1, and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKLOAD = "/opt/gpuyard/run/workload.json"
SCRATCH = ".gpuyard/tmp"
CHUNK = 1024 * 1024


def listed(root: str) -> Iterator[dict[str, Any]]:
    """Yield all files and links below ``root``, in the order of their paths; no link is followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *links]):
            whole = Path(folder, name)
            path = str(whole.relative_to(root))
            try:
                seen = whole.lstat()
                link = str(whole.readlink()) if stat.S_ISLNK(seen.st_mode) else None
            except OSError:
                continue  # it has just gone
            if path.startswith(SCRATCH + "/") or not (link or stat.S_ISREG(seen.st_mode)):
                continue
            mode = stat.S_IMODE(seen.st_mode) & 0o777
            yield {"path": path, "size": seen.st_size, "mode": mode, "mtime_ns": seen.st_mtime_ns, "link": link}


def send(root: str, paths: list[str]) -> None:
    """Write the files to standard output, as this module's text says."""
    out = sys.stdout.buffer
    for path in paths:
        try:
            stream = Path(root, path).open("rb")  # noqa: SIM115 - closed below
        except OSError:
            out.write(json.dumps({"path": path, "size": -1}).encode() + b"\n")
            continue
        with stream:
            before = os.fstat(stream.fileno())
            out.write(json.dumps({"path": path, "size": before.st_size}).encode() + b"\n")
            left, digest, short = before.st_size, hashlib.sha256(), False
            while left:
                data = stream.read(min(CHUNK, left))
                if not data:
                    short, data = True, b"\0" * min(CHUNK, left)
                left -= len(data)
                digest.update(data)
                out.write(data)
            after = os.fstat(stream.fileno())
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        last = {
            "sha256": digest.hexdigest(),
            "mode": stat.S_IMODE(before.st_mode) & 0o777,
            "mtime_ns": before.st_mtime_ns,
            "whole": same and not short,
        }
        out.write(json.dumps(last).encode() + b"\n")
    out.flush()


def main() -> int:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    try:
        with Path(WORKLOAD).open() as stream:
            persist = json.load(stream)["persist"]
    except FileNotFoundError:
        print("This box has not been told what to run, so there are no files of a run.", file=sys.stderr)
        return 1
    root = str(persist["root"])
    if request["do"] == "send":
        send(root, request["paths"])
    else:
        print(json.dumps({"root": root, "rules": persist.get("rules") or [], "files": list(listed(root))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
