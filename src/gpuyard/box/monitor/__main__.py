"""``python -m gpuyard.box.monitor``: look at the run of this box; and what the monitor has done by other processes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gpuyard.box.monitor.loop import watch
from gpuyard.box.stages.spec import DEFAULT_FOLDER, BoxSpec, load_spec
from gpuyard.errors import GpuyardError

COMMANDS = ("watch", "stay", "finish", "beat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpuyard.box.monitor", description="Look at the run of this box.")
    parser.add_argument(
        "command",
        nargs="?",
        choices=COMMANDS,
        default="watch",
        help="watch: beside a runner, until standard input ends; stay: where no stage runs; finish: save, verify and "
        "write down that this machine is over; beat: write one heartbeat (default %(default)s)",
    )
    parser.add_argument("reason", nargs="?", default="", help="with finish: why")
    parser.add_argument(
        "--settings", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="settings folder (default %(default)s)"
    )
    parser.add_argument("--first", type=float, default=0.0, metavar="SECONDS", help="when to look first (default now)")
    parser.add_argument("--ends-itself", action="store_true", help="with finish: the machine ends its own rental next")
    options = parser.parse_args(arguments)
    try:
        if options.command == "watch":
            watch(options.settings, sys.stdin.buffer, first_s=options.first)
        elif options.command == "stay":
            _stay(options.settings)
        elif options.command == "finish":
            _finish(load_spec(options.settings), options.reason, ends_itself=options.ends_itself)
        else:
            _beat(load_spec(options.settings))
    except (GpuyardError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


# What follows is imported where it is used: the monitor beside a runner has to stay small.


def _stay(folder: Path) -> None:
    from gpuyard.box.monitor import staying

    staying.stay(folder)


def _finish(spec: BoxSpec, reason: str, *, ends_itself: bool) -> None:
    from gpuyard.box.monitor.finishing import finish

    print(json.dumps(vars(finish(spec, reason, ends_itself=ends_itself))))


def _beat(spec: BoxSpec) -> None:
    from gpuyard.box.monitor.beating import beat
    from gpuyard.box.stages.report import state_of
    from gpuyard.box.stages.runner import is_running, progress_of

    if spec.bucket:
        alive = is_running(spec)
        beat(spec, spec.store(), state_of(progress_of(spec), alive=alive))


if __name__ == "__main__":
    sys.exit(main())
