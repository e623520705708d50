"""The alerts of a run: ``.gpuyard/alerts.jsonl`` below the persistent root, which checkpoints hold.

JSON lines, only ever appended to: an alert has one line when it begins and one when it ends. Which of them are open is
read from the file, so that a runner that was killed, or another machine, tells no alert twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpuyard.formats.manifest import STATE, timestamp

FILE = f"{STATE}/alerts.jsonl"


def open_alerts(root: Path) -> dict[str, dict[str, Any]]:
    """Return the alerts that have begun and not ended, by their names. A line that is none is passed over."""
    found: dict[str, dict[str, Any]] = {}
    try:
        text = (root / FILE).read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("alert"), str):
            continue
        if record.get("event") == "begin":
            found[record["alert"]] = {name: record.get(name) for name in ("alert", "text", "time")}
        elif record.get("event") == "end":
            found.pop(record["alert"], None)
    return found


def append(root: Path, event: str, alert: str, text: str, **fields: Any) -> dict[str, Any]:
    """Write one line (``begin``, ``end`` or ``unsent``) and return it; ``OSError`` when it cannot be written."""
    record = {"time": timestamp(), "event": event, "alert": alert, "text": text, **fields}
    file = root / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(handle).st_size
        # A full disk, or a kill, may have cut off the last line.
        cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if cut_off else b"") + json.dumps(record).encode() + b"\n")
    finally:
        os.close(handle)
    return record
