"""``gpuyard sandbox …``: bring the emulated clouds up, look at them, let them fail, take them down."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from gpuyard import paths
from gpuyard.sandbox.faults import KINDS, Place
from gpuyard.sandbox.lifecycle import Options
from gpuyard.sandbox.model import ProviderName

if TYPE_CHECKING:
    from gpuyard.sandbox.client import Control

_PIPE_WIDTH = 160

Handler = Callable[[argparse.Namespace], int]


def add_parser(subparsers: Any) -> None:
    """Add ``sandbox`` to the sub-commands of a parser; each sets ``handler``, which returns the exit code."""
    sandbox = subparsers.add_parser("sandbox", help="clouds emulated on this machine, with containers for instances")
    verbs = sandbox.add_subparsers(dest="verb", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--state",
        type=Path,
        default=None,
        metavar="DIR",
        help="state folder (default: $GPUYARD_SANDBOX_STATE, else ~/.gpuyard/sandbox)",
    )

    def verb(name: str, handler: Handler, text: str, parent: Any = verbs) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, parents=[shared])
        parser.set_defaults(handler=handler)
        return parser

    up = verb("up", _up, "start the sandbox; the first time builds the box images")
    up.add_argument("--port", type=_port, help="port of the APIs on 127.0.0.1 (default: a free one)")
    up.add_argument("--boot-seconds", type=_seconds, help="how long a rented machine takes to run (default: 3)")
    up.add_argument("--offers", type=_count, metavar="N", help="so many more machines at Vast.ai (default: 0)")
    up.add_argument("--seed", type=int, help="which ones these are, always the same for one number (default: 0)")
    up.add_argument("--scenario", type=Path, metavar="FILE", help="what goes wrong from now on, a YAML file")
    up.add_argument(
        "--rate-limits", action=argparse.BooleanOptionalAction, default=None, help="enforce the providers' rate limits"
    )
    for name, handler, text in (
        ("status", _status, "show where the sandbox listens and what is rented"),
        ("bill", _bill, "show what has been spent and what still costs"),
    ):
        verb(name, handler, text).add_argument("--json", action="store_true", help="print one JSON object")
    verb("env", _env, "print export lines for vastai, vultr.cloud, aws, s5cmd and rclone")
    down = verb("down", _down, "end the sandbox with everything that it runs")
    down.add_argument("--keep-state", action="store_true", help="keep the state folder with bill and log")

    fault = verbs.add_parser("fault", help="let something go wrong")
    kinds = fault.add_subparsers(dest="kind", required=True)
    preempt = verb("preempt", _preempt, "take a machine away", kinds)
    which = preempt.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", default="", help="the machine of this run")
    which.add_argument("--instance", default="", metavar="ID", help="the machine with this id")
    preempt.add_argument(
        "--notice", type=_seconds, default=0.0, metavar="S", help="SIGTERM, then SIGKILL after S seconds"
    )
    preempt.add_argument(
        "--outcome", choices=["stopped", "outbid", "gone", "suspended"], default="", help="how the provider shows it"
    )
    bucket = verb("no-bucket", _no_bucket, "the bucket is gone for a while, and back with what it held", kinds)
    bucket.add_argument(
        "--for", type=_seconds, metavar="S", dest="for_s", default=30.0, help="for S seconds (default: 30)"
    )
    for known in KINDS.values():
        parser = verb(known.name, _fault, known.text, kinds)
        parser.add_argument("--provider", choices=get_args(ProviderName), required=True)
        parser.add_argument("--count", type=_count, metavar="N", help="how many times (default: 1)")
        if known.place:
            parser.add_argument("--place", choices=get_args(Place), help=f"which requests (default: {known.place})")
        parser.add_argument(
            "--after", type=_seconds, default=0.0, metavar="S", dest="after_s", help="not before S seconds"
        )
        parser.add_argument(
            "--for", type=_seconds, metavar="S", dest="for_s", help="for S seconds, as often as it comes"
        )
        parser.add_argument("--chance", type=float, default=1.0, help="strike with this chance each time (default: 1)")
        parser.add_argument("--seed", type=int, default=0, help="which times, with a chance (default: 0)")
    verb("clear", _clear, "forget all faults and give taken machines back", kinds)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and 3600")
    return value


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 1 and 10000")
    return int(text)


def _state(arguments: argparse.Namespace) -> Path:
    chosen: Path = arguments.state or paths.sandbox_state()
    state = chosen.expanduser().absolute()
    paths.check_state_folder(state)
    return state


def _control(arguments: argparse.Namespace) -> Control:
    # The HTTP client takes a while to import and only these verbs need it.
    from gpuyard.sandbox.client import Control, load

    return Control(load(_state(arguments)))


def _console() -> Console:
    """Return a console that leaves ids whole where the output goes into a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _say(line: str) -> None:
    print(line, flush=True)


