"""What a run is expected to cost, before anything is rented: stage hours times the hourly price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuyard.workload import Workload


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
class Estimate:
    """What a run takes and costs at one hourly price.

    ``unknown`` names the stages without ``hours``: the sums are then a lower bound, and the texts say so.
    """

    workload: str
    price_per_hour_usd: float
    iterations: int
    setup: Line
    stages: tuple[Line, ...]
    iteration: Line
    run: Line
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the estimate as JSON-able values: hours and dollars."""
        return {
            "workload": self.workload,
            "price_per_hour_usd": self.price_per_hour_usd,
            "iterations": self.iterations,
            "setup": _line_dict(self.setup),
            "stages": [_line_dict(stage) for stage in self.stages],
            "iteration": _line_dict(self.iteration),
            "run": _line_dict(self.run),
            "stages_without_hours": list(self.unknown),
        }

    def to_table(self) -> str:
        """Return the estimate as a plain-text table, with a line about what it leaves out."""
        rows = [("", "hours", "worst", "USD", "worst")]
        rows.append(_row(self.setup))
        rows += [_row(stage, indent="  ") for stage in self.stages]
        rows.append(_row(self.iteration))
        rows.append(_row(self.run))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = []
        for name, *cells in rows:
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *padded]))
        return "\n".join(line.rstrip() for line in [*lines, *self.notes()])

    def notes(self) -> list[str]:
        """Return what a reader of the numbers has to know."""
        notes = [f"At ${self.price_per_hour_usd:.4f} an hour for GPU and disk; traffic and bucket are not in it."]
        if self.unknown:
            notes.append(
                f"The workload gives no hours for {', '.join(self.unknown)}: the sums are without, so a lower bound."
            )
        return notes

    def summary(self) -> str:
        """Return the estimate in one sentence."""
        least = "at least " if self.unknown else ""
        hours, dollars = self.run.hours or NOTHING, self.run.dollars or NOTHING
        rounds = f"{self.iterations} iteration{'' if self.iterations == 1 else 's'}"
        return (
            f"{self.workload} is expected to take {least}{_hours(hours.expected)} h and to cost {least}"
            f"${_dollars(dollars.expected)} for {rounds}, "
            f"at worst {_hours(hours.worst)} h and ${_dollars(dollars.worst)}."
        )


def estimate(workload: Workload, price_per_hour_usd: float, *, iterations: int | None = None) -> Estimate:
    """Return what ``workload`` takes and costs, set-up included, at a price in dollars an hour (disk included)."""
    count = workload.iterations if iterations is None else iterations
    setup = _line("setup", Span(workload.setup_hours.expected, workload.setup_hours.worst), price_per_hour_usd)
    stages = [
        _line(
            stage.name,
            Span(stage.hours.expected, stage.hours.worst) if stage.hours else None,
            price_per_hour_usd,
        )
        for stage in workload.stages
    ]
    one = _sum([stage.hours for stage in stages])
    whole = (setup.hours or NOTHING) + one * count
    return Estimate(
        workload=workload.name,
        price_per_hour_usd=price_per_hour_usd,
        iterations=count,
        setup=setup,
        stages=tuple(stages),
        iteration=_line("one iteration", one, price_per_hour_usd),
        run=_line(f"run of {count}", whole, price_per_hour_usd),
        unknown=tuple(stage.name for stage in stages if stage.hours is None),
    )


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
        _hours(line.hours.expected),
        _hours(line.hours.worst),
        _dollars(line.dollars.expected),
        _dollars(line.dollars.worst),
    )


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 1 or hours == 0 else f"{hours:.3f}"


def _dollars(dollars: float) -> str:
    """Return dollars with cents, and with more digits below a dollar, where cents would hide everything."""
    return f"{dollars:.2f}" if dollars >= 1 or dollars == 0 else f"{dollars:.4f}"
