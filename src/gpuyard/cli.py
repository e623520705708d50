"""The command ``gpuyard``: a thin front over the core."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuyard import __version__
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.sandbox import cli as sandbox_cli

if TYPE_CHECKING:
    from gpuyard.api.checkpoints import Answer


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands; each sets ``handler``, which returns the exit code."""
    top = argparse.ArgumentParser(prog="gpuyard", description="Rent GPUs, train on them, know what bills.")
    top.add_argument("--version", action="version", version=f"gpuyard {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    sandbox_cli.add_parser(commands)
    demo = commands.add_parser("demo", help="show the main job on two emulated clouds, from renting to the bill")
    demo.set_defaults(handler=_demo)
    schema = commands.add_parser("schema", help="print the format of a workload file as a JSON Schema, for editors")
    schema.set_defaults(handler=_schema)
    report = commands.add_parser("report", help="show what a run has taken and cost, against what was planned")
    report.add_argument("run", help="the name of the run")
    report.add_argument(
        "--format", default="", choices=("markdown", "html", "json"), help="default: by the file's name"
    )
    report.add_argument("--report", metavar="FILE", help="keep it in a file as well")
    report.add_argument("--bucket", metavar="URL", help="where the checkpoints are")
    report.add_argument("--bucket-endpoint", metavar="URL", help="for S3 services other than Amazon's")
    report.add_argument("--sandbox", action="store_true", default=None, help="the emulated clouds are meant")
    report.add_argument("--sandbox-state", metavar="DIR", help="the folder of one of several sandboxes")
    report.set_defaults(handler=_report)
    live = commands.add_parser("live", help="check a real account of a cloud: it reads only, unless --spend is given")
    live.add_argument("provider", help="vast, vultr, lambda or runpod")
    live.add_argument("--spend", action="store_true", help="rent one machine, run a command there, destroy it, audit")
    live.add_argument(
        "--max-price-per-hour", type=float, default=None, metavar="USD", help="the dearest that is taken (default: 1)"
    )
    live.set_defaults(handler=_live)
    supervise = commands.add_parser("supervise", help="keep runs at work until they end, and end what is to end")
    supervise.add_argument(
        "runs", nargs="*", metavar="RUN", help="(default: those that a supervisor has begun to watch)"
    )
    supervise.add_argument("--shutdown", action="store_true", default=None, help="end the rental of a run with the run")
    supervise.add_argument("--stage", default=None, help="the one stage that is to run, as at the launch")
    supervise.add_argument("--stay", action="store_true", help="go on when no run is left")
    supervise.add_argument("--interval-s", type=float, default=5.0, metavar="SECONDS", help="between two looks (5)")
    supervise.add_argument(
        "--losses-before-on-demand", type=int, default=3, metavar="N", help="rent on demand after so many (3; 0: never)"
    )
    supervise.add_argument(
        "--silent-minutes", type=float, default=10.0, metavar="N", help="give a silent machine up after (10; 0: never)"
    )
    supervise.add_argument("--bucket", default=None, help="where checkpoints are, s3://name/prefix")
    supervise.add_argument("--bucket-endpoint", default=None, help="the address of the S3 service")
    supervise.add_argument("--ssh-key", default=None, help="the private key to connect with")
    supervise.add_argument("--sandbox", action="store_true", default=None, help="the emulated clouds are meant")
    supervise.add_argument("--sandbox-state", default=None, metavar="FOLDER", help="of one of several sandboxes")
    supervise.set_defaults(handler=_supervise)
    _add_checkpoints(commands)
    return top


def _add_checkpoints(commands: Any) -> None:
    text = "look into a run's checkpoints; needs the bucket and its keys, and asks no cloud"
    verbs = commands.add_parser("checkpoints", help=text, description=text).add_subparsers(dest="do", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--bucket", metavar="ADDRESS", help="s3://name/prefix or file:///folder (default: CLOUD_BUCKET)")
    where.add_argument("--bucket-endpoint", metavar="URL", help="the S3 service, when it is not Amazon's")
    where.add_argument("--sandbox-state", metavar="DIR", help="the bucket of the sandbox with this state folder")
    where.add_argument("--json", action="store_true", help="print one JSON object")
    whose = argparse.ArgumentParser(add_help=False)
    whose.add_argument("run", metavar="RUN")
    whose.add_argument("--node", metavar="NODE", help="a node of several that has checkpoints of its own")

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, parents=[where, *parents])
        parser.set_defaults(handler=_checkpoints)
        return parser

    verb("list", "show them, newest first", whose)
    verify = verb("verify", "read one whole; the exit code is 1 when it is damaged", whose)
    verify.add_argument("--sequence", type=int, metavar="N", help="which one (default: the newest)")
    verify.add_argument("--all", action="store_true", help="all of them; what several have is read once")
    diff = verb("diff", "say what B has otherwise than A", whose)
    diff.add_argument("before", type=int, metavar="A")
    diff.add_argument("after", type=int, metavar="B", nargs="?", help="default: the newest")
    prune = verb("prune", "remove all but the newest ones, unless one is being published", whose)
    prune.add_argument("--keep-last", type=int, required=True, metavar="N", help="the newest N stay")
    prune.add_argument("--keep-every", type=int, default=0, metavar="M", help="and those with a multiple of M")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    fetch = verb("restore-file", "write one file of one of them to a place where nothing is", whose)
    fetch.add_argument("sequence", type=int, metavar="SEQUENCE")
    fetch.add_argument("path", metavar="PATH", help="the file, as it is called below the persistent root")
    fetch.add_argument("to", type=Path, metavar="TO", help="the new file, or a folder for it")
    verb("keep-versions", "have the bucket keep what is overwritten or removed in it")


def _checkpoints(arguments: argparse.Namespace) -> int:
    from gpuyard.api import checkpoints  # brings the clouds in, which the other commands do without
    from gpuyard.api.site import Site

    site = Site(
        sandbox=True if arguments.sandbox_state else None,
        sandbox_state=arguments.sandbox_state,
        bucket=arguments.bucket,
        bucket_endpoint=arguments.bucket_endpoint,
    )
    if arguments.do == "keep-versions":
        return _show(checkpoints.keep_versions(site), arguments.json)
    request = checkpoints.CheckpointsRequest(arguments.run, arguments.node)
    if arguments.do == "verify":
        answer = checkpoints.verify(site, request, sequence=arguments.sequence, every=arguments.all)
    elif arguments.do == "diff":
        answer = checkpoints.diff(site, request, arguments.before, arguments.after)
    elif arguments.do == "prune":
        answer = checkpoints.prune(
            site,
            request,
            keep_last=arguments.keep_last,
            keep_every=arguments.keep_every,
            dry_run=arguments.dry_run,
        )
    elif arguments.do == "restore-file":
        answer = checkpoints.restore_file(
            site, request, sequence=arguments.sequence, path=arguments.path, to=arguments.to
        )
    else:
        answer = checkpoints.list_all(site, request)
    return _show(answer, arguments.json)


def _show(answer: Answer, as_json: bool) -> int:
    print(json.dumps(answer.to_dict()) if as_json else "\n".join(answer.text))
    if answer.failed:
        print(f"gpuyard: {answer.failed}", file=sys.stderr)
    return 1 if answer.failed else 0


def _schema(_: argparse.Namespace) -> int:
    from gpuyard.workload.schema import json_schema  # which the other commands do without

    sys.stdout.write(json_schema())
    return 0


def _live(arguments: argparse.Namespace) -> int:
    from gpuyard.api import live  # brings the clouds in, which the other commands do without
    from gpuyard.api.site import Site

    most = live.MOST_PER_HOUR_USD if arguments.max_price_per_hour is None else arguments.max_price_per_hour
    request = live.LiveRequest(spend=arguments.spend, most_per_hour_usd=most)
    live.check(Site(provider=arguments.provider or None), request, partial(print, flush=True))
    return 0


def _supervise(arguments: argparse.Namespace) -> int:
    from gpuyard.api import supervise  # brings the clouds in, which the other commands do without
    from gpuyard.api.site import Site

    where = ("bucket", "bucket_endpoint", "ssh_key", "sandbox", "sandbox_state")
    how = ("runs", "shutdown", "stage", "stay", "interval_s", "losses_before_on_demand", "silent_minutes")
    request = supervise.Supervise(**{name: getattr(arguments, name) for name in how})
    # A service is ended by SIGTERM, and what it is doing is seen through then.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = partial(print, flush=True)
    done = supervise.supervise(Site(**{name: getattr(arguments, name) for name in where}), request, progress=say)
    print(done.to_dict()["text"])
    return 1 if done.failed else 0


def _report(arguments: argparse.Namespace) -> int:
    from gpuyard.api import report  # brings the clouds in, which the other commands do without
    from gpuyard.api.site import Site

    places = {name: getattr(arguments, name) for name in ("sandbox", "sandbox_state", "bucket", "bucket_endpoint")}
    request = report.ReportRequest(arguments.run, arguments.format, arguments.report)
    done = report.report(Site(**places), request, progress=partial(print, file=sys.stderr, flush=True))
    print(done["text"])
    return 0


def _demo(_: argparse.Namespace) -> int:
    from gpuyard import demo  # brings Ansible in, which the other commands do without

    return demo.main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. An expected failure is one sentence on standard error: 2 for wrong usage, else 1."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.handler(options)
    except GpuyardError as error:
        print(f"gpuyard: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
