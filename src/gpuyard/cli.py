"""The command ``gpuyard``: a thin front over the core."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from gpuyard import __version__
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.sandbox import cli as sandbox_cli


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
    return top


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
