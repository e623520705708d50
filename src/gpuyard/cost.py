"""What a run is expected to cost, before anything is rented: hours times the hourly price, traffic, the bucket."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpuyard.formats.journal import Position
from gpuyard.workload import Workload, schema


@dataclass(frozen=True, slots=True)
class Span:
    """An expected and a worst value, in hours or in dollars."""

    expected: float
    worst: float

    def __add__(self, other: Span) -> Span:
        return Span(self.expected + other.expected, self.worst + other.worst)

    def __mul__(self, factor: float) -> Span:
        return Span(self.expected * factor, self.worst * factor)


NOTHING = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an estimate. ``hours`` and ``dollars`` are ``None`` where the workload does not say."""

    name: str
    hours: Span | None
    dollars: Span | None


@dataclass(frozen=True, slots=True)
class Part:
    """Iterations that cost the same: ``count`` of them, each with these stages and this ``total``."""

    name: str
    count: int
    stages: tuple[Line, ...]
    total: Line  # with its traffic


@dataclass(frozen=True, slots=True)
class Storage:
    """What the bucket holds after the run (10^9 bytes), and what that costs a month."""

    gb: float
    dollars_per_month: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes over the network (10^9 bytes), at the price that the cloud asks for a gigabyte; 0: nothing."""

    price_per_gb_usd: float
    setup_gb: float | None = None  # None: the workload does not say
    gb_per_iteration: float = 0.0

    def of_setup(self) -> Span:
        """Return what a new machine's downloads cost, in dollars."""
        return self._dollars(self.setup_gb or 0.0)

    def of_iteration(self) -> Span:
        """Return what the traffic of one iteration costs, in dollars."""
        return self._dollars(self.gb_per_iteration)

    def in_words(self) -> str:
        """Return what the sums hold of it, to follow the price of an hour."""
        if not self.price_per_gb_usd:
            return "; the cloud names no price for traffic"
        price = f"traffic at ${self.price_per_gb_usd:.4g} a GB"
        if self.setup_gb is None:
            return f"; {price} is not in it, since the workload does not say how much there is (traffic)"
        return f", with {price}: {self.setup_gb:g} GB of set-up and {self.gb_per_iteration:g} GB an iteration"

    def _dollars(self, gb: float) -> Span:
        return Span(gb, gb) * self.price_per_gb_usd


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to run takes and costs at one hourly price.

    ``iterations`` is how many the workload has, ``stages`` what each stage takes in all of them, ``parts`` the same by
    iteration. ``what`` says in words what is counted. ``unknown`` names the stages without ``hours``: the sums are then
    a lower bound, and the texts say so.
    """

    workload: str
    price_per_hour_usd: float
    iterations: int
    what: str
    setup: Line
    parts: tuple[Part, ...]
    stages: tuple[Line, ...]
    run: Line
    unknown: tuple[str, ...]
    storage: Storage | None = None
    traffic: Traffic = Traffic(0.0)

    @property
    def all_in(self) -> Line:
        """The run with a month of what it leaves in the bucket."""
        kept = self.storage.dollars_per_month if self.storage else 0.0
        return Line("with the bucket", self.run.hours, _sum([self.run.dollars, Span(kept, kept)]))

    def to_dict(self) -> dict[str, object]:
        """Return the estimate as JSON-able values: hours and dollars."""
        return {
            "workload": self.workload,
            "price_per_hour_usd": self.price_per_hour_usd,
            "iterations": self.iterations,
            "setup": _line_dict(self.setup),
            "parts": [
                {
                    "name": part.name,
                    "iterations": part.count,
                    "stages": [_line_dict(stage) for stage in part.stages],
                    "iteration": _line_dict(part.total),
                }
                for part in self.parts
            ],
            "stages": [_line_dict(stage) for stage in self.stages],
            "run": _line_dict(self.run),
            "all_in": _line_dict(self.all_in),
            "stages_without_hours": list(self.unknown),
            "traffic": dataclasses.asdict(self.traffic),
            "storage": {"gb": self.storage.gb, "usd_per_month": self.storage.dollars_per_month} if self.storage else {},
        }

    def to_table(self) -> str:
        """Return the estimate as a plain-text table, with a line about what it leaves out."""
        rows = [("", "hours", "worst", "USD", "worst")]
        rows.append(_row(self.setup))
        for part in self.parts:
            rows += [_row(stage, indent="  ") for stage in part.stages]
            if self.traffic.of_iteration() != NOTHING:
                rows.append(_dollars_row("  traffic", self.traffic.of_iteration()))
            rows.append(_row(part.total))
        rows.append(_row(self.run))
        rows += _bucket_rows([self])
        return "\n".join([*_aligned(rows), *self.notes()])

    def notes(self) -> list[str]:
        """Return what a reader of the numbers has to know."""
        bucket = "" if self.storage else " The bucket is not in it."
        notes = [f"{_price(self.price_per_hour_usd, self.traffic.in_words())}.{bucket}"]
        if self.storage:
            notes.append(
                f"The bucket then holds {self.storage.gb:g} GB, for "
                f"${dollars_text(self.storage.dollars_per_month)} a month until it is cleared."
            )
        if self.unknown:
            notes.append(
                f"The workload gives no hours for {', '.join(self.unknown)}: the sums are without, so a lower bound."
            )
        return notes

    def summary(self) -> str:
        """Return the estimate in one sentence."""
        least = "at least " if self.unknown else ""
        hours, dollars = self.run.hours or NOTHING, self.all_in.dollars or NOTHING
        kept = " and a month of the bucket" if self.storage else ""
        return (
            f"{self.workload} is expected to take {least}{hours_text(hours.expected)} h and to cost {least}"
            f"${dollars_text(dollars.expected)} for {self.what}{kept}, "
            f"at worst {hours_text(hours.worst)} h and ${dollars_text(dollars.worst)}."
        )


def _price(per_hour_usd: float, more: str = "") -> str:
    """Return for which price the numbers are; only boxes of the user's own cost nothing."""
    return f"At ${per_hour_usd:.4f} an hour for GPU and disk{more}" if per_hour_usd else "On boxes of your own"


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the nodes of a run take and cost, by their names; at least one. They are at work at the same time."""

    nodes: Mapping[str, Estimate]

    @property
    def first(self) -> Estimate:
        """The estimate of the first node."""
        return next(iter(self.nodes.values()))

    @property
    def price_per_hour_usd(self) -> float:
        """What all nodes cost an hour, all-in."""
        return sum(one.price_per_hour_usd for one in self.nodes.values())

    @property
    def run(self) -> Line:
        """The whole run: as long as its longest node, for the dollars of all."""
        lines = [one.run for one in self.nodes.values()]
        hours = [line.hours or NOTHING for line in lines]
        longest = Span(max(one.expected for one in hours), max(one.worst for one in hours))
        return Line("run", longest, _sum([line.dollars for line in lines]))

    @property
    def all_in(self) -> Line:
        """The whole run with a month of what its nodes leave in the bucket."""
        return dataclasses.replace(self.first.all_in, dollars=_sum([one.all_in.dollars for one in self.nodes.values()]))

    def to_dict(self) -> dict[str, object]:
        """Return the estimate of a run of one node as it is; of several nodes each, and their sum as ``run``."""
        if len(self.nodes) == 1:
            return self.first.to_dict()
        return {
            "workload": self.first.workload,
            "price_per_hour_usd": self.price_per_hour_usd,
            "iterations": self.first.iterations,
            "nodes": {name: one.to_dict() for name, one in self.nodes.items()},
            "run": _line_dict(self.run),
            "all_in": _line_dict(self.all_in),
        }

    def to_table(self) -> str:
        """Return the estimate as a plain-text table; of several nodes, a line for each and their sum."""
        if len(self.nodes) == 1:
            return self.first.to_table()
        rows = [("", "hours", "worst", "USD", "worst")]
        rows += [_row(dataclasses.replace(one.run, name=name)) for name, one in self.nodes.items()]
        rows.append(_row(dataclasses.replace(self.run, name=f"run of {len(self.nodes)} nodes")))
        rows += _bucket_rows(list(self.nodes.values()))
        notes = dict.fromkeys(note for one in self.nodes.values() for note in one.notes()[1:])
        price = f"{_price(self.price_per_hour_usd, ' of all')}."
        traffic = [f"{name}: {one.notes()[0]}" for name, one in self.nodes.items() if one.traffic.price_per_gb_usd]
        return "\n".join([*_aligned(rows), price, *traffic, *notes])

    def summary(self) -> str:
        """Return the estimate in one sentence."""
        if len(self.nodes) == 1:
            return self.first.summary()
        least = "at least " if any(one.unknown for one in self.nodes.values()) else ""
        hours, dollars = self.run.hours or NOTHING, self.all_in.dollars or NOTHING
        kept = " with a month of the bucket" if self.first.storage else ""
        return (
            f"{self.first.workload} is expected to take {least}{hours_text(hours.expected)} h and to cost {least}"
            f"${dollars_text(dollars.expected)} on {len(self.nodes)} nodes{kept}, "
            f"at worst {hours_text(hours.worst)} h and ${dollars_text(dollars.worst)}."
        )


def _bucket_rows(estimates: Sequence[Estimate]) -> list[tuple[str, str, str, str, str]]:
    """Return the rows below a run: a month of its bucket, and the sum; none where nobody says what it leaves there."""
    kept = sum(one.storage.dollars_per_month for one in estimates if one.storage)
    if not kept:
        return []
    whole = _sum([one.all_in.dollars for one in estimates])
    return [_dollars_row("bucket, a month", Span(kept, kept)), _dollars_row("with the bucket", whole)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: names on the left, numbers on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return lines


def of_pools(
    workload: Workload,
    pools: Collection[str],
    price_per_hour_usd: float,
    *,
    gpu_name: str = "",
    places: Sequence[Position] | None = None,
    traffic_price_per_gb_usd: float = 0.0,
) -> Estimate:
    """Return the estimate of a node that runs the stages of ``pools``; the rest is as for :func:`estimate`."""
    stages = [stage for stage in workload.stages if stage.pool in pools]
    names = {stage.name for stage in stages}
    own = None if places is None else [place for place in places if place[1] in names]
    return estimate(
        workload.model_copy(update={"stages": stages}),
        price_per_hour_usd,
        gpu_name=gpu_name,
        places=own,
        traffic_price_per_gb_usd=traffic_price_per_gb_usd,
    )


def estimate(
    workload: Workload,
    price_per_hour_usd: float,
    *,
    gpu_name: str = "",
    places: Sequence[Position] | None = None,
    traffic_price_per_gb_usd: float = 0.0,
) -> Estimate:
    """Return what ``workload`` takes and costs, set-up included, at a price in dollars an hour (disk included).

    ``places`` are the stages that are to run (pairs of iteration and stage name); default: all. ``gpu_name`` is the
    GPU of the offer, for stages that have other hours on it, and ``traffic_price_per_gb_usd`` what its cloud asks for
    a gigabyte.
    """
    order = workload.order
    chosen = order if places is None else list(places)
    by_name = {stage.name: stage for stage in workload.stages}
    said = workload.traffic
    traffic = Traffic(traffic_price_per_gb_usd, *((said.setup_gb, said.gb_per_iteration) if said else ()))
    setup = _line("setup", Span(workload.setup_hours.expected, workload.setup_hours.worst), price_per_hour_usd)
    setup = dataclasses.replace(setup, dollars=_sum([setup.dollars, traffic.of_setup()]))
    parts: list[Part] = []
    began = 0
    for iteration, group in itertools.groupby(chosen, key=lambda place: place[0]):
        lines = tuple(
            _line(name, _span(by_name[name].hours_in(iteration, gpu_name)), price_per_hour_usd) for _, name in group
        )
        if parts and parts[-1].stages == lines:
            count = parts[-1].count + 1
            name = f"each of iterations {began} to {iteration}"
        else:
            began, count, name = iteration, 1, f"iteration {iteration}"
        total = _line(name, _sum([line.hours for line in lines]), price_per_hour_usd)
        total = dataclasses.replace(total, dollars=_sum([total.dollars, traffic.of_iteration()]))
        part = Part(name, count, lines, total)
        parts[-1 if count > 1 else len(parts) :] = [part]
    if len(parts) == 1 and parts[0].count == workload.iterations:
        total = dataclasses.replace(parts[0].total, name="one iteration")
        parts = [Part("one iteration", parts[0].count, parts[0].stages, total)]
    spans: dict[str, list[Span | None]] = {}
    for part in parts:
        for line in part.stages:
            spans.setdefault(line.name, []).append(None if line.hours is None else line.hours * part.count)
    rounds = f"{workload.iterations} iteration{'' if workload.iterations == 1 else 's'}"
    whole = len(chosen) == len(order)
    return Estimate(
        workload=workload.name,
        price_per_hour_usd=price_per_hour_usd,
        iterations=workload.iterations,
        what=rounds if whole else f"what is to run, {len(chosen)} of {len(order)} stages",
        setup=setup,
        parts=tuple(parts),
        stages=tuple(
            _line(name, None if None in found else _sum(found), price_per_hour_usd) for name, found in spans.items()
        ),
        run=Line(
            f"run of {workload.iterations}" if whole else "what is to run",
            _sum([setup.hours, *((part.total.hours or NOTHING) * part.count for part in parts)]),
            _sum([setup.dollars, *((part.total.dollars or NOTHING) * part.count for part in parts)]),
        ),
        unknown=tuple(name for name, found in spans.items() if None in found),
        storage=_storage(workload),
        traffic=traffic,
    )


def _storage(workload: Workload) -> Storage | None:
    if workload.storage is None:
        return None
    gb = workload.storage.gb_per_iteration * workload.iterations
    return Storage(gb, gb * workload.storage.price_per_gb_month)


def _span(said: schema.Span | None) -> Span | None:
    return Span(said.expected, said.worst) if said else None


def _line(name: str, hours: Span | None, price: float) -> Line:
    return Line(name, hours, None if hours is None else hours * price)


def _sum(spans: Sequence[Span | None]) -> Span:
    total = NOTHING
    for span in spans:
        total += span or NOTHING
    return total


def _line_dict(line: Line) -> dict[str, object]:
    return {
        "name": line.name,
        "hours": None if line.hours is None else {"expected": line.hours.expected, "worst": line.hours.worst},
        "usd": None if line.dollars is None else {"expected": line.dollars.expected, "worst": line.dollars.worst},
    }


def _row(line: Line, indent: str = "") -> tuple[str, str, str, str, str]:
    if line.hours is None or line.dollars is None:
        return (indent + line.name, "not said", "", "", "")
    return (
        indent + line.name,
        hours_text(line.hours.expected),
        hours_text(line.hours.worst),
        dollars_text(line.dollars.expected),
        dollars_text(line.dollars.worst),
    )


def _dollars_row(name: str, dollars: Span) -> tuple[str, str, str, str, str]:
    return (name, "", "", dollars_text(dollars.expected), dollars_text(dollars.worst))


def hours_text(hours: float) -> str:
    """Return hours with two digits, and with three below an hour."""
    return f"{hours:.2f}" if hours >= 1 or hours == 0 else f"{hours:.3f}"


def dollars_text(dollars: float) -> str:
    """Return dollars with cents, and with more digits below a dollar, where cents would hide everything."""
    return f"{dollars:.2f}" if dollars >= 1 or dollars == 0 else f"{dollars:.4f}"
