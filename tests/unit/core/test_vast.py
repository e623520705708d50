from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from gpuyard import market
from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    CreditError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    ThrottledError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers import rental
from gpuyard.providers.base import Query, State
from gpuyard.providers.http import Answer
from gpuyard.providers.vast import Vast, classify
from gpuyard.registry import Login

from .conftest import SSH_KEY, VAST_KEY, FakeTime, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin

LABEL = "gpuyard/miniprover-0/miniprover"


def ask(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "machine_id": 90 + number,
        "gpu_name": "RTX 4090",
        "num_gpus": 2,
        "gpu_ram": 24564,
        "cpu_cores": 64,
        "cpu_cores_effective": 16.0,
        "cpu_ram": 257000,
        "disk_space": 800.5,
        "dph_total": 0.40 + number / 1000,
        "storage_cost": 0.20,
        "storage_total_cost": 0.0056,
        "inet_up_cost": 0.01,
        "inet_down_cost": 0.02,
        "cuda_max_good": 12.8,
        "reliability2": 0.987,
        "geolocation": "Oslo, NO",
        **changes,
    }


def row(number: int = 7, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "label": LABEL,
        "actual_status": "running",
        "intended_status": "running",
        "cur_state": "running",
        "next_state": "running",
        "status_msg": "success, running",
        "ssh_host": "ssh5.vast.ai",
        "ssh_port": 12345,
        "image_runtype": "ssh_direc ssh_proxy",
        "public_ipaddr": "203.0.113.9\n",
        "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "20544"}]},
        "gpu_name": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram": 24564,
        "dph_total": 0.41,
        "is_bid": False,
        "start_date": 1790000000.5,
        "geolocation": "Oslo, NO",
        "machine_id": 97,
        **changes,
    }


# -- offers ------------------------------------------------------------------------------------------------------------


def test_an_offer_is_read_with_its_units(vast: Vast, service: Standin) -> None:
    service.on("POST", "/api/v0/bundles/", Reply({"offers": [ask(1)]}))
    [offer] = vast.offers(Query(market="on-demand", disk_gb=20))
    assert (offer.id, offer.gpu_name, offer.gpu_count, offer.gpu_ram_gb) == ("1", "RTX 4090", 2.0, 24.6)
    assert (offer.cpu_cores, offer.ram_gb, offer.disk_gb) == (16.0, 64.2, 800.5)  # a quarter of the machine's memory
    assert (offer.price_per_hour_usd, offer.disk_price_per_hour_usd) == (0.401, 0.0056)
    assert (offer.reliability, offer.cuda, offer.machine_id, offer.region) == (0.987, "12.8", "91", "Oslo, NO")
    assert (offer.traffic_price_per_gb_usd, offer.market, offer.emulated) == (0.02, "on-demand", False)


def test_an_offer_with_nulls_is_read(vast: Vast, service: Standin) -> None:
    nulls = dict.fromkeys(("cpu_cores", "geolocation", "cuda_max_good", "reliability2", "storage_total_cost"))
    service.on("POST", "/api/v0/bundles/", Reply({"offers": [ask(1, **nulls, gpu_frac=0.5)]}))
    [offer] = vast.offers(Query(market="on-demand", disk_gb=72))
    assert (offer.ram_gb, offer.region, offer.cuda, offer.reliability) == (128.5, "", None, None)
    assert offer.disk_price_per_hour_usd == pytest.approx(0.02)  # 72 GB at $0.20 a month of 720 h


def test_the_search_filters_only_what_loses_nothing(vast: Vast, service: Standin) -> None:
    service.on("POST", "/api/v0/bundles/", Reply({"offers": []}))
    vast.offers(
        Query(gpu_count=1, gpu_ram_gb=24, gpu_names=["A100"], disk_gb=50, cuda="12.4", regions=["NO"], market="any")
    )
    bodies = [request.body for request in service.seen]
    assert [body["type"] for body in bodies] == [*["on-demand"] * 3, *["bid"] * 3]
    assert bodies[0]["gpu_ram"] == {"gte": 24000}
    assert (bodies[0]["allocated_storage"], bodies[0]["limit"], bodies[0]["order"]) == (50, 64, [["dph_total", "asc"]])
    assert bodies[0]["rentable"] == bodies[0]["verified"] == {"eq": True}
    assert not {"cuda_max_good", "geolocation", "dph_total", "id"} & bodies[0].keys()
    assert bodies[0]["gpu_name"] == {"in": ["A100 SXM4", "A100 PCIE", "A100"]}
    assert "gpu_name" not in bodies[1] and "gpu_ram" in bodies[1]  # a spelling that we do not know
    assert "gpu_ram" not in bodies[2]  # the rest of a small market, so that the losers can be counted


