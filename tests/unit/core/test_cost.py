from __future__ import annotations

import json

import pytest

from gpuyard.cost import Span, estimate
from gpuyard.workload import Workload, parse_workload

WORKLOAD = """\
name: miniprover
repository: {path: examples/miniprover}
iterations: 2
setup_hours: {expected: 0.25, worst: 0.5}
stages:
  - {name: finetune, command: a, hours: {expected: 1.5, worst: 3}}
  - {name: export, command: b}
  - {name: search, command: c, hours: {expected: 0.5, worst: 1}}
"""


@pytest.fixture
def workload() -> Workload:
    return parse_workload(WORKLOAD, "w.yml")


def test_stages_iteration_and_run(workload: Workload) -> None:
    found = estimate(workload, 2.0)
    assert (found.setup.hours, found.setup.dollars) == (Span(0.25, 0.5), Span(0.5, 1.0))
    assert [stage.dollars for stage in found.stages] == [Span(3.0, 6.0), None, Span(1.0, 2.0)]
    assert (found.iteration.hours, found.iteration.dollars) == (Span(2.0, 4.0), Span(4.0, 8.0))
    assert (found.run.hours, found.run.dollars) == (Span(4.25, 8.5), Span(8.5, 17.0))  # set-up once, two iterations
    assert estimate(workload, 2.0, iterations=5).run.dollars == Span(20.5, 41.0)


def test_a_stage_without_hours_is_named(workload: Workload) -> None:
    found = estimate(workload, 2.0)
    assert found.unknown == ("export",)
    assert "no hours for export" in found.to_table()
    assert found.summary() == (
        "miniprover is expected to take at least 4.25 h and to cost at least $8.50 for 2 iterations, "
        "at worst 8.50 h and $17.00."
    )


def test_without_gaps_nothing_is_hedged() -> None:
    found = estimate(
        parse_workload(WORKLOAD.replace("command: b", "command: b, hours: {expected: 0, worst: 0}"), "w"), 2
    )
    assert found.unknown == ()
    assert "at least" not in found.summary()
    assert "lower bound" not in found.to_table()


def test_the_table(workload: Workload) -> None:
    assert estimate(workload, 0.05).to_table().splitlines() == [
        "                  hours  worst     USD   worst",
        "setup             0.250  0.500  0.0125  0.0250",
        "  finetune         1.50   3.00  0.0750  0.1500",
        "  export       not said",
        "  search          0.500   1.00  0.0250  0.0500",
        "one iteration      2.00   4.00  0.1000  0.2000",
        "run of 2           4.25   8.50  0.2125  0.4250",
        "At $0.0500 an hour for GPU and disk; traffic and bucket are not in it.",
        "The workload gives no hours for export: the sums are without, so a lower bound.",
    ]


def test_as_json(workload: Workload) -> None:
    found = json.loads(json.dumps(estimate(workload, 2.0).to_dict()))
    assert found["run"] == {
        "name": "run of 2",
        "hours": {"expected": 4.25, "worst": 8.5},
        "usd": {"expected": 8.5, "worst": 17.0},
    }
    assert found["stages"][1] == {"name": "export", "hours": None, "usd": None}
    assert found["stages_without_hours"] == ["export"]
