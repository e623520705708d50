from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuyard import geography, gpus, market, ranking
from gpuyard.errors import AuthenticationError, NoOfferError, ProviderDownError, UsageError
from gpuyard.providers.base import Offer, Query
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.sandbox import catalogue

from .conftest import an_offer
from .standin import Reply, Standin


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("NVIDIA_A16", "A16"),
        ("A16", "A16"),
        ("NVIDIA_A100", "A100"),
        ("A100 SXM4", "A100 SXM4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("RTX 6000Ada", "RTX 6000 Ada"),
        ("RTX_6000_Ada", "RTX 6000 Ada"),
        ("RTX A6000", "RTX A6000"),
        ("  H100   NVL ", "H100 NVL"),
        ("", ""),
    ],
)
def test_gpu_names_are_spelled_alike(raw: str, normal: str) -> None:
    assert gpus.normalise(raw) == normal
    assert gpus.normalise(normal) == normal


@pytest.mark.parametrize(
    ("wanted", "offered", "is_one"),
    [
        ("A100", "A100 SXM4", True),
        ("nvidia_a100", "A100 PCIE", True),
        ("A100 SXM4", "A100", False),
        ("L40", "L40S", False),
        ("RTX 4090", "RTX 4090D", False),
        ("RTX 4090", "rtx_4090", True),
        ("RTX_4090", "RTX 4090", True),
        ("RTX", "RTX 3060", False),
        ("4090", "RTX 4090", False),
        ("RTX 6000", "RTX 6000 Ada", False),
        ("RTX 2080", "RTX 2080 Ti", False),
        ("RTX PRO 6000", "RTX PRO 6000 WS", True),
        ("H100", "H100 NVL", True),
        ("A100-SXM4-80 GB", "A100 80GB SXM4", True),
        ("A100 PCIE", "A100 SXM4", False),
        ("Titan RTX", "Titan RTX", True),
        ("", "A16", False),
        ("A16", "", False),
    ],
)
def test_which_gpu_is_which(wanted: str, offered: str, is_one: bool) -> None:
    assert gpus.matches(wanted, offered) is is_one


def test_a_piece_of_a_name_is_refused_with_the_names_there_are() -> None:
    offers = [an_offer(gpu_name="RTX 3060"), an_offer(gpu_name="A16"), an_offer(gpu_name="Titan RTX")]
    market.check_gpu_names(["H900", "A16", "Titan_RTX"], offers)
    with pytest.raises(UsageError, match=r"gpu_name='RTX' is no GPU model; .*: A16, RTX 3060, Titan RTX\."):
        market.check_gpu_names(["A16", "RTX"], offers)


def ids(offers: list[Offer]) -> list[str]:
    return [offer.id for offer in offers]


@pytest.mark.parametrize(
    ("query", "good", "bad"),
    [
        ({"gpu_count": 2}, {"gpu_count": 2.0}, {"gpu_count": 1.0}),
        ({"gpu_ram_gb": 24}, {"gpu_ram_gb": 24.0}, {"gpu_ram_gb": 16.0}),
        ({"gpu_names": ["A16", "RTX 4090"]}, {"gpu_name": "RTX 4090"}, {"gpu_name": "L40S"}),
        ({"cpu_cores": 8}, {"cpu_cores": 8.0}, {"cpu_cores": 7.9}),
        ({"ram_gb": 32}, {"ram_gb": 32.0}, {"ram_gb": 31.0}),
        ({"disk_gb": 200}, {"disk_gb": 200.0}, {"disk_gb": 100.0}),
        ({"cuda": "12.4"}, {"cuda": "12.10"}, {"cuda": "12.3"}),
        ({"reliability": 0.98}, {"reliability": 0.99}, {"reliability": 0.97}),
        ({"regions": ["NO"]}, {"region": "Oslo, NO"}, {"region": "Nowhere, US"}),
        ({"regions": ["ewr"]}, {"region": "ewr"}, {"region": "fra"}),
        ({"market": "on-demand"}, {"market": "on-demand"}, {"market": "interruptible"}),
        ({"max_price_per_hour_usd": 0.4}, {"price_per_hour_usd": 0.4}, {"price_per_hour_usd": 0.41}),
    ],
)
def test_every_condition_is_applied(query: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]) -> None:
    verdicts = market.judge([an_offer(id="good", **good), an_offer(id="bad", **bad)], Query(**query))
    assert [(verdict.offer.id, verdict.fits) for verdict in verdicts] == [("good", True), ("bad", False)]
    [reason] = verdicts[1].reasons
    assert reason.condition.startswith(next(iter(query)).removesuffix("_usd"))