def test_u4_the_search_is_by_reliability_count_and_name_ordered_by_price(vast: Vast, service: Standin) -> None:
    service.on("POST", "/api/v0/bundles/", Reply({"offers": [ask(1)]}))
    vast.offers(Query(gpu_count=2, gpu_names=["RTX_4090"], reliability=0.98, market="on-demand"))
    first, rest = (request.body for request in service.seen)
    assert (first["reliability2"], first["num_gpus"], first["gpu_name"], first["order"]) == (
        {"gte": 0.98},
        {"gte": 2.0},
        {"in": ["RTX 4090"]},
        [["dph_total", "asc"]],
    )
    assert "gpu_name" not in rest


def test_of_alternatives_the_least_is_searched_for(vast: Vast, service: Standin) -> None:
    service.on("POST", "/api/v0/bundles/", Reply({"offers": []}))
    names = [["H100"], ["RTX 6000 Ada"]]
    query = Query(gpu_ram_gb=80, compute_capability="9.0", gpu_names=names[0], market="on-demand")
    query = dataclasses.replace(query, alternatives=(dataclasses.replace(query, gpu_ram_gb=48, gpu_names=names[1]),))
    vast.offers(query)
    body = service.seen[0].body
    assert (body["gpu_ram"], body["compute_cap"]) == ({"gte": 48000}, {"gte": 900})
    assert body["gpu_name"]["in"][:4] == ["H100 SXM", "H100 PCIE", "H100 NVL", "RTX 6000Ada"]


def test_what_a_search_says_of_network_driver_and_place(vast: Vast, service: Standin) -> None:
    more = {"inet_up": 420, "inet_down": 610, "hosting_type": 1, "static_ip": False, "compute_cap": 890}
    service.on("POST", "/api/v0/bundles/", Reply({"offers": [ask(1, **more, driver_version="560.35.03")]}))
    [offer] = vast.offers(Query(market="on-demand"))
    assert (offer.internet_mbit_s, offer.data_center, offer.static_ip) == (420.0, True, False)
    assert (offer.compute_capability, offer.driver) == ("8.9", "560.35.03")


@pytest.mark.parametrize(("times", "most", "bid"), [(1.0, None, 0.1), (1.2, None, 0.12), (2.0, 0.15, 0.15)])
def test_a_bid_is_a_multiple_of_the_least_and_no_more_than_the_most(
    vast: Vast, service: Standin, times: float, most: float | None, bid: float
) -> None:
    reply = {"offers": [ask(1, min_bid=0.1, dph_total=0.11, storage_total_cost=0.01)]}
    service.on("POST", "/api/v0/bundles/", Reply(reply))
    [offer] = vast.offers(Query(market="interruptible", bid_times=times, bid_at_most_usd=most))
    assert (offer.least_bid_usd, offer.bid_usd, offer.price_per_hour_usd) == pytest.approx((0.1, bid, bid + 0.01))
    service.on("GET", "/api/v0/ssh/", Reply([{"public_key": SSH_KEY}]))
    [planned] = vast.plan_create(offer, a_spec())
    assert planned.body and planned.body["price"] == bid
    assert f"interruptible, bid ${bid:.4f} of at least $0.1000" in market.describe(offer)


