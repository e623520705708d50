"""What can go wrong on command: one table. :mod:`gpuyard.sandbox.faulty` lets it happen to requests.

``python -m gpuyard.sandbox.faults`` writes the table as a page of the documentation.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from gpuyard.sandbox.model import Fault, ProviderName

Group = Literal["HTTP", "network", "capacity", "boot", "box"]
Place = Literal["any", "create", "destroy", "read", "write"]
"""Which requests: those that rent an instance, that end one, that change nothing, that change anything else."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can go wrong. ``place``: which requests it strikes by itself; ``""``: it strikes a machine."""

    name: str
    group: Group
    text: str
    place: Place | Literal[""] = ""
    after: bool = False  # whether the request is carried out before


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("throttle", "HTTP", "requests are answered with 429, and not carried out", "any"),
        Kind("server-error", "HTTP", "requests are answered with a 5xx status, and not carried out", "any"),
        Kind("error-after", "HTTP", "creates rent, and are answered with a 5xx status", "create", after=True),
        Kind("no-network", "network", "connections end before an answer, and nothing is carried out", "any"),
        Kind("lost-answer", "network", "creates rent, but their answer is lost", "create", after=True),
        Kind("slow-answer", "network", "creates rent, but their answer takes a minute", "create", after=True),
        Kind("no-capacity", "capacity", "creates are refused as sold out"),
        Kind("stuck-boot", "boot", "a new machine never gets beyond its boot"),
        Kind("no-key", "box", "a new machine knows no SSH key"),
        Kind("bad-gpu", "box", "a new machine has no working GPU"),
        Kind("slow-disk", "box", "a new machine's disk takes 4 MB a second"),
    )
}
"""Everything that can go wrong, by its name. All clouds know all of them."""
SLOW_ANSWER_S = 60.0


def take(faults: list[Fault], provider: ProviderName, kind: str, place: str, now: float) -> Fault | None:
    """Return the fault that strikes this request or machine, and count it; ``None`` when none does.

    Of a fault with a chance, the seed decides for each request in turn whether it is struck.
    """
    for fault in faults:
        if (fault.provider, fault.kind) != (provider, kind) or not _is_meant(fault, place, now):
            continue
        fault.seen += 1
        if fault.chance < 1 and random.Random(f"{fault.seed} {fault.seen}").random() >= fault.chance:
            continue
        fault.remaining -= 1
        if fault.remaining <= 0:
            faults.remove(fault)
        return fault
    return None


def _is_meant(fault: Fault, place: str, now: float) -> bool:
    wanted = fault.place or KINDS[fault.kind].place
    in_time = fault.from_time <= now and (fault.until_time is None or now < fault.until_time)
    return in_time and wanted in ("", "any", place)


def rows(kinds: Iterable[Kind]) -> str:
    """Return the kinds as a table in Markdown."""
    head = "| fault | kind | what happens | which requests, by itself |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"| `{one.name}` | {one.group} | {one.text} | {one.place or '-'} |\n" for one in kinds)


# ruff: noqa: E501 - a table of Markdown has one line a row
PAGE = """# What can go wrong in the sandbox

    gpuyard sandbox fault no-capacity --provider vast --count 3
    gpuyard sandbox up --scenario bad-day.yml

{rows}
`preempt` takes a machine away (`gpuyard sandbox fault preempt --run NAME`), and `clear` forgets everything.

| parameter | meaning | by itself |
| --- | --- | --- |
| `provider` | at which cloud: {providers} | has to be said |
| `count` | how many times | 1; with `for_s` as often as it comes |
| `place` | which requests: {places}. `create` rents an instance, `destroy` ends one, `read` changes nothing, `write` changes anything else | the fault's own, as above |
| `after_s`, `for_s` | from so many seconds on, for so many seconds, by the clouds' clock | at once, for ever |
| `chance`, `seed` | strikes each time with that chance, from 0 to 1; the seed decides which times, always the same ones | 1, 0 |

A scenario is a YAML file with a list of them, and how far the clouds' clock is set forward first:

    advance_s: 3600
    faults:
      - {{kind: throttle, provider: vast, place: destroy, count: 3}}
      - {{kind: no-network, provider: vultr, after_s: 30, for_s: 60}}
      - {{kind: server-error, provider: lambda, chance: 0.2, seed: 7, count: 100}}

The bucket is a real S3 server in a container of its own. `gpuyard sandbox fault no-bucket --for 60` ends it at once, and it
is back after a minute of real time, or after `clear`, with what it held.
"""


def page() -> str:
    """Return the page of the documentation."""
    providers, places = (", ".join(f"`{name}`" for name in get_args(names)) for names in (ProviderName, Place))
    return PAGE.format(rows=rows(KINDS.values()), providers=providers, places=places)


if __name__ == "__main__":
    sys.stdout.write(page())
