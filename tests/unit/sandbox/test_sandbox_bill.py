"""The bill, by hand-computed amounts."""

from __future__ import annotations

import pytest

from gpuyard.sandbox.bill import amount, statement
from gpuyard.sandbox.model import Line, Phase, Rental

HOUR = 3600.0


def rental(**fields: object) -> Rental:
    defaults: dict[str, object] = {
        "provider": "vast", "id": "7", "item": "1", "region": "", "label": "x", "container": "c", "image": "i",
        "address": "127.77.1.1", "ports": {"22": 22}, "created_at": 0.0, "phase": Phase.RUNNING, "phase_since": 0.0,
    }  # fmt: skip
    return Rental(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        (Line("gpu", 0.36, 0.0), 10.0, 0.001),  # per second
        (Line("gpu", 0.36, 0.0, end=HOUR), 5 * HOUR, 0.36),  # closed: later time does not count
        (Line("instance", 1.0, 0.0, monthly_cap_usd=500.0), 600 * HOUR, 500.0),  # never more than the monthly price
        (Line("instance", 1.0, 0.0, monthly_cap_usd=500.0), 730 * HOUR, 510.0),  # the next month begins anew
        (Line("gpu", 1.0, 100.0), 50.0, 0.0),  # a clock that was set back gives no money
    ],
)
def test_amounts(line: Line, now: float, expected: float) -> None:
    assert amount(line, now) == pytest.approx(expected)


def test_a_stopped_vast_rental_costs_its_disk_and_an_ended_one_nothing() -> None:
    stopped = rental(id="1", phase=Phase.STOPPED)
    stopped.open_line("disk", 0.01, 0.0)
    stopped.open_line("gpu", 0.5, 0.0)
    stopped.close_lines(HOUR, "gpu")
    ended = rental(id="2", phase=Phase.GONE)
    ended.open_line("disk", 0.01, 0.0)
    ended.close_lines(HOUR)
    bill = statement([stopped, ended], 2 * HOUR)
    assert bill["billable"] == [
        {"provider": "vast", "id": "1", "label": "x", "what": "disk", "price_per_hour_usd": 0.01}
    ]
    assert bill["total_usd"] == pytest.approx(0.02 + 0.5 + 0.01)
    assert [(line["id"], line["what"], line["end"]) for line in bill["lines"]] == [
        ("1", "disk", None), ("1", "gpu", HOUR), ("2", "disk", HOUR),
    ]  # fmt: skip


def test_nothing_rented_is_an_empty_bill() -> None:
    assert statement([], 1.0) == {"total_usd": 0, "billable": [], "lines": []}