def test_full_pages_are_continued_by_a_price_floor_and_deduplicated(vast: Vast, service: Standin) -> None:
    every = [ask(number) for number in range(150)]

    def search(request: Request) -> Reply:
        floor = request.body.get("dph_total", {}).get("gte", 0)
        return Reply({"offers": [offer for offer in every if offer["dph_total"] >= floor][:64]})

    service.on("POST", "/api/v0/bundles/", search)
    offers = vast.offers(Query(market="on-demand"))
    assert len(offers) == 150
    assert len(service.seen) == 3


def test_a_page_of_equal_prices_ends_the_paging(vast: Vast, service: Standin) -> None:
    service.on("POST", "/api/v0/bundles/", Reply({"offers": [ask(number, dph_total=0.5) for number in range(64)]}))
    assert len(vast.offers(Query(market="on-demand"))) == 64
    assert len(service.seen) == 2


def test_the_same_ask_is_two_offers_at_two_prices(vast: Vast, service: Standin) -> None:
    service.on(
        "POST",
        "/api/v0/bundles/",
        lambda request: Reply({"offers": [ask(1, dph_total=0.1 if request.body["type"] == "bid" else 0.4)]}),
    )
    assert [(offer.market, offer.price_per_hour_usd) for offer in vast.offers(Query())] == [
        ("on-demand", 0.4),
        ("interruptible", 0.1),
    ]


# -- create ------------------------------------------------------------------------------------------------------------


def with_key(service: Standin) -> None:
    held = {"id": 1, "public_key": " ".join(SSH_KEY.split()[:2]) + " other@comment"}
    service.on("GET", "/api/v0/ssh/", Reply([held]))


def test_a_create_says_everything_once(vast: Vast, service: Standin) -> None:
    with_key(service)
    service.on("PUT", "/api/v0/asks/4711/", Reply({"success": True, "new_contract": 7}))
    spec = a_spec(bootstrap="echo hello\n", environment={"A": "b"}, disk_gb=2)
    instance = vast.create(an_offer(), spec)
    [put] = service.calls("PUT")
    assert put.body == {
        "client_id": "me",
        "image": "vastai/pytorch:@vastai-automatic-tag",
        "env": {"A": "b", "GPUYARD_RUN": "miniprover-0"},
        "disk": 8.0,
        "label": LABEL,
        "onstart": "touch ~/.no_auto_tmux\n"
        "if [ -x /opt/gpuyard/start-again ]; then /opt/gpuyard/start-again & fi\necho hello\n",
        "runtype": "ssh_direc ssh_proxy",
        "target_state": "running",
        "cancel_unavail": True,
        "price": None,
    }
    assert (instance.id, instance.state, instance.ref) == ("7", State.PENDING, RunRef("miniprover-0", "miniprover"))
    assert not service.calls("POST")


def test_a_bid_is_without_the_disk_and_rounded_up(vast: Vast) -> None:
    offer = an_offer(market="interruptible", price_per_hour_usd=0.2100051, disk_price_per_hour_usd=0.01)
    calls_body = {call.method: call.body for call in _plan(vast, offer)}["PUT"]
    assert calls_body is not None
    assert calls_body["price"] == 0.2001
    exact = an_offer(market="interruptible", price_per_hour_usd=0.21, disk_price_per_hour_usd=0.01)
    assert (_plan(vast, exact)[-1].body or {})["price"] == 0.2
    assert (_plan(vast, exact, bid_per_hour_usd=0.5)[-1].body or {})["price"] == 0.5


def test_the_login_for_an_image_goes_with_the_create_and_shows_in_no_plan(vast: Vast, service: Standin) -> None:
    """E10, U11"""
    with_key(service)
    service.on("PUT", "/api/v0/asks/4711/", Reply({"success": True, "new_contract": 7}))
    spec = a_spec(image="ghcr.io/me/prover:1", image_login=Login("me", "canary-77", "ghcr.io"))
    vast.create(an_offer(), spec)
    [put] = service.calls("PUT")
    assert put.body and put.body["image_login"] == "-u me -p canary-77 ghcr.io"
    planned = vast.plan_create(an_offer(), spec)[-1].body or {}
    assert planned["image_login"] == "(the login of me at ghcr.io)"
    assert "canary-77" not in repr(spec)


