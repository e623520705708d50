"""Vast's offer search: conditions, order, cap, and the traps of the real server."""

from __future__ import annotations

from typing import Any

import pytest

from gpuyard.sandbox import catalogue
from gpuyard.sandbox.clouds.vast.query import OFFER_CAP, BadFilter, search


def offers(storage_gb: float = 8.0, *, bid: bool = False) -> list[dict[str, Any]]:
    return [
        catalogue.vast_offer(record, listing=0, rentable=True, bid=bid, storage_gb=storage_gb, now=1e9)
        for record in catalogue.vast_records()
    ]


@pytest.mark.parametrize(
    "query",
    [
        {"num_gpus": {"eq": "1"}, "gpu_ram": {"gte": "24000"}},  # the client sends numbers as text
        {"num_gpus": {"eq": 1}, "gpu_ram": {"gte": 24000.0}},
        {"num_gpus": {"lt": 2, "gt": 0}, "gpu_ram_GB": {"gte": 24}},
    ],
)
def test_numbers_and_texts_of_numbers_mean_the_same(query: dict[str, Any]) -> None:
    found = search(offers(), query)
    assert {row["gpu_name"] for row in found} == {"RTX 3090", "RTX 4090", "RTX 5090", "L40S", "A100 SXM4"}


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"gpu_name": {"in": ["RTX 4090", "L40S"]}}, 4),
        ({"gpu_name": {"notin": ["RTX 4090", "L40S"]}}, 10),
        ({"gpu_name": {"neq": "RTX 4090"}}, 11),
        ({"gpu_name": "RTX 4090"}, 3),
        ({"verified": {"eq": "true"}}, 12),
        ({"verified": {"eq": False}}, 2),
        ({"geolocation": {"eq": "NO"}}, 2),
        ({"dph": {"lte": 0.1}}, 3),
        ({"datacenter": {"eq": True}, "reliability2": {"gt": 0.998}}, 2),
        ({"cuda_vers": {"gte": 12.8}}, 4),
        ({"id": {"eq": 11402000}}, 0),  # the real server matches nothing by id
        ({"ask_contract_id": {"eq": 11402000}}, 1),
        ({"limit": "3"}, 3),
    ],
)
def test_conditions(query: dict[str, Any], count: int) -> None:
    assert len(search(offers(), query)) == count


def test_order() -> None:
    prices = [row["dph_total"] for row in search(offers(), {"order": [["dph_total", "desc"]]})]
    assert prices == sorted(prices, reverse=True)
    scores = [row["score"] for row in search(offers(), {})]
    assert scores == sorted(scores, reverse=True)
    two = search(offers(), {"order": [["gpu_name", "asc"], ["dph_total", "desc"]]})
    assert [(row["gpu_name"], -row["dph_total"]) for row in two] == sorted(
        (r["gpu_name"], -r["dph_total"]) for r in two
    )


def test_no_more_than_64_offers_whatever_is_asked() -> None:
    many = [dict(offers()[0], id=number) for number in range(200)]
    assert len(search(many, {"limit": 1000})) == OFFER_CAP == len(search(many, {}))


@pytest.mark.parametrize(
    "query",
    [
        {"gpu_colour": {"eq": "red"}},
        {"num_gpus": {"near": 1}},
        {"num_gpus": {"eq": "one"}},
        {"gpu_name": {"gt": 3}},
        {"gpu_name": {"in": "RTX 4090"}},
        {"order": "dph_total"},
        {"limit": "all"},
    ],
)
def test_nonsense_is_refused(query: dict[str, Any]) -> None:
    with pytest.raises(BadFilter):
        search(offers(), query)


def test_storage_and_market_count_into_the_price() -> None:
    small, large, bid = offers(8)[0], offers(80)[0], offers(8, bid=True)[0]
    assert large["dph_total"] - small["dph_total"] == pytest.approx(72 * small["storage_cost"] / 720)
    assert small["dph_total"] == pytest.approx(small["dph_base"] + small["storage_total_cost"])
    assert bid["dph_base"] == bid["min_bid"] < small["dph_base"]


def test_the_catalogue_serves_a_small_need_at_both_providers_and_vast_is_cheaper() -> None:
    fit = {
        "num_gpus": {"gte": 1}, "gpu_ram": {"gte": 8000}, "reliability": {"gte": 0.9}, "direct_port_count": {"gt": 0},
        "cpu_cores_effective": {"gte": 2}, "order": [["dph_total", "asc"]],
    }  # fmt: skip
    vast = search(offers(20), fit)[0]["dph_total"]
    vultr = min(
        plan["hourly_cost"]
        for plan in catalogue.vultr_plans()
        if plan["gpu_count"] == 1 and plan["gpu_vram_gb"] >= 8 and plan["locations"] and plan["deploy_ondemand"]
    )
    assert vast < vultr < 1.5
    assert all(row["emulated"] for row in (*offers(), *catalogue.vultr_plans(), *catalogue.vultr_metal()))
