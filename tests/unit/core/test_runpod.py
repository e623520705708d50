"""RunPod's client against the answers of its documentation, right ones and wrong ones (docs/reference/runpod.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    CreditError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    UnsupportedError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Login, Query, State
from gpuyard.providers.http import Answer, Patience
from gpuyard.providers.rental import Waits
from gpuyard.providers.runpod import IMAGE, RunPod, classify

from .conftest import SSH_KEY, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin

KEY = "canary-runpod-0b6f3c1e9d7a45528c21"
LABEL = "gpuyard/miniprover-0/miniprover"
OFFER = an_offer(
    provider="runpod",
    id="NVIDIA GeForce RTX 4090|SECURE|EU-RO-1|1|8|32|12.4",
    gpu_name="GeForce RTX 4090",
    region="EU-RO-1",
    price_per_hour_usd=0.6927,
)
FULL = "There are no longer any instances available with the requested specifications. Please refresh and try again."


@pytest.fixture
def cloud(service: Standin, patience: Patience, waits: Waits) -> RunPod:
    return RunPod(KEY, base_url=service.url, patience=patience, waits=waits)


def kind(**changes: Any) -> dict[str, Any]:
    return {
        "id": "NVIDIA GeForce RTX 4090",
        "memory": 24,
        "secure": True,
        "community": False,
        "price": {"secure": 0.69, "community": 0.34},
        "maxCount": {"secure": 8, "community": 8},
        "availability": "HIGH",
        "dataCenters": [{"id": "EU-RO-1", "availability": "LOW"}, {"id": "US-IL-1", "availability": "NONE"}],
        "cudaVersions": [{"version": "12.10", "available": True}, {"version": "12.4"}, {"version": "odd"}],
        **changes,
    }


def row(pod_id: str = "abc123", **changes: Any) -> dict[str, Any]:
    return {
        "id": pod_id,
        "name": LABEL,
        "status": "RUNNING",
        "env": {"GPUYARD_LABEL": LABEL, "PUBLIC_KEY": SSH_KEY},
        "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1},
        "cloud": "SECURE",
        "disk": 73,
        "dataCenterId": "EU-RO-1",
        "cost": 0.7,
        "ssh": {"proxy": {"host": "ssh.runpod.io"}, "direct": {"host": "203.0.113.7", "port": 10341}},
        "createdAt": "2026-11-22T05:00:00Z",
        **changes,
    }


def catalogue(service: Standin, *kinds: dict[str, Any]) -> None:
    service.on("GET", "/catalog/gpus", Reply({"gpus": [*kinds]}))


# -- offers ------------------------------------------------------------------------------------------------------------


def test_an_offer_is_so_many_gpus_in_a_data_centre_that_has_them(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind())
    [offer] = cloud.offers(Query(gpu_count=2, cpu_cores=16, ram_gb=50, disk_gb=73, cuda="12.4"))
    assert offer.id == "NVIDIA GeForce RTX 4090|SECURE|EU-RO-1|2|8|25|12.4"
    assert (offer.gpu_name, offer.gpu_count, offer.gpu_ram_gb, offer.region) == ("RTX 4090", 2, 24, "EU-RO-1")
    assert (offer.cpu_cores, offer.ram_gb, offer.cuda) == (16, 50, "12.10")
    assert offer.disk_price_per_hour_usd == pytest.approx(0.01)
    assert offer.price_per_hour_usd == pytest.approx(1.39)
    asked = [request.params for request in service.calls("GET", "/catalog/gpus")]
    assert [params["cloud"] for params in asked] == ["SECURE", "COMMUNITY"]
    assert all(params["count"] == "2" and params["include"] == "AVAILABILITY" for params in asked)


def test_each_alternative_that_has_to_be_ordered_otherwise_is_an_offer_of_its_own(
    cloud: RunPod, service: Standin
) -> None:
    service.on("GET", "/catalog/gpus", Reply({"gpus": [kind()]}))
    query = Query(gpu_count=1, cpu_cores=8)
    others = tuple(dataclasses.replace(query, **one) for one in ({"gpu_names": ("A40",)}, {"gpu_count": 2}))
    offers = cloud.offers(dataclasses.replace(query, alternatives=others))
    assert [(offer.gpu_count, offer.cpu_cores, offer.data_center) for offer in offers] == [(1, 8, True), (2, 8, True)]
    assert [request.params["count"] for request in service.seen] == ["1", "1", "2", "2"]


def test_the_flag_decides_and_not_the_price(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind(secure=False))
    assert cloud.offers(Query()) == []
    catalogue(service, kind(maxCount={"secure": 1}))
    assert cloud.offers(Query(gpu_count=2)) == []


def test_stock_without_a_data_centre_is_an_offer_anywhere(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind(dataCenters=[]), kind(id="NVIDIA L4", dataCenters=None, availability="NONE"))
    [offer] = cloud.offers(Query())
    assert offer.region == "" and "dataCenterIds" not in (cloud.plan_create(offer, a_spec())[0].body or {})


# -- create ------------------------------------------------------------------------------------------------------------


def test_a_create_says_everything_once(cloud: RunPod, service: Standin) -> None:
    service.on("POST", "/pods", Reply(row(status="PROVISIONING", ssh={"proxy": {}, "direct": None}, cost=0), 201))
    instance = cloud.create(OFFER, a_spec(disk_gb=72.5, environment={"A": "b"}))
    [post] = service.calls("POST")
    assert post.body == {
        "name": LABEL,
        "image": IMAGE,
        "gpu": {
            "id": "NVIDIA GeForce RTX 4090",
            "count": 1,
            "minRamPerGpu": 32,
            "minVcpuCountPerGpu": 8,
            "minCudaVersion": "12.4",
        },
        "cloud": "SECURE",
        "disk": 73,
        "ports": ["22/tcp"],
        "env": {"A": "b", "GPUYARD_LABEL": LABEL, "PUBLIC_KEY": SSH_KEY},
        "dataCenterIds": ["EU-RO-1"],
    }
    assert (instance.state, instance.ref) == (State.PENDING, RunRef("miniprover-0", "miniprover"))
    assert instance.price_per_hour_usd == 0.6927 and instance.idle_price_per_hour_usd == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"bootstrap": "#!/bin/sh"}, "RunPod runs no script at the first boot"),
        (
            {"image": "ghcr.io/a/b", "image_login": Login("ghcr.io", "me", "canary-login-1")},
            "pulls ghcr.io/a/b only with a",
        ),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_is_rented(
    cloud: RunPod, service: Standin, wanted: dict[str, Any], why: str
) -> None:
    with pytest.raises(UnsupportedError, match=why) as told:
        cloud.create(OFFER, a_spec(**wanted))
    assert not service.calls("POST") and "canary-login-1" not in str(told.value)


@pytest.mark.parametrize("reply", [LOST, Reply({"title": "x", "status": 500}, 500), Reply({}, 201)])
def test_a_lost_answer_adopts_the_pod_by_its_label(cloud: RunPod, service: Standin, reply: Reply) -> None:
    catalogue(service, kind())
    foreign = row("foreign", name="training", env={})
    service.on("GET", "/pods", Reply({"pods": [foreign]}), Reply({"pods": [foreign, row("ours")]}))
    service.on("POST", "/pods", reply)
    assert cloud.create(OFFER, a_spec()).id == "ours"
    assert len(service.calls("POST")) == 1


def test_a_lost_answer_without_a_pod_is_an_error(cloud: RunPod, service: Standin) -> None:
    service.on("GET", "/pods", Reply({"pods": []}))
    service.on("POST", "/pods", LOST)
    with pytest.raises(AmbiguousError, match=r"miniprover-0.*console\.runpod\.io"):
        cloud.create(OFFER, a_spec())
    assert len(service.calls("POST")) == 1


@pytest.mark.parametrize(
    ("status", "detail", "error"),
    [
        (400, FULL, NoCapacityError),
        (400, "There are not enough free GPUs on the host machine to start this pod.", NoCapacityError),
        (400, "network volume not found", InvalidRequestError),
        (401, "", AuthenticationError),
        (402, "insufficient balance", CreditError),
        (404, "resource not found", NotFoundError),
        (422, "validation failed", InvalidRequestError),
    ],
)
def test_what_an_error_means(status: int, detail: str, error: type[Exception]) -> None:
    body = {"title": "Title", "status": status, "detail": detail}
    assert type(classify(Answer(status, {}, body, ""))) is error


def test_what_is_wrong_with_a_request_is_told() -> None:
    body = {"title": "x", "detail": "validation failed", "errors": ["$: additional properties 'x' not allowed"]}
    assert str(classify(Answer(422, {}, body, ""))) == (
        "RunPod refused: validation failed: $: additional properties 'x' not allowed"
    )


# -- instances ---------------------------------------------------------------------------------------------------------


def test_a_pod_is_shown_with_its_direct_address_and_without_its_key(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind())
    service.on("GET", "/pods/abc123", Reply(row()))
    instance = cloud.instance("abc123")
    assert instance is not None
    assert (instance.ssh_host, instance.ssh_port, instance.ssh_user) == ("203.0.113.7", 10341, "root")
    assert (instance.gpu_name, instance.gpu_count, instance.gpu_ram_gb) == ("RTX 4090", 1, 24)
    assert (instance.price_per_hour_usd, instance.created_at, instance.region) == (0.7, 1795323600.0, "EU-RO-1")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"status": "PROVISIONING"}, State.PENDING),
        ({"status": "STARTING"}, State.PENDING),
        ({"ssh": None}, State.PENDING),
        ({"ssh": {"proxy": {"host": "ssh.runpod.io", "port": 22}, "direct": None}}, State.PENDING),
        ({}, State.RUNNING),
        ({"status": "EXITED", "cost": 0}, State.PREEMPTED),
        ({"status": "ERROR"}, State.FAILED),
        ({"status": "OF_A_NEW_KIND"}, State.UNKNOWN),
    ],
)
def test_states(cloud: RunPod, service: Standin, changes: dict[str, Any], state: State) -> None:
    catalogue(service, kind())
    service.on("GET", "/pods/abc123", Reply(row(**changes)))
    instance = cloud.instance("abc123")
    assert instance is not None and instance.state is state


def test_what_a_stopped_pod_costs_is_its_disk(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind())
    service.on("GET", "/pods/abc123", Reply(row(status="EXITED", cost=0)))
    instance = cloud.instance("abc123")
    assert instance is not None and instance.cost_now_per_hour_usd == pytest.approx(0.01)
    assert instance.price_per_hour_usd == pytest.approx(0.70)


@pytest.mark.parametrize("paged", [True, False])
def test_lists_are_read_with_pages_and_without(cloud: RunPod, service: Standin, paged: bool) -> None:
    def pods(request: Request) -> Reply:
        if not paged:
            return Reply([row("a"), row("b"), row("ended", status="TERMINATED")])
        second = request.params.get("cursor") == "a"
        more = {"nextCursor": None if second else "a", "hasNextPage": not second}
        return Reply({"pods": [row("b" if second else "a")], "pagination": more})

    catalogue(service, kind())
    service.on("GET", "/pods", pods)
    assert [instance.id for instance in cloud.instances()] == ["a", "b"]
    assert len(service.calls("GET", "/catalog/gpus")) == 1


def test_a_list_that_goes_in_circles_is_an_error(cloud: RunPod, service: Standin) -> None:
    service.on("GET", "/pods", Reply({"pods": [], "pagination": {"nextCursor": "x", "hasNextPage": True}}))
    with pytest.raises(ProviderDownError, match="repeats"):
        cloud.instances()


def test_destroy_comes_back_at_the_404(cloud: RunPod, service: Standin) -> None:
    catalogue(service, kind())
    service.on("DELETE", "/pods/abc123", Reply(None, 204))
    service.on("GET", "/pods/abc123", Reply(row()), Reply({"title": "x", "detail": "resource not found"}, 404))
    cloud.destroy("abc123")
    assert len(service.calls("DELETE")) == 1


def test_a_destroy_that_cannot_be_confirmed_names_the_id(cloud: RunPod, service: Standin) -> None:
    service.on("DELETE", "/pods/abc123", Reply(None, 204))
    service.on("GET", "/pods/abc123", Reply({"title": "down"}, 503))
    with pytest.raises(LeakError, match=r"instance abc123 .*503.*console\.runpod\.io") as caught:
        cloud.destroy("abc123")
    assert (caught.value.instance_id, KEY in str(caught.value)) == ("abc123", False)


def test_an_empty_answer_about_a_pod_is_no_proof_of_its_end(cloud: RunPod, service: Standin) -> None:
    service.on("GET", "/pods/abc123", Reply({}))
    with pytest.raises(ProviderDownError, match="holds none"):
        cloud.instance("abc123")