def _plan(vast: Vast, offer: Any, **spec: Any) -> Any:
    vast._has_key = lambda public_key: True  # type: ignore[method-assign]
    return vast.plan_create(offer, a_spec(**spec))


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"success": False, "error": "not_found", "msg": "No SSH keys found for the user."}, 404),
        Reply([]),
        Reply([{"id": 3, "key": SSH_KEY, "deleted_at": "2026-01-01"}]),
    ],
)
def test_a_missing_ssh_key_is_added_first(vast: Vast, service: Standin, reply: Reply) -> None:
    service.on("GET", "/api/v0/ssh/", reply)
    service.on("POST", "/api/v0/ssh/", Reply({"success": True, "key": {"id": 4}}))
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    planned = vast.plan_create(an_offer(), a_spec())
    assert not service.calls("POST")
    vast.create(an_offer(), a_spec())
    made = [(request.method, service.url + request.path, request.body) for request in service.seen[2:]]
    assert made == [(call.method, call.url, call.body) for call in planned]


@pytest.mark.parametrize(
    ("environment", "bootstrap", "said"),
    [
        ({"A": "two words"}, "", "variable A"),
        ({"A": 'quo"te'}, "", "variable A"),
        ({"A": "x" * 33000}, "", "32768"),
        ({}, "#" * 4096, "4096"),
    ],
)
def test_what_vast_would_mangle_is_refused_before_the_create(
    vast: Vast, service: Standin, environment: dict[str, str], bootstrap: str, said: str
) -> None:
    with_key(service)
    with pytest.raises(UsageError, match=said):
        vast.create(an_offer(), a_spec(environment=environment, bootstrap=bootstrap))
    assert not service.calls("PUT")


@pytest.mark.parametrize("status", [410, 404, 400])
def test_a_gone_offer_is_no_capacity(vast: Vast, service: Standin, status: int) -> None:
    with_key(service)
    body = {"success": False, "error": "no_such_ask", "msg": "error 410/3907: no_such_ask", "ask_id": 4711}
    service.on("PUT", "/api/v0/asks/", Reply(body, status))
    with pytest.raises(NoCapacityError):
        vast.create(an_offer(), a_spec())
    assert len(service.calls("PUT")) == 1


@pytest.mark.parametrize("reply", [LOST, Reply("bad gateway", 502), Reply({"success": True})])
def test_a_lost_answer_adopts_the_instance_by_its_label(vast: Vast, service: Standin, reply: Reply) -> None:
    """It appears in the list only at the third look; other runs' instances and the run's old one are not taken."""
    with_key(service)
    others = [row(1, label="gpuyard/other-0/other"), row(2, label=None), row(3)]
    late = Reply({"instances": [*others, row(8, actual_status="loading")]})
    service.on("GET", "/api/v1/instances/", Reply({"instances": others}), Reply({"instances": None}), late)
    service.on("PUT", "/api/v0/asks/", reply)
    instance = vast.create(an_offer(), a_spec(known_ids=frozenset({"3"})))
    assert (instance.id, instance.state) == ("8", State.PENDING)
    assert len(service.calls("PUT")) == 1


def test_a_lost_answer_without_an_instance_is_an_error_and_no_second_create(
    vast: Vast, service: Standin, fake_time: FakeTime
) -> None:
    with_key(service)
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    service.on("PUT", "/api/v0/asks/", LOST)
    with pytest.raises(AmbiguousError, match="miniprover-0"):
        vast.create(an_offer(), a_spec())
    assert len(service.calls("PUT")) == 1
    assert 10 < len(service.calls("GET", "/api/v1/instances/")) < 20
    assert sum(fake_time.slept) == pytest.approx(rental.UNLISTED_S)


def test_a_lost_answer_and_a_list_that_fails_say_both(vast: Vast, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/api/v1/instances/", Reply("down", 503))
    service.on("PUT", "/api/v0/asks/", LOST)
    with pytest.raises(AmbiguousError, match=r"lost.*Looking for it failed too.*503"):
        vast.create(an_offer(), a_spec())
    assert len(service.calls("PUT")) == 1


def test_two_instances_after_a_lost_answer_are_both_named(vast: Vast, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(8), row(9)]}))
    service.on("PUT", "/api/v0/asks/", LOST)
    with pytest.raises(LeakError, match="8, 9"):
        vast.create(an_offer(), a_spec())