@pytest.mark.parametrize("query", [{"cuda": "12.4"}, {"reliability": 0.99}])
def test_what_a_provider_does_not_publish_does_not_count_against_it(query: dict[str, Any]) -> None:
    [verdict] = market.judge([an_offer(cuda=None, reliability=None)], Query(**query))
    assert verdict.fits


def test_a_slice_is_one_gpu_of_its_memory() -> None:
    half = an_offer(gpu_count=0.5, gpu_ram_gb=40.0)
    assert market.judge([half], Query(gpu_count=1, gpu_ram_gb=40))[0].fits
    assert not market.judge([half], Query(gpu_count=2))[0].fits
    assert not market.judge([half], Query(gpu_count=1, gpu_ram_gb=80))[0].fits


def test_a_machine_to_avoid_is_avoided() -> None:
    offers = [an_offer(id="lost", machine_id="97"), an_offer(id="other", machine_id="98"), an_offer(id="unnamed")]
    assert ids(market.choose(offers, Query(), avoid_machines=["97", ""])) == ["other", "unnamed"]


def test_the_order_is_price_then_reliability_then_memory() -> None:
    offers = [
        an_offer(id="dear", price_per_hour_usd=0.5),
        an_offer(id="shaky", reliability=0.9),
        an_offer(id="small", reliability=0.99, gpu_ram_gb=16.0),
        an_offer(id="best", reliability=0.99, gpu_ram_gb=48.0, price_per_hour_usd=0.40000001),
    ]
    expected = ["best", "small", "shaky", "dear"]
    assert ids(market.choose(offers, Query())) == expected
    assert ids(market.choose(offers[::-1], Query())) == expected


def test_the_explanation_names_the_winner_and_what_every_condition_removed() -> None:
    offers = [
        an_offer(id="a", gpu_ram_gb=8.0, price_per_hour_usd=0.1),
        an_offer(id="b", gpu_ram_gb=16.0, price_per_hour_usd=0.2),
        an_offer(id="c", price_per_hour_usd=0.4, emulated=True),
        an_offer(id="d", price_per_hour_usd=0.5),
        an_offer(id="e", price_per_hour_usd=3.0),
    ]
    lines = market.explain(market.judge(offers, Query(gpu_ram_gb=24, max_price_per_hour_usd=1)))
    assert lines == [
        "Taking vast c (emulated): 1 x RTX 4090 24.6 GB, 8 cores, 32 GB RAM, Oslo, NO, $0.4000/h: "
        "the cheapest of 2 that fit.",
        "Next would be vast d: 1 x RTX 4090 24.6 GB, 8 cores, 32 GB RAM, Oslo, NO, $0.5000/h (+25%).",
        "gpu_ram_gb >= 24 removed 2 of 5 (best seen 16).",
        "max_price_per_hour <= 1 removed 1 of 5 (best seen 3).",
    ]


def test_equal_prices_and_a_single_fit_have_their_own_words() -> None:
    two = market.explain(market.judge([an_offer(id="a"), an_offer(id="b")], Query()))
    assert two[0].endswith("$0.4000/h: the best of 2 that fit, at the lowest price.")
    assert two[1].endswith("(at the same price).")
    one = market.explain(market.judge([an_offer(id="a"), an_offer(id="b", gpu_ram_gb=1.0)], Query(gpu_ram_gb=2)))
    assert one[0].endswith("$0.4000/h: the only one of 2 offers that fits.")
    with pytest.raises(NoOfferError):
        market.explain(market.judge([an_offer()], Query(gpu_ram_gb=80)))


