"""The command ``gpuyard``: a thin front over the core."""

from __future__ import annotations

import argparse
import signal
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