def test_an_error_that_rented_all_the_same_has_its_instance_destroyed(vast: Vast, service: Standin) -> None:
    with_key(service)
    refusal = {"success": False, "error": "invalid_price", "msg": "bid too low", "new_contract": 99}
    service.on("PUT", "/api/v0/asks/", Reply(refusal, 400))
    service.on("DELETE", "/api/v0/instances/99/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/99/", Reply({"instances": row(99)}), Reply({"instances": None}))
    with pytest.raises(NoCapacityError, match="bid too low"):
        vast.create(an_offer(), a_spec())
    assert len(service.calls("DELETE")) == 1
    assert len(service.calls("PUT")) == 1


def test_a_server_error_that_names_its_instance_is_not_ambiguous(vast: Vast, service: Standin) -> None:
    with_key(service)
    service.on("PUT", "/api/v0/asks/", Reply({"success": False, "msg": "hm", "new_contract": 99}, 500))
    service.on("DELETE", "/api/v0/instances/99/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/99/", Reply({"instances": None}))
    with pytest.raises(NoCapacityError):
        vast.create(an_offer(), a_spec())
    assert len(service.calls("DELETE")) == 1


def test_a_create_refused_for_its_frequency_looks_before_it_tries_again(
    vast: Vast, service: Standin, fake_time: FakeTime
) -> None:
    with_key(service)
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    service.on(
        "PUT", "/api/v0/asks/", Reply("API requests too frequent", 429), Reply({"success": True, "new_contract": 7})
    )
    assert vast.create(an_offer(), a_spec()).id == "7"
    methods = [request.method + " " + request.path for request in service.seen[1:]]
    looks = len(methods) - 2
    assert methods == ["PUT /api/v0/asks/4711/", *["GET /api/v1/instances/"] * looks, "PUT /api/v0/asks/4711/"]
    assert sum(fake_time.slept) == pytest.approx(rental.UNLISTED_S)


def test_a_create_that_stays_throttled_gives_up(vast: Vast, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    service.on("PUT", "/api/v0/asks/", Reply("API requests too frequent", 429))
    with pytest.raises(ThrottledError):
        vast.create(an_offer(), a_spec())


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}, AuthenticationError),
        (403, {"success": False, "error": "auth_error", "msg": "This action requires login."}, AuthenticationError),
        (401, {"msg": "Invalid user key"}, AuthenticationError),
        (404, {"msg": "Session expired. Please log in again."}, AuthenticationError),
        (400, {"success": False, "msg": "Your account lacks credit; see the billing page."}, CreditError),
        (200, {"success": False, "error": "insufficient_credit", "msg": ""}, CreditError),
        (411, {"success": False}, CreditError),
        (403, {"success": False, "error": "invalid_args", "msg": "hosts may not rent"}, InvalidRequestError),
        (404, {"success": False, "error": "no_such_instance", "msg": "no_such_instance"}, NotFoundError),
        (404, {"success": False, "msg": "Not found"}, NotFoundError),
        (410, {"success": False, "error": "deprecated_endpoint"}, InvalidRequestError),
        (200, {"success": False, "msg": "suspended"}, InvalidRequestError),
    ],
)
def test_what_an_error_means(status: int, body: dict[str, Any], kind: type[Exception]) -> None:
    error = classify(Answer(status, {}, body, f"{body.get('error', '')}: {body.get('msg', '')}"))
    assert type(error) is kind


# -- list, show --------------------------------------------------------------------------------------------------------


def test_the_list_is_read_over_all_pages(vast: Vast, service: Standin) -> None:
    every = [row(number) for number in range(60)]

    def page(request: Request) -> Reply:
        assert request.params["limit"] == "25"
        assert json.loads(request.params["order_by"]) == [{"col": "id", "dir": "asc"}]
        start = int(request.params.get("after_token", "0"))
        token = str(start + 25) if start + 25 < len(every) else None
        return Reply({"success": True, "instances": every[start : start + 25], "next_token": token})

    service.on("GET", "/api/v1/instances/", page)
    assert [instance.id for instance in vast.instances()] == [str(number) for number in range(60)]
    assert len(service.seen) == 3