def _up(arguments: argparse.Namespace) -> int:
    from gpuyard.sandbox import lifecycle

    state, given = _state(arguments), ("port", "boot_seconds", "rate_limits", "offers", "seed")
    options = Options(**{name: getattr(arguments, name) for name in given})
    if not arguments.scenario:
        lifecycle.up(state, _say, options)
        return 0
    from gpuyard.sandbox import scenario
    from gpuyard.sandbox.client import Control

    day = scenario.read(arguments.scenario)  # before anything is started
    control = Control(lifecycle.up(state, _say, options))
    control.advance(day.advance_s)
    for fault in day.faults:
        control.fault(**fault.model_dump())
    _say(f"{len(day.faults)} faults of {arguments.scenario} are set.")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from gpuyard.sandbox import lifecycle

    lifecycle.down(_state(arguments), _say, keep_state=arguments.keep_state)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from gpuyard.sandbox.info import load

    info = load(_state(arguments))
    status = _control(arguments).status()
    if arguments.json:
        print(json.dumps({**info.document, **status}, indent=2))
        return 0
    console = _console()
    for name, url in info.endpoints.items():
        console.print(f"{name:8} {url}")
    table = Table(title=f"Rented from the sandbox {info.name} (emulated)")
    for column in ("provider", "id", "run", "state", "item", "ssh", "$/h"):
        table.add_column(column, justify="right" if column == "$/h" else "left")
    for row in status["instances"]:
        table.add_row(
            row["provider"],
            row["id"],
            row["label"],
            row["state"],
            f"{row['item']} {row['gpu_name']}",
            f"{row['ssh_user']}@{row['ssh_host']}:{row['ssh_port']}",
            f"{row['billing_per_hour_usd']:.4f}",
        )
    console.print(table if status["instances"] else "Nothing is rented.")
    for row in status["holdings"]:
        console.print(
            f"{row['provider']} {row['kind']} {row['id']} {row['label']} {row['region']}: "
            f"{row['billing_per_hour_usd']:.6f} $/h"
        )
    for fault in status["faults"]:
        console.print(f"fault: {fault['kind']} at {fault['provider']}, {fault['remaining']} more times")
    return 0


def _bill(arguments: argparse.Namespace) -> int:
    bill = _control(arguments).status()["bill"]
    if arguments.json:
        print(json.dumps(bill, indent=2))
        return 0
    table = Table(title="The sandbox's bill (nobody charges it)")
    for column in ("provider", "id", "run", "what", "hours", "$/h", "$"):
        table.add_column(column, justify="right" if column in ("hours", "$/h", "$") else "left")
    for line in bill["lines"]:
        table.add_row(
            line["provider"],
            line["id"],
            line["label"],
            line["what"] + ("" if line["end"] else " (open)"),
            f"{line['seconds'] / 3600:.4f}",
            f"{line['price_per_hour_usd']:.4f}",
            f"{line['amount_usd']:.6f}",
        )
    console = _console()
    if bill["lines"]:
        console.print(table)
    open_lines = len(bill["billable"])
    ending = "Nothing costs money any more." if bill["lines"] else "Nothing has been rented."
    if open_lines:
        ending = f"{open_lines} line{'s' * (open_lines > 1)} still cost{'s' * (open_lines == 1)} money."
    console.print(f"Total ${bill['total_usd']:.6f}. {ending}")
    return 0


def _env(arguments: argparse.Namespace) -> int:
    from gpuyard.sandbox.info import load

    for name, value in load(_state(arguments)).exports().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _preempt(arguments: argparse.Namespace) -> int:
    done = _control(arguments).preempt(
        instance=arguments.instance, run=arguments.run, notice_s=arguments.notice, outcome=arguments.outcome
    )
    for item in done["preempted"]:
        _say(
            f"Preempted {item['provider']} {item['id']}"
            + (f" with {arguments.notice:g} s notice" if arguments.notice else "")
        )
    return 0


def _no_bucket(arguments: argparse.Namespace) -> int:
    _control(arguments).stop_bucket(arguments.for_s)
    _say(f"The bucket is gone for {arguments.for_s:g} s, or until gpuyard sandbox fault clear.")
    return 0


def _fault(arguments: argparse.Namespace) -> int:
    names = ("place", "after_s", "for_s", "chance", "seed")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    remaining = _control(arguments).fault(arguments.kind, arguments.provider, arguments.count, **given)["remaining"]
    times = "From now on" if arguments.for_s else f"The next {remaining} times"
    _say(f"{times} at {arguments.provider}: {KINDS[arguments.kind].text}.")
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    _control(arguments).clear_faults()
    _say("All faults are cleared.")
    return 0