def test_nothing_fits_says_which_condition_removed_how_many() -> None:
    offers = [an_offer(id="a", gpu_name="A16"), an_offer(id="b", gpu_name="L40S", price_per_hour_usd=2.0)]
    query = Query(gpu_names=["H100"], max_price_per_hour_usd=0.1)
    with pytest.raises(NoOfferError) as caught:
        market.choose(offers, query)
    assert str(caught.value) == (
        "No offer fits. Of 2 offers seen (vast), gpu_names = H100 removed 2 of 2 (best seen A16, L40S); "
        "max_price_per_hour <= 0.1 removed 2 of 2 (best seen 0.4). Nearest miss: vast a: 1 x A16 24.6 GB, 8 cores, "
        "32 GB RAM, Oslo, NO, $0.4000/h: gpu_names = H100, has A16; max_price_per_hour <= 0.1, has 0.4. "
        "Nothing was rented."
    )


def test_an_empty_market_is_said_to_be_empty() -> None:
    with pytest.raises(NoOfferError, match="nothing for rent at all"):
        market.choose([], Query())


@pytest.mark.parametrize(("count", "shown"), [(1.0, "1"), (8.0, "8"), (0.125, "1/8"), (0.5, "1/2")])
def test_counts_are_written_as_people_do(count: float, shown: str) -> None:
    assert market.count_of(count) == shown


def bundles(service: Standin, reply: Reply) -> None:
    service.on("POST", "/api/v0/bundles/", reply)


@pytest.mark.parametrize("working", [True, False])
def test_one_cloud_that_fails_does_not_hide_the_other(
    vast: Vast, vultr: Vultr, service: Standin, working: bool
) -> None:
    bundles(service, Reply({"offers": [{"id": 1, "dph_total": 0.4}]} if working else "down", 200 if working else 503))
    service.on("GET", "/plans", Reply({"error": "Invalid API token."}, 401))
    told: list[str] = []
    collect: Callable[[], market.Collected] = lambda: market.collect([vast, vultr], Query(), progress=told.append)  # noqa: E731
    if not working:
        with pytest.raises(ProviderDownError):
            collect()
        return
    found = collect()
    assert ids(found.offers) == ["1", "1"]
    assert isinstance(found.problems["vultr"], AuthenticationError)
    assert told == ["Vast.ai: 2 offers.", "Vultr cannot be asked: Vultr refused: Invalid API token."]


def test_no_cloud_no_offers() -> None:
    assert market.collect([], Query()).offers == []


# -- further conditions, alternatives, preference --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "good", "bad"),
    [
        ({"most_gpu_ram_gb": 48}, {"gpu_ram_gb": 48.0}, {"gpu_ram_gb": 80.0}),
        ({"driver": "535.86"}, {"driver": "535.86.05"}, {"driver": "535.85"}),
        ({"compute_capability": "8.9"}, {"compute_capability": "12.0"}, {"compute_capability": "8.6"}),
        ({"compute_capability": "8.9"}, {"gpu_name": "RTX 4090"}, {"gpu_name": "A100 SXM4"}),
        ({"internet_mbit_s": 500}, {"internet_mbit_s": 500.0}, {"internet_mbit_s": 499.0}),
        ({"static_ip": True}, {"static_ip": True}, {"static_ip": False}),
        ({"data_center": True}, {"data_center": True}, {"data_center": False}),
        ({"countries": ["se", "NO"]}, {"region": "Oslo, NO"}, {"region": "Texas, US"}),
        ({"countries": ["US"]}, {"provider": "vultr", "region": "ewr"}, {"provider": "runpod", "region": "EU-RO-1"}),
        ({"countries": ["US"]}, {"region": "Texas, US"}, {"region": "Atlantis"}),  # no place is known to be in it
        ({"bid_at_most_usd": 0.2}, {"least_bid_usd": 0.2}, {"least_bid_usd": 0.21}),
        ({"bid_at_most_usd": 0.2}, {"least_bid_usd": None}, {"least_bid_usd": 0.3}),
    ],
)
def test_further_conditions(query: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]) -> None:
    verdicts = market.judge([an_offer(id="good", **good), an_offer(id="bad", **bad)], Query(**query))
    assert [(verdict.offer.id, verdict.fits) for verdict in verdicts] == [("good", True), ("bad", False)]
    [removal] = market.removals(verdicts)
    assert (removal.removed, removal.total) == (1, 2)
    assert removal.best_seen


