"""Runs: names, and the labels that tie whatever is rented to its run.

A run's name goes onto everything that is rented for it *before* it exists, so that an instance whose create answer was
lost can be found again. What a provider has for free-form metadata differs (Vast: one label of at most 256 characters;
Vultr: a label and tags; some volumes: a name of letters, digits and dashes), so a :class:`RunRef` knows all renderings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpuyard.errors import UsageError

# Short enough for every provider's label and for a host name (63), with room for prefixes.
RUN_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
STOPPED_MARK = "/stopped"
"""Ends the label of an instance that gpuyard itself stopped, so that a stop by the provider can be told from it."""
NODE_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,18}[a-z0-9])?-(?:0|[1-9][0-9]{0,3})")
TAG = "gpuyard"
_UNTIL = "until"
FIRST_NODE = "main-0"
"""The one node of a run that names no pools."""
# Nothing in a reference has capitals, so one begins each part; further parts are of later versions.
_NAME = re.compile(
    r"gpuyard-R(?P<run>[a-z0-9-]+)-W(?P<workload>[a-z0-9-]+?)(?:-N(?P<node>[a-z0-9-]+?))?(?:-[A-Z][A-Za-z0-9-]*)?"
)
# A run is a host in the inventory, beside Ansible's own host and groups and the one group of ours without a prefix.
_RESERVED = frozenset({"all", "gpuyard", "localhost", "ungrouped"})


def check_name(name: str, *, option: str = "run") -> str:
    """Return ``name`` when a label, a host name and a bucket key can all hold it, else raise :class:`UsageError`."""
    check_form(name, option)
    if name in _RESERVED:
        raise UsageError(f"{option}={name!r} means something to Ansible itself: choose another name.")
    return name


def check_form(name: str, option: str = "run") -> None:
    """Raise :class:`UsageError` when no run can have this name, whether it exists or not."""
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"{option}={name!r} cannot be a {option} name: use 1 to 40 lower-case letters, digits and dashes, "
            f"beginning with a letter and ending with a letter or digit, for example {option}=miniprover-0."
        )


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run's name, its workload's name, and the node: what every rented thing is labelled with.

    ``node`` is a place in a pool, ``<pool>-<number>``. A label says it for every other node than :data:`FIRST_NODE`.
    ``lease_end`` is until when it is rented, in whole seconds since 1970, where no bucket can say so; it makes a thing
    no other run's.
    """

    run: str
    workload: str
    node: str = FIRST_NODE
    lease_end: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # What is rented already keeps its name, whatever names are refused to new runs.
        check_form(self.run, "run")
        check_form(self.workload, "workload")

    @property
    def label(self) -> str:
        """The single-string form, ``gpuyard/<run>/<workload>[/<node>[/until-<seconds>]]`` (Vast)."""
        # A reader that knows no lease looks for the node in its place.
        node = [] if self.node == FIRST_NODE and self.lease_end is None else [self.node]
        until = [] if self.lease_end is None else [f"{_UNTIL}-{self.lease_end}"]
        return "/".join([TAG, self.run, self.workload, *node, *until])

    @property
    def tags(self) -> list[str]:
        """The list form, for providers whose label is the plain run name (Vultr)."""
        node = [] if self.node == FIRST_NODE else [f"node:{self.node}"]
        until = [] if self.lease_end is None else [f"{_UNTIL}:{self.lease_end}"]
        return [TAG, f"run:{self.run}", f"workload:{self.workload}", *node, *until]

    def name(self, longest: int, dash: str = "-") -> str:
        """Return the form for names of letters, digits and ``dash``: ``gpuyard-R<run>-W<workload>[-N<node>]``.

        Raises :class:`UsageError` when that is more than ``longest`` characters: a part of it would not be found again.
        """
        node = [] if self.node == FIRST_NODE else [f"N{self.node}"]
        name = "-".join([TAG, f"R{self.run}", f"W{self.workload}", *node]).replace("-", dash)
        if len(name) > longest:
            raise UsageError(
                f"run={self.run} is too long here: what belongs to it is called {name}, which has {len(name)} "
                f"characters, and {longest} are allowed. Choose a shorter name for the run."
            )
        return name

    @classmethod
    def from_name(cls, name: str) -> RunRef | None:
        """Return the reference that ``name`` renders, with any dash, or ``None`` when it is not one of ours."""
        found = _NAME.fullmatch(name.strip().replace("_", "-"))
        try:
            return cls(found["run"], found["workload"], _node([found["node"] or ""])) if found else None
        except UsageError:
            return None

    @classmethod
    def from_label(cls, label: str | None) -> RunRef | None:
        """Return the reference that ``label`` renders, or ``None`` when the label is not one of ours.

        Further parts, of a version that says more, make it no less ours: what bills must be seen.
        """
        first, *parts = (label or "").strip().split("/")
        if first != TAG or len(parts) < 2:
            return None
        try:
            until = (part.removeprefix(f"{_UNTIL}-") for part in parts[3:] if part.startswith(f"{_UNTIL}-"))
            return cls(parts[0], parts[1], _node(parts[2:3]), _moment(next(until, "")))
        except UsageError:
            return None

    @classmethod
    def from_tags(cls, tags: Iterable[str]) -> RunRef | None:
        """Return the reference that ``tags`` render, or ``None`` when they are not ours."""
        known = set(tags)
        if TAG not in known:
            return None
        fields = dict(tag.split(":", 1) for tag in sorted(known) if ":" in tag)
        try:
            node, until = _node([fields.get("node", "")]), _moment(fields.get(_UNTIL, ""))
            return cls(fields["run"], fields["workload"], node, until)
        except (KeyError, UsageError):
            return None


def _node(said: Sequence[str]) -> str:
    return next((name for name in said if NODE_NAME.fullmatch(name)), FIRST_NODE)


def _moment(said: str) -> int | None:
    """Return seconds since 1970; what is no such number says nothing."""
    return int(said) if said.isascii() and said.isdigit() and len(said) <= 11 else None


def check_node(node: str) -> str:
    """Return ``node`` when a label can hold it, else raise :class:`UsageError`."""
    if not NODE_NAME.fullmatch(node):
        raise UsageError(f"node={node!r} cannot be a node: that is a pool and a number, for example node=search-1.")
    return node


def pool_of(node: str) -> str:
    """Return the pool of a node, which is called ``<pool>-<number>``."""
    return node.rpartition("-")[0]


def next_name(workload: str, taken: Iterable[str]) -> str:
    """Return the first of ``<workload>-0``, ``<workload>-1``, … that is not in ``taken``."""
    used = set(taken)
    number = 0
    while f"{workload}-{number}" in used:
        number += 1
    return check_name(f"{workload}-{number}")