def test_a_list_that_goes_in_circles_is_an_error(vast: Vast, service: Standin) -> None:
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row()], "next_token": "again"}))
    with pytest.raises(ProviderDownError, match="repeats"):
        vast.instances()


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"instances": None}),
        Reply({"instances": []}),
        Reply({"success": False, "error": "no_such_instance", "msg": "gone"}, 404),
    ],
)
def test_a_destroyed_instance_is_none(vast: Vast, service: Standin, reply: Reply) -> None:
    service.on("GET", "/api/v0/instances/7/", reply)
    assert vast.instance("7") is None


@pytest.mark.parametrize("reply", [Reply({"success": True}), Reply(None)])
def test_an_answer_about_nothing_is_not_a_destroyed_instance(vast: Vast, service: Standin, reply: Reply) -> None:
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/7/", reply)
    with pytest.raises(LeakError, match="7 could not be confirmed destroyed"):
        vast.destroy("7")


def test_a_wrong_key_is_not_a_destroyed_instance(vast: Vast, service: Standin) -> None:
    service.on("GET", "/api/v0/instances/7/", Reply({"error": "auth_error", "msg": "Invalid user key"}, 404))
    with pytest.raises(AuthenticationError):
        vast.instance("7")


def test_an_old_answer_with_a_list_is_read(vast: Vast, service: Standin) -> None:
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": [row(6), row(7)]}))
    instance = vast.instance("7")
    assert instance is not None
    assert (instance.id, instance.created_at, instance.ref) == (
        "7",
        1790000000.5,
        RunRef("miniprover-0", "miniprover"),
    )


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, ("203.0.113.9", 20544)),
        ({"ports": None}, ("ssh5.vast.ai", 12345)),
        ({"ports": {}, "image_runtype": "jupyter_proxy ssh_proxy"}, ("ssh5.vast.ai", 12346)),
        ({"public_ipaddr": None}, ("ssh5.vast.ai", 12345)),
        ({"ports": None, "ssh_host": None}, ("", 22)),
        ({"ports": None, "ssh_port": None}, ("", 22)),
    ],
)
def test_where_ssh_is(vast: Vast, service: Standin, changes: dict[str, Any], address: tuple[str, int]) -> None:
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row(**changes)}))
    instance = vast.instance("7")
    assert instance is not None
    assert (instance.ssh_host, instance.ssh_port) == address


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, State.RUNNING),
        ({"actual_status": None, "cur_state": None, "status_msg": None}, State.PENDING),
        ({"actual_status": "created"}, State.PENDING),
        ({"actual_status": "loading"}, State.PENDING),
        ({"actual_status": "rebooting"}, State.PENDING),
        ({"actual_status": "created", "status_msg": "OCI runtime create failed: x"}, State.FAILED),
        ({"actual_status": "loading", "status_msg": "manifest unknown"}, State.FAILED),
        ({"actual_status": "exited"}, State.UNKNOWN),
        ({"actual_status": "offline"}, State.UNKNOWN),
        # Stopped by the provider: whatever it says it intends.
        ({"cur_state": "stopped", "actual_status": "exited"}, State.PREEMPTED),
        ({"cur_state": "stopped", "intended_status": "stopped", "actual_status": "exited"}, State.PREEMPTED),
        # Stopped by us: the label says so.
        ({"cur_state": "stopped", "actual_status": "exited", "label": LABEL + "/stopped"}, State.STOPPED),
        ({"label": LABEL + "/stopped"}, State.RUNNING),
        # Somebody else's instance.
        ({"cur_state": "stopped", "intended_status": "stopped", "label": "mine"}, State.STOPPED),
        ({"cur_state": "stopped", "label": None}, State.PREEMPTED),
    ],
)
def test_states(vast: Vast, service: Standin, changes: dict[str, Any], state: State) -> None:
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row(**changes)}))
    instance = vast.instance("7")
    assert instance is not None
    assert instance.state is state


