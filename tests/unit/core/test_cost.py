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
    assert [stage.dollars for stage in found.stages] == [Span(6.0, 12.0), None, Span(2.0, 4.0)]  # in both iterations
    [part] = found.parts
    assert [stage.dollars for stage in part.stages] == [Span(3.0, 6.0), None, Span(1.0, 2.0)]
    assert (part.total.hours, part.total.dollars, part.count) == (Span(2.0, 4.0), Span(4.0, 8.0), 2)
    assert (found.run.hours, found.run.dollars) == (Span(4.25, 8.5), Span(8.5, 17.0))  # set-up once, two iterations
    five = parse_workload(WORKLOAD.replace("iterations: 2", "iterations: 5"), "w.yml")
    assert estimate(five, 2.0).run.dollars == Span(20.5, 41.0)


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
        "At $0.0500 an hour for GPU and disk; the cloud names no price for traffic. The bucket is not in it.",
        "The workload gives no hours for export: the sums are without, so a lower bound.",
    ]


BURN = """\
name: burn
repository: {path: x}
iterations: 5
setup_hours: {expected: 0, worst: 1}
storage: {gb_per_iteration: 22, price_per_gb_month: 0.02}
stages:
  - {name: weights, command: x, run: once, hours: {expected: 0.5, worst: 1}}
  - name: finetune
    command: x
    first: {environment: {EPOCHS: "3"}, hours: {expected: 6, worst: 12}}
    hours: {expected: 2.5, worst: 4, by_gpu: {H100: {expected: 1, worst: 2}, H100 SXM5: {expected: 0.5, worst: 1}}}
  - {name: search, command: x, hours: {expected: 5.3, worst: 8}}
"""


def test_b19_what_the_first_iteration_costs_and_what_the_later_ones() -> None:
    found = estimate(parse_workload(BURN, "w.yml"), 1.10)
    assert [(part.name, part.count) for part in found.parts] == [
        ("iteration 0", 1),
        ("each of iterations 1 to 4", 4),
    ]
    first, later = (part.total.dollars for part in found.parts)
    assert first and first.expected == pytest.approx(12.98)  # "first about $13"
    assert later and later.expected == pytest.approx(8.58)  # "next about $9"
    assert found.run.dollars and found.run.dollars.expected == pytest.approx(12.98 + 4 * 8.58)
    assert "The bucket then holds 110 GB, for $2.20 a month until it is cleared." in found.notes()
    assert found.to_dict()["storage"] == {"gb": 110, "usd_per_month": pytest.approx(2.2)}


def test_hours_by_gpu_count_where_the_offer_has_that_gpu() -> None:
    workload = parse_workload(BURN, "w.yml")
    for name, expected in [("A100 SXM4", 2.5), ("H100 PCIe", 1), ("H100 SXM5", 0.5), ("", 2.5)]:
        later = estimate(workload, 1.0, gpu_name=name).parts[1].stages[0]
        assert later.hours and later.hours.expected == expected, name
        first = estimate(workload, 1.0, gpu_name=name).parts[0].stages[1]
        assert first.hours and first.hours.expected == 6, "the first iteration says its own"


def test_x1_only_what_is_to_run_is_counted() -> None:
    workload = parse_workload(BURN, "w.yml")
    found = estimate(workload, 1.0, places=[(1, "search"), *workload.order[5:]])
    assert [(part.name, part.count) for part in found.parts] == [
        ("iteration 1", 1),
        ("each of iterations 2 to 4", 3),
    ]
    assert found.run.name == "what is to run"
    assert found.run.dollars == Span(28.70, 45.0)
    assert found.summary() == (
        "burn is expected to take 28.70 h and to cost $30.90 for what is to run, 7 of 11 stages and a month of the "
        "bucket, at worst 45.00 h and $47.20."
    )
    alone = estimate(workload, 1.0, places=[(4, "search")])
    assert [stage.name for stage in alone.stages] == ["search"] and alone.run.dollars == Span(5.3, 9.0)


def test_x1_traffic_and_the_bucket_are_in_the_sums() -> None:
    """B19, E12: by set-up, iteration and run, at what the offer's cloud asks for a gigabyte."""
    text = BURN.replace("iterations: 5", "iterations: 2\ntraffic: {setup_gb: 40, gb_per_iteration: 22}")
    workload = parse_workload(text, "w.yml")
    found = estimate(workload, 1.0, traffic_price_per_gb_usd=0.01)
    assert found.setup.dollars == Span(0.4, 1.4)
    assert [part.total.dollars for part in found.parts] == [
        Span(pytest.approx(11.8 + 0.22), pytest.approx(21.22)),
        Span(pytest.approx(7.8 + 0.22), pytest.approx(12.22)),
    ]
    assert found.run.dollars == Span(pytest.approx(0.4 + 12.02 + 8.02), pytest.approx(1.4 + 21.22 + 12.22))
    table = found.to_table().splitlines()
    assert table[5].split() == ["traffic", "0.2200", "0.2200"]
    assert [line.split() for line in table[11:14]] == [
        ["run", "of", "2", "19.60", "34.00", "20.44", "34.84"],
        ["bucket,", "a", "month", "0.8800", "0.8800"],
        ["with", "the", "bucket", "21.32", "35.72"],
    ]
    assert table[14] == (
        "At $1.0000 an hour for GPU and disk, with traffic at $0.01 a GB: 40 GB of set-up and 22 GB an iteration."
    )
    values = json.loads(json.dumps(found.to_dict()))
    assert values["all_in"]["usd"]["expected"] == pytest.approx(21.32)
    assert values["traffic"] == {"price_per_gb_usd": 0.01, "setup_gb": 40, "gb_per_iteration": 22}
    silent = estimate(parse_workload(BURN, "w.yml"), 1.0, traffic_price_per_gb_usd=0.01)
    assert "is not in it, since the workload does not say how much there is (traffic)." in silent.notes()[0]


def test_many_iterations_are_reckoned_at_once() -> None:
    found = estimate(parse_workload(BURN.replace("iterations: 5", "iterations: 100000"), "w.yml"), 1.0)
    assert [part.count for part in found.parts] == [1, 99_999]


def test_as_json(workload: Workload) -> None:
    found = json.loads(json.dumps(estimate(workload, 2.0).to_dict()))
    assert found["run"] == {
        "name": "run of 2",
        "hours": {"expected": 4.25, "worst": 8.5},
        "usd": {"expected": 8.5, "worst": 17.0},
    }
    assert found["stages"][1] == {"name": "export", "hours": None, "usd": None}
    assert [(part["name"], part["iterations"]) for part in found["parts"]] == [("one iteration", 2)]
    assert found["parts"][0]["iteration"]["usd"] == {"expected": 4.0, "worst": 8.0}
    assert found["stages_without_hours"] == ["export"]
