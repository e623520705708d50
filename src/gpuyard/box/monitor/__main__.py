"""``python -m gpuyard.box.monitor``: look at the run of this box until standard input ends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpuyard.box.monitor.loop import watch
from gpuyard.box.stages.spec import DEFAULT_FOLDER
from gpuyard.errors import GpuyardError


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpuyard.box.monitor", description="Look at the run of this box.")
    parser.add_argument(
        "--settings", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="settings folder (default %(default)s)"
    )
    parser.add_argument("--first", type=float, default=0.0, metavar="SECONDS", help="when to look first (default now)")
    options = parser.parse_args()
    try:
        watch(options.settings, sys.stdin.buffer, first_s=options.first)
    except (GpuyardError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