@pytest.mark.parametrize(
    "query",
    [
        {"driver": "535.86"},
        {"compute_capability": "8.0"},
        {"internet_mbit_s": 100},
        {"static_ip": True},
        {"data_center": True},
    ],
)
def test_further_conditions_let_pass_what_is_not_published(query: dict[str, Any]) -> None:
    assert market.judge([an_offer(gpu_name="Nobody's 1")], Query(**query))[0].fits


def test_v4_the_next_choice_comes_after_all_of_the_first() -> None:
    wanted = Query(gpu_ram_gb=40, alternatives=(Query(gpu_ram_gb=32),))
    offers = [
        an_offer(id="small", gpu_ram_gb=24.0, price_per_hour_usd=0.1),
        an_offer(id="next", gpu_ram_gb=32.0, price_per_hour_usd=0.2),
        an_offer(id="large", gpu_ram_gb=48.0, price_per_hour_usd=0.9),
        an_offer(id="larger", gpu_ram_gb=80.0, price_per_hour_usd=0.8),
    ]
    assert ids(market.choose(offers, wanted)) == ["larger", "large", "next"]
    verdicts = market.judge(offers, wanted)
    assert [(verdict.offer.id, verdict.choice) for verdict in verdicts if verdict.fits] == [
        ("next", 1),
        ("large", 0),
        ("larger", 0),
    ]
    assert [str(removal) for removal in market.removals(verdicts)] == ["gpu_ram_gb >= 32 removed 1 of 4 (best seen 24)"]
    ranked = market.rank(verdicts, wanted)
    assert market.runners_up(ranked, wanted, verdicts) == [
        "2. vast large, on-demand, lost: $0.1000 an hour dearer, +12%.",
        "3. vast next, on-demand, lost: it is alternative 1 only.",
    ]
    assert "it is the first choice of 2" in market.explain(verdicts, wanted)[0]


def test_the_price_counts_with_the_workloads_own_traffic() -> None:
    offers = [
        an_offer(id="cheap, dear traffic", price_per_hour_usd=0.40, traffic_price_per_gb_usd=0.02),
        an_offer(id="free traffic", price_per_hour_usd=0.45),
    ]
    assert market.choose(offers, Query())[0].id == "cheap, dear traffic"
    much = Query(traffic_gb_per_hour=10.0)
    assert market.choose(offers, much)[0].id == "free traffic"
    ranked = market.choose(offers, much)
    assert market.runners_up(ranked, much) == [
        "2. vast cheap, dear traffic, on-demand, lost: $0.1500 an hour dearer, +33%."
    ]


def test_value_is_the_price_of_what_the_gpus_do() -> None:
    offers = [
        an_offer(id="slow", price_per_hour_usd=0.3, dlperf=30.0),
        an_offer(id="fast", price_per_hour_usd=0.5, dlperf=100.0),
        an_offer(id="by its data sheet", gpu_name="H100 SXM", price_per_hour_usd=1.2),
        an_offer(id="unknown", gpu_name="Z9", price_per_hour_usd=0.01),
    ]
    query = Query(rank="value")
    ranked = market.choose(offers, query)
    # 65 DLPerf for the RTX 4090 of the market, whose data sheet has 165 to the H100's 989: 390 DLPerf.
    assert ids(ranked) == ["by its data sheet", "fast", "slow", "unknown"]
    assert market.runners_up(ranked, query, market.judge(offers, query))[0].endswith(
        "lost: $0.5000 for an hour of 100 DLPerf, against $0.3080."
    )


