"""B1: offers and providers side by side."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpuyard import comparison, market
from gpuyard.errors import ProviderDownError
from gpuyard.providers.base import Offer, Provider, Query
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.ranking import Ranking, Speed


def offer(provider: str, offer_id: str, price: float, **values: Any) -> Offer:
    defaults: dict[str, Any] = {
        "gpu_name": "RTX 4090",
        "gpu_count": 1.0,
        "gpu_ram_gb": 24.0,
        "cpu_cores": 8.0,
        "ram_gb": 32.0,
        "disk_gb": 100.0,
        "region": "SE",
        "market": "on-demand",
    }
    return Offer(provider=provider, id=offer_id, price_per_hour_usd=price, **{**defaults, **values})


CLOUDS: list[Provider] = [Vast("k"), Vultr("k")]
MARKET = [
    offer("vast", "1", 0.40, dlperf=80.0, reliability=0.99),
    offer("vast", "1", 0.20, dlperf=80.0, reliability=0.99, market="interruptible"),
    offer("vast", "2", 0.90, gpu_count=2.0, dlperf=200.0, reliability=0.95),
    offer("vast", "3", 0.05, gpu_name="T4", gpu_ram_gb=16.0, dlperf=10.0, reliability=0.5),
    offer("vultr", "a@ewr", 0.60, gpu_count=0.5),
    offer("vultr", "b@ewr", 0.70, gpu_name="Z9"),
]


def compared(by: str = "price", query: Query | None = None, **problems: Exception) -> comparison.Comparison:
    query = query or Query(gpu_ram_gb=24)
    return comparison.compare(market.judge(MARKET, query), CLOUDS, problems, query, by=by)


def test_b1_an_offer_on_both_markets_is_one_row_with_both_prices() -> None:
    first = compared().rows[0]
    assert (first.offer.id, first.offer.market) == ("1", "interruptible")
    assert (first.on_demand, first.interruptible, first.per_gpu_hour) == (0.40, 0.20, 0.20)
    # Also where only one of them is wanted.
    wanted = compared(query=Query(gpu_ram_gb=24, market="on-demand"))
    first = wanted.rows[0]
    assert (first.offer.id, first.offer.market, first.interruptible) == ("1", "on-demand", 0.20)
    assert wanted.providers[0].interruptible == 0.20


def test_the_speed_of_another_cloud_is_the_median_of_the_same_gpu_and_says_so() -> None:
    rows = {row.offer.id: row for row in compared().rows}
    assert rows["2"].speed == Speed(200.0, "this machine")
    assert rows["a@ewr"].speed == Speed(45.0, "same GPU at Vast.ai")  # half of the median of 80 and 100
    assert rows["a@ewr"].per_speed == pytest.approx(0.60 / 45 * 100)
    assert rows["b@ewr"].speed is None and rows["b@ewr"].per_speed is None
    assert rows["b@ewr"].to_dict()["dlperf_from"] == "" and rows["a@ewr"].to_dict()["dlperf_from"].startswith("same")
    text = compared().render("table")
    assert "~1.3333" in text and "With ~ it is the median" in text


@pytest.mark.parametrize(
    ("by", "ids"),
    [
        ("price", ["1", "a@ewr", "b@ewr", "2"]),
        ("gpu_price", ["1", "2", "b@ewr", "a@ewr"]),
        ("value", ["1", "2", "a@ewr", "b@ewr"]),  # unknown comes last
        ("reliability", ["1", "2", "a@ewr", "b@ewr"]),
    ],
)
def test_the_order_is_what_was_asked_for(by: str, ids: list[str]) -> None:
    assert [row.offer.id for row in compared(by).rows] == ids


def test_each_condition_says_how_many_it_removed_and_a_silent_cloud_is_named() -> None:
    made = compared(vultr=ProviderDownError("Vultr answers with 503."))
    text = made.render("table")
    assert "gpu_ram_gb >= 24 removed 1 of 6 (best seen 16)." in text
    assert "Vultr could not be asked: Vultr answers with 503." in text
    assert made.to_dict()["unanswered"] == {"vultr": "Vultr answers with 503."}


def test_b1_providers_in_short() -> None:
    vast, vultr = compared().providers
    assert (vast.seen, vast.fitting, vast.on_demand, vast.interruptible) == (3, 2, 0.40, 0.20)
    assert vast.reliability == "0.950 to 0.990" and vultr.reliability == "not said"
    assert vultr.interruptible is None and "Ubuntu" in vultr.preinstalled and vultr.remark


def test_v18_the_report_as_markdown_and_json() -> None:
    page = compared().render("markdown")
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table[:6]} == {17}
    assert "- gpu_ram_gb: 24" in page and "## Providers" in page
    values = json.loads(compared().render("json"))
    assert [one["id"] for one in values["offers"]] == ["1", "a@ewr", "b@ewr", "2"]
    assert values["removed"][0]["condition"] == "gpu_ram_gb >= 24"


def test_nothing_that_fits_is_a_sentence_and_no_table() -> None:
    text = compared(query=Query(gpu_ram_gb=900)).render("table")
    assert "No offer fits. Of 6 offers seen" in text and "GPU memory" not in text
    assert "Nothing was rented" not in text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (offer("vast", "2", 0.50), "$0.1000 an hour dearer, +25%"),
        (offer("vast", "2", 0.40), "the same price, and less reliable (not said against 0.990)"),
        (offer("vast", "2", 0.40, reliability=0.99, gpu_ram_gb=12.0), "the same price, and less GPU memory"),
        (offer("vast", "2", 0.40, reliability=0.99), "the same in all that counts; the order of the names decides"),
    ],
)
def test_why_a_runner_up_lost(other: Offer, words: str) -> None:
    assert Ranking(Query(), []).why_behind(MARKET[0], other) == words
    assert market.rank([market.Verdict(other), market.Verdict(MARKET[0])])[0] is MARKET[0]
