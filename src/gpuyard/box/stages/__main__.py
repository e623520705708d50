"""``python -m gpuyard.box.stages``: run, start, stop, status, log, progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpuyard.box import machine
from gpuyard.box.monitor import staying
from gpuyard.box.stages import at_work, ending, panes, report, session, starting_again
from gpuyard.box.stages.choice import Choice, check
from gpuyard.box.stages.expected import bar
from gpuyard.box.stages.runner import EXIT_CODES, Runner, restore_checkpoint
from gpuyard.box.stages.sign_of_life import LATE_S
from gpuyard.box.stages.spec import DEFAULT_FOLDER, BoxSpec, load_spec
from gpuyard.errors import GpuyardError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code. A user's mistake is one sentence on standard error."""
    options = _parser().parse_args(arguments)
    handler: Callable[..., int] = options.handler
    try:
        return _stop(options) if handler is _stop else handler(load_spec(options.settings), options)
    except (GpuyardError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except (KeyboardInterrupt, BrokenPipeError):
        # A reader of logs or progress has seen enough.
        sys.stderr.close()
        return 130


def _choice(options: argparse.Namespace) -> Choice:
    return Choice(options.from_stage, options.only, options.iteration, options.until)


def _run(spec: BoxSpec, options: argparse.Namespace) -> int:
    outcome = Runner(spec).run(_choice(options))
    staying.start(spec)
    return EXIT_CODES[outcome]


def _start(spec: BoxSpec, options: argparse.Namespace) -> int:
    choice = _choice(options)
    check(choice, spec)
    with at_work.alone(spec.folder):
        return _start_alone(spec, options, choice)


def _start_alone(spec: BoxSpec, options: argparse.Namespace, choice: Choice) -> int:
    restored: dict[str, Any] | None = None
    if options.restore or options.restore_sequence is not None:
        restored = vars(restore_checkpoint(spec, options.restore_sequence, options.expected_checkpoint))
    before = report.status(spec)
    chosen = choice != Choice()
    if options.state == "started" and chosen and before["state"] == "running":
        raise UsageError(
            f"{spec.run} is at work on {before['stage']} (iteration {before['iteration']}), and its stages can be "
            "chosen only where nothing runs: wait for its end, or stop it first."
        )
    wanted = before["state"] not in ("running", "finished") or (chosen and before["state"] != "running")
    if options.state == "started" and wanted:
        at_work.remember(spec, choice)
        try:
            session.start(spec, choice)
        except GpuyardError:
            at_work.forget(spec.folder)
            raise
    changed = (options.state == "started" and wanted) or bool(restored and restored["source"] == "cloud")
    _print({"changed": changed, "session": report.status(spec), "restored": restored})
    return 0


def _again(spec: BoxSpec, options: argparse.Namespace) -> int:
    starting_again.start_again(spec, print, patience_s=options.patience)
    return 0


def _stop(options: argparse.Namespace) -> int:
    # Whatever happens, the caller gets its answer: without one it could only guess whether everything is saved.
    result = ending.end(options.settings, options.wait, tell=_print if options.progress else None)
    _print(result)
    if not result["ended"]:
        print(result["saved"]["why"], file=sys.stderr)
    return 0 if result["ended"] else 1


def _status(spec: BoxSpec, options: argparse.Namespace) -> int:
    status = {**report.status(spec), "machine": machine.facts(spec.root)}
    if options.json:
        _print(status)
        return 0
    print(f"{status['run']}: {status['state']}, {status['stages_done']} of {status['stages_total']} stages done")
    for row in status["stages"]:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        outcome = row["outcome"] or ("running" if status["state"] == "running" else "cut off")
        print(f"  {row['iteration']}  {row['stage']:<16} {outcome:<12} {seconds:>8}  attempts {row['attempts']}")
    if status["progress"]:
        print(f"  {bar(status['progress'])}")
    if (sign := status["sign_of_life"]) and sign["age_s"] > LATE_S:
        print(f"  the runner has given no sign of life for {sign['age_s']:.0f} s")
    if status["failure"]:
        print(f"  why it failed: {status['failure']['reason']}")
    if status["last_line"]:
        print(f"  last line: {status['last_line']}")
    if status["last_published"]:
        print(f"  last checkpoint: {status['last_published']['sequence']} at {status['last_published']['time']}")
    return 0


def _log(spec: BoxSpec, options: argparse.Namespace) -> int:
    if options.follow:
        for text in report.follow_log(spec, options.stage, options.iteration, options.lines):
            sys.stdout.write(text)
            sys.stdout.flush()
        return 0
    file = report.find_log(spec, options.stage, options.iteration)
    for line in (report.error_lines if options.errors else report.last_lines)(file, options.lines):
        print(line)
    if options.links:
        _print({"links": report.links(spec)})
    return 0


def _progress(spec: BoxSpec, options: argparse.Namespace) -> int:
    for event in report.progress_events(spec, since=options.since, follow=options.follow):
        _print(event)
    return 0


def _pane(spec: BoxSpec, options: argparse.Namespace) -> int:
    panes.show(spec, options.pane)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _print(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--settings", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="settings folder (default %(default)s)"
    )
    chosen = argparse.ArgumentParser(add_help=False)
    which = chosen.add_mutually_exclusive_group()
    which.add_argument("--from", dest="from_stage", metavar="STAGE", help="run this stage and all after it again")
    which.add_argument("--only", metavar="STAGE", help="run this stage only")
    chosen.add_argument("--until", metavar="STAGE", help="run nothing after this stage")
    chosen.add_argument("--iteration", type=int, metavar="N", help="in this iteration (default: the current one)")

    parser = argparse.ArgumentParser(prog="python -m gpuyard.box.stages", description="Run the stages of a workload.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, handler: Callable[..., int], text: str, *parents: argparse.ArgumentParser) -> Any:
        added = commands.add_parser(name, help=text, parents=[common, *parents])
        added.set_defaults(handler=handler)
        return added

    command("run", _run, "run in the foreground; exit code 0 done, 1 failed, 3 interrupted, 4 waiting", chosen)
    start = command("start", _start, "run in a tmux session; a running or finished run stays as it is", chosen)
    start.add_argument("--restore", action="store_true", help="first bring back the newest checkpoint, if none is here")
    start.add_argument(
        "--restore-sequence", type=int, metavar="N", help="the same with exactly this checkpoint, newer ones or not"
    )
    start.add_argument(
        "--expected-checkpoint",
        type=int,
        metavar="N",
        help="the newest checkpoint that the controller has seen; 0: none, so a silent bucket keeps nobody waiting",
    )
    start.add_argument(
        "--state", choices=["started", "restored"], default="started", help="restored: do not start anything"
    )
    again = command("again", _again, "start again what was at work when the machine went down, and nothing else")
    again.add_argument(
        "--patience",
        type=_seconds,
        default=starting_again.PATIENCE_S,
        metavar="SECONDS",
        help="how long the bucket may be out of reach (default %(default)s)",
    )
    stop = command("stop", _stop, "end the run in good order, publish, and say whether everything is saved")
    stop.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long to wait for it at most "
        f"(default: the running stage's grace_s and {ending.PUBLISH_ALLOWANCE_S:.0f} s for the last checkpoint)",
    )
    stop.add_argument("--progress", action="store_true", help="print JSON lines that say what is waited for")
    command("status", _status, "show where the run stands").add_argument("--json", action="store_true")
    log = command("log", _log, "show a stage's log (default: the one written to last)")
    log.add_argument("--stage")
    log.add_argument("--iteration", type=int, metavar="N")
    log.add_argument("--lines", type=int, default=40, metavar="N")
    shape = log.add_mutually_exclusive_group()
    shape.add_argument("--follow", action="store_true", help="go on until the run ends")
    shape.add_argument("--errors", action="store_true", help="only errors and warnings, tracebacks whole")
    log.add_argument("--links", action="store_true", help="end with a JSON line that says where trackers show the run")
    progress = command("progress", _progress, "print what happened as JSON lines")
    progress.add_argument("--follow", action="store_true", help="go on until the run ends")
    progress.add_argument("--since", type=int, default=0, metavar="N", help="leave out the journal's first N events")
    command("pane", _pane, "fill one of the session's windows").add_argument("pane", choices=panes.PANES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