def test_v3_regions_count_in_their_order_and_distance_from_the_bucket() -> None:
    offers = [
        an_offer(provider="vultr", id="lax", region="lax", price_per_hour_usd=0.1),
        an_offer(provider="vultr", id="sea", region="sea", price_per_hour_usd=0.2),
        an_offer(provider="vultr", id="sjc", region="sjc", price_per_hour_usd=0.3),
        an_offer(id="unknown", region="Atlantis", price_per_hour_usd=0.01),
    ]
    by_order = Query(regions=("sjc", "sea", "lax"), rank="regions")
    assert ids(market.choose(offers, by_order)) == ["sjc", "sea", "lax"]
    near = geography.spot_of_bucket("auto", "https://sjc1.vultrobjects.com")
    by_distance = Query(rank="distance", near=near)
    ranked = market.choose(offers, by_distance)
    assert ids(ranked) == ["sjc", "lax", "sea", "unknown"]
    assert [line.partition("lost: ")[2] for line in market.runners_up(ranked, by_distance)] == [
        "493 km from the bucket, against 0 km.",
        "1,112 km from the bucket, against 0 km.",
        "it is not known where it is.",
    ]


def test_an_order_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="rank=distance needs a bucket whose place is known"):
        ranking.grounded(Query(rank="distance"), near=None)
    with pytest.raises(UsageError, match="rank=regions needs regions"):
        ranking.grounded(Query(rank="regions"), near=None)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"gpu_ram_gb": 80.0, "most_gpu_ram_gb": 40.0}, "gpu_ram_gb=80 is above most_gpu_ram_gb=40"),
        ({"driver": "new"}, "driver='new' must be a version"),
        ({"compute_capability": "x"}, "compute_capability='x' must be a version"),
        ({"countries": ["Sweden"]}, "countries='Sweden' must be a country of two letters"),
    ],
)
def test_conditions_that_cannot_be_are_refused(conditions: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        market.check_conditions(conditions)


@pytest.mark.parametrize(
    ("region", "endpoint", "country"),
    [
        ("", "https://s3.us-west-004.backblazeb2.com", "US"),
        ("auto", "https://ams1.vultrobjects.com:443/x", "NL"),
        ("eu-central-1", "", "DE"),
        ("auto", "https://0123.r2.cloudflarestorage.com", None),
    ],
)
def test_where_a_bucket_lies(region: str, endpoint: str, country: str | None) -> None:
    place = geography.spot_of_bucket(region, endpoint)
    assert (place.country if place else None) == country


def test_a_market_of_many_is_the_same_for_the_same_seed_and_ranked_once() -> None:
    rows = [
        catalogue.vast_offer(one, listing=1, rentable=True, bid=False, storage_gb=50, now=0.0)
        for one in catalogue.vast_market(2000, 7)
    ]
    assert rows == [
        catalogue.vast_offer(one, listing=1, rentable=True, bid=False, storage_gb=50, now=0.0)
        for one in catalogue.vast_market(2000, 7)
    ]
    query = Query(gpu_ram_gb=24, reliability=0.95, disk_gb=50)
    offers = [Vast("k")._offer(row, "on-demand", query) for row in rows]
    assert len({offer.machine_id for offer in offers}) == 2000
    verdicts = market.judge(offers, query)
    fitting = [one for one in offers if one.gpu_ram_gb >= 24 and (one.reliability or 0) >= 0.95 and one.disk_gb >= 50]
    assert {offer.id for offer in market.rank(verdicts, query)} == {offer.id for offer in fitting}
    assert sum(removal.removed for removal in market.removals(verdicts)) == sum(
        (one.gpu_ram_gb < 24) + ((one.reliability or 0) < 0.95) + (one.disk_gb < 50) for one in offers
    )