# -- actions -----------------------------------------------------------------------------------------------------------


def test_destroy_comes_back_when_it_is_confirmed(vast: Vast, service: Standin) -> None:
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row()}), Reply({"instances": None}))
    told: list[str] = []
    vast.destroy("7", progress=told.append)
    assert len(service.calls("GET")) == 2
    assert told == ["Vast.ai: instance 7 is gone."]
    assert [(call.method, call.url) for call in vast.plan_destroy("7")] == [
        ("DELETE", service.url + "/api/v0/instances/7/")
    ]


def test_destroying_what_is_gone_is_success(vast: Vast, service: Standin) -> None:
    gone = Reply({"success": False, "error": "no_such_instance", "msg": "no_such_instance"}, 404)
    service.on("DELETE", "/api/v0/instances/7/", gone)
    service.on("GET", "/api/v0/instances/7/", gone)
    vast.destroy("7")


def test_a_destroy_that_is_refused_or_without_effect_is_sent_again(vast: Vast, service: Standin) -> None:
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": False, "msg": "locked"}, 400), Reply({}))
    service.on(
        "GET",
        "/api/v0/instances/7/",
        lambda request: Reply({"instances": None if len(service.calls("DELETE")) >= 3 else row()}),
    )
    vast.destroy("7")
    assert len(service.calls("DELETE")) == 3


def test_a_destroy_that_is_never_confirmed_names_the_id_and_the_place(vast: Vast, service: Standin) -> None:
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": True}))
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row()}))
    with pytest.raises(LeakError, match=r"instance 7 .*still listed.*https://cloud\.vast\.ai") as caught:
        vast.destroy("7")
    assert caught.value.instance_id == "7"


def test_a_wrong_key_cannot_confirm_a_destroy(vast: Vast, service: Standin, fake_time: FakeTime) -> None:
    refused = Reply({"error": "auth_error", "msg": "Invalid user key"}, 404)
    service.on("DELETE", "/api/v0/instances/7/", refused)
    with pytest.raises(LeakError, match="Invalid user key") as caught:
        vast.destroy("7")
    assert fake_time.slept == []
    assert VAST_KEY not in str(caught.value)


def test_our_own_stop_is_marked_before_it_happens(vast: Vast, service: Standin) -> None:
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row()}))
    service.on("PUT", "/api/v0/instances/7/", Reply({"success": True}))
    vast.stop("7")
    vast.start("7")
    assert [request.body for request in service.calls("PUT")] == [
        {"label": LABEL + "/stopped"},
        {"state": "stopped"},
        {"label": LABEL},
        {"state": "running"},
    ]


def test_a_start_that_would_be_queued_is_taken_back(vast: Vast, service: Standin) -> None:
    """It would start, and bill, whenever the GPU is free again."""
    queued = Reply({"success": False, "msg": "Required resources are currently unavailable, state change queued."}, 200)
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row(label=LABEL + "/stopped")}))
    service.on("PUT", "/api/v0/instances/7/", Reply({"success": True}), queued, Reply({"success": True}))
    with pytest.raises(NoCapacityError):
        vast.start("7")
    assert service.calls("PUT")[-1].body == {"state": "stopped"}


def test_credit(vast: Vast, service: Standin) -> None:
    service.on("GET", "/api/v0/users/current", Reply({"id": 1, "credit": 12.5}), Reply({"id": 1}))
    assert vast.credit_usd() == 12.5
    assert vast.credit_usd() is None


def test_the_accounts_ssh_keys(vast: Vast, service: Standin) -> None:
    keys = [{"public_key": SSH_KEY}, {"key": "ssh-rsa AAAA old"}, {"key": "ssh-rsa BBBB", "deleted_at": "2026"}]
    service.on("GET", "/api/v0/ssh/", Reply(keys), Reply({"success": False, "msg": "No SSH keys found"}, 404))
    assert vast.ssh_keys() == [SSH_KEY, "ssh-rsa AAAA old"]
    assert vast.ssh_keys() == []


def test_the_key_is_not_in_its_repr(vast: Vast) -> None:
    assert VAST_KEY not in repr(vast) + repr(vars(vast))
