"""Lambda's client against the answers of its documentation, right ones and wrong ones (docs/reference/lambda.md)."""

from __future__ import annotations

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
from gpuyard.providers.base import Query, State
from gpuyard.providers.http import Answer, Patience
from gpuyard.providers.lambda_cloud import Lambda, classify
from gpuyard.providers.rental import Waits

from .conftest import SSH_KEY, a_spec, an_offer
from .standin import LOST, Reply, Standin

KEY = "canary-lambda-5a2e90b7c44d41f08f3b"
REF = RunRef("miniprover-0", "miniprover")
TAGS = [
    {"key": "gpuyard", "value": "true"},
    {"key": "run", "value": "miniprover-0"},
    {"key": "workload", "value": "miniprover"},
]
OFFER = an_offer(provider="lambda", id="gpu_1x_a10@us-east-1", region="us-east-1", price_per_hour_usd=0.75)


@pytest.fixture
def cloud(service: Standin, patience: Patience, waits: Waits) -> Lambda:
    return Lambda(KEY, base_url=service.url, patience=patience, waits=waits)


def kind(name: str = "gpu_1x_a10", said: str = "A10 (24 GB PCIe)", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"1x {said}",
        "gpu_description": said,
        "price_cents_per_hour": 75,
        "architecture": "x86_64",
        "specs": {"vcpus": 30, "memory_gib": 200, "storage_gib": 1400, "gpus": 1},
        **changes,
    }


def row(instance_id: str = "ab" * 16, **changes: Any) -> dict[str, Any]:
    return {
        "id": instance_id,
        "name": "gpuyard/miniprover-0/miniprover",
        "ip": "203.0.113.7",
        "status": "active",
        "ssh_key_names": ["k"],
        "file_system_names": [],
        "region": {"name": "us-east-1", "description": "Virginia, USA"},
        "instance_type": kind(),
        "jupyter_token": "canary-jupyter-1",
        "tags": TAGS,
        **changes,
    }


def types(service: Standin, *kinds: dict[str, Any], regions: tuple[str, ...] = ("us-east-1",)) -> None:
    where = [{"name": name, "description": name} for name in regions]
    data = {one["name"]: {"instance_type": one, "regions_with_capacity_available": where} for one in kinds}
    service.on("GET", "/instance-types", Reply({"data": data}))


def with_key(service: Standin) -> None:
    held = {"id": "1", "name": "mine", "public_key": " ".join(SSH_KEY.split()[:2]) + " me@here\n"}
    service.on("GET", "/ssh-keys", Reply({"data": [{"id": "0", "name": "old", "public_key": "ssh-rsa AAAA x"}, held]}))


def refusal(status: int, code: str, message: str = "No.") -> Reply:
    return Reply({"error": {"code": code, "message": message}}, status)


# -- offers ------------------------------------------------------------------------------------------------------------


def test_an_offer_is_a_type_in_a_region_with_capacity(cloud: Lambda, service: Standin) -> None:
    types(service, kind(), regions=("us-east-1", "us-west-1"))
    first, second = cloud.offers(Query())
    assert (first.id, second.region) == ("gpu_1x_a10@us-east-1", "us-west-1")
    assert (first.gpu_name, first.gpu_count, first.gpu_ram_gb, first.price_per_hour_usd) == ("A10 PCIe", 1, 24, 0.75)
    assert (first.cpu_cores, first.ram_gb, first.disk_gb, first.market) == (30, 200, 1400, "on-demand")


@pytest.mark.parametrize(
    ("said", "name", "ram_gb"),
    [
        ("H100 (80 GB SXM5)", "H100 SXM5", 80),
        ("RTX 6000 (24 GB)", "RTX 6000", 24),
        ("GPU of a new kind", "GPU of a new kind", 0),
    ],
)
def test_the_memory_stands_in_words_only(cloud: Lambda, service: Standin, said: str, name: str, ram_gb: float) -> None:
    types(service, kind(said=said))
    [offer] = cloud.offers(Query())
    assert (offer.gpu_name, offer.gpu_ram_gb) == (name, ram_gb)


def test_what_is_sold_out_has_no_gpu_or_an_arm_processor_is_no_offer(cloud: Lambda, service: Standin) -> None:
    types(service, kind(), regions=())
    assert cloud.offers(Query()) == []
    cpu = kind("cpu_4x_general", "N/A", specs={"vcpus": 4, "gpus": 0})
    unnamed = kind("gpu_1x_gh200", "GH200 (96 GB)")
    del unnamed["architecture"]
    types(service, cpu, kind("gpu_1x_new", architecture="arm64"), unnamed)
    assert cloud.offers(Query()) == []


# -- create ------------------------------------------------------------------------------------------------------------


def test_a_launch_says_everything_once(cloud: Lambda, service: Standin) -> None:
    """V1, X3: the run stands in the tags and in the name before anything is rented."""
    with_key(service)
    service.on("POST", "/instance-operations/launch", Reply({"data": {"instance_ids": ["ab" * 16]}}))
    instance = cloud.create(OFFER, a_spec(bootstrap="#!/bin/sh\n"))
    [post] = service.calls("POST")
    assert post.body == {
        "region_name": "us-east-1",
        "instance_type_name": "gpu_1x_a10",
        "ssh_key_names": ["mine"],
        "name": "gpuyard/miniprover-0/miniprover",
        "tags": TAGS,
        "user_data": "#!/bin/sh\n",
    }
    assert (instance.id, instance.state, instance.ssh_user, instance.ref) == ("ab" * 16, State.PENDING, "ubuntu", REF)
    assert [call.body for call in cloud.plan_create(OFFER, a_spec(bootstrap="#!/bin/sh\n"))] == [post.body]


def test_a_name_that_does_not_fit_is_the_runs(cloud: Lambda, service: Standin) -> None:
    with_key(service)
    ref = RunRef("a" * 40, "b" * 40, "search-3")
    [call] = cloud.plan_create(OFFER, a_spec(ref=ref))
    assert call.body and call.body["name"] == f"{'a' * 40}.search-3"
    tags = {tag["key"]: tag["value"] for tag in call.body["tags"]}  # type: ignore[attr-defined]
    assert tags == {"gpuyard": "true", "run": "a" * 40, "workload": "b" * 40, "node": "search-3"}
    service.on("GET", "/instances", Reply({"data": [row(tags=call.body["tags"], name=call.body["name"])]}))
    assert [instance.ref for instance in cloud.instances()] == [ref]


def test_a_missing_ssh_key_is_added_first(cloud: Lambda, service: Standin) -> None:
    service.on("GET", "/ssh-keys", Reply({"data": []}))
    service.on("POST", "/ssh-keys", LOST, Reply({"data": {"id": "9", "name": "gpuyard-9"}}))
    service.on("POST", "/instance-operations/launch", Reply({"data": {"instance_ids": ["x"]}}))
    planned = cloud.plan_create(OFFER, a_spec())
    cloud.create(OFFER, a_spec())
    made = service.calls("POST")
    assert [request.path for request in made] == ["/ssh-keys", "/ssh-keys", "/instance-operations/launch"]
    assert made[2].body["ssh_key_names"] == ["gpuyard-9"] and planned[0].body == made[0].body


def test_a_key_that_somebody_else_added_meanwhile_is_used(cloud: Lambda, service: Standin) -> None:
    held = {"id": "1", "name": "theirs", "public_key": SSH_KEY}
    service.on("GET", "/ssh-keys", Reply({"data": []}), Reply({"data": [held]}))
    service.on("POST", "/ssh-keys", refusal(409, "global/duplicate"))
    service.on("POST", "/instance-operations/launch", Reply({"data": {"instance_ids": ["x"]}}))
    cloud.create(OFFER, a_spec())
    assert service.calls("POST")[-1].body["ssh_key_names"] == ["theirs"]


@pytest.mark.parametrize("reply", [LOST, refusal(500, "global/internal-error"), Reply({"data": {"instance_ids": []}})])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_lost_answer_adopts_the_instance_by_tags_or_name(
    cloud: Lambda, service: Standin, reply: Reply, tagged: bool
) -> None:
    with_key(service)
    ours = row("ours") if tagged else {name: value for name, value in row("ours").items() if name != "tags"}
    foreign = row("foreign", tags=[], name="training")
    service.on("GET", "/instances", Reply({"data": [foreign]}), Reply({"data": [foreign, ours]}))
    service.on("POST", "/instance-operations/launch", reply)
    assert cloud.create(OFFER, a_spec()).id == "ours"
    assert len(service.calls("POST")) == 1


def test_a_lost_answer_without_an_instance_is_an_error(cloud: Lambda, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/instances", Reply({"data": []}))
    service.on("POST", "/instance-operations/launch", LOST)
    with pytest.raises(AmbiguousError, match=r"miniprover-0.*cloud\.lambda\.ai"):
        cloud.create(OFFER, a_spec())
    assert len(service.calls("POST")) == 1


def test_a_launch_too_soon_after_another_waits_and_looks_first(cloud: Lambda, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/instances", Reply({"data": []}))
    too_soon = refusal(429, "global/too-many-requests")
    service.on("POST", "/instance-operations/launch", too_soon, Reply({"data": {"instance_ids": ["x"]}}))
    assert cloud.create(OFFER, a_spec()).id == "x"
    assert len(service.calls("POST")) == 2 and service.calls("GET", "/instances")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "global/invalid-api-key", AuthenticationError),
        (403, "global/account-inactive", AuthenticationError),
        (400, "global/quota-exceeded", CreditError),
        (400, "global/invalid-address", CreditError),
        (400, "global/invalid-parameters", InvalidRequestError),
        (404, "global/object-does-not-exist", NotFoundError),
        (400, "instance-operations/launch/insufficient-capacity", NoCapacityError),
        (400, "instance-operations/launch/file-system-in-wrong-region", NoCapacityError),
        (400, "something/new", InvalidRequestError),
    ],
)
def test_what_an_error_means(status: int, code: str, error: type[Exception]) -> None:
    body = {"error": {"code": code, "message": "It did not work.", "suggestion": "Try another."}}
    found = classify(Answer(status, {}, body, "raw"))
    assert type(found) is error and str(found) == "Lambda refused: It did not work. Try another."


def test_an_answer_without_the_envelope_is_told_as_it_is() -> None:
    assert str(classify(Answer(400, {}, {"error": "odd"}, "odd"))) == "Lambda refused: odd"


# -- instances ---------------------------------------------------------------------------------------------------------


def test_an_instance_is_shown_without_its_secret(cloud: Lambda, service: Standin) -> None:
    service.on("GET", "/instances/x", Reply({"data": row("x")}))
    instance = cloud.instance("x")
    assert instance is not None and "canary-jupyter-1" not in repr(instance)
    assert (instance.ssh_host, instance.ssh_port, instance.ssh_user) == ("203.0.113.7", 22, "ubuntu")
    assert (instance.gpu_name, instance.gpu_count, instance.gpu_ram_gb) == ("A10 PCIe", 1, 24)
    assert (instance.price_per_hour_usd, instance.created_at, instance.region) == (0.75, None, "us-east-1")


@pytest.mark.parametrize(
    ("status", "address", "state"),
    [
        ("booting", "", State.PENDING),
        ("booting", "203.0.113.7", State.PENDING),
        ("active", "", State.PENDING),  # the address comes late
        ("active", "203.0.113.7", State.RUNNING),
        ("unhealthy", "203.0.113.7", State.UNKNOWN),
        ("terminating", "203.0.113.7", State.FAILED),
        ("preempted", "203.0.113.7", State.PREEMPTED),
        ("of a new kind", "203.0.113.7", State.UNKNOWN),
    ],
)
def test_states(cloud: Lambda, service: Standin, status: str, address: str, state: State) -> None:
    changed = row("x", status=status, ip=address)
    if not address:
        del changed["ip"]
    service.on("GET", "/instances/x", Reply({"data": changed}))
    instance = cloud.instance("x")
    assert instance is not None and instance.state is state


def test_what_is_terminated_is_gone(cloud: Lambda, service: Standin) -> None:
    service.on("GET", "/instances/x", Reply({"data": row("x", status="terminated")}))
    service.on("GET", "/instances/y", refusal(404, "global/object-does-not-exist"))
    service.on("GET", "/instances", Reply({"data": [row("x", status="terminated"), row("z")]}))
    assert cloud.instance("x") is None and cloud.instance("y") is None
    assert [instance.id for instance in cloud.instances()] == ["z"]


def test_destroy_comes_back_when_it_is_terminated(cloud: Lambda, service: Standin) -> None:
    service.on("POST", "/instance-operations/terminate", Reply({"data": {"terminated_instances": []}}))
    replies = [Reply({"data": row("x", status=status)}) for status in ("terminating", "terminated")]
    service.on("GET", "/instances/x", *replies)
    cloud.destroy("x")
    [post] = service.calls("POST")
    assert post.body == {"instance_ids": ["x"]}
    assert [call.body for call in cloud.plan_destroy("x")] == [post.body]


def test_a_destroy_that_cannot_be_confirmed_names_the_id(cloud: Lambda, service: Standin) -> None:
    service.on("POST", "/instance-operations/terminate", Reply({"data": {}}))
    service.on("GET", "/instances/x", refusal(503, "provider/internal-unavailable"))
    with pytest.raises(LeakError, match=r"instance x .*503.*cloud\.lambda\.ai") as caught:
        cloud.destroy("x")
    assert (caught.value.instance_id, KEY in str(caught.value)) == ("x", False)


def test_an_empty_answer_about_an_instance_is_no_proof_of_its_end(cloud: Lambda, service: Standin) -> None:
    service.on("GET", "/instances/x", Reply({}))
    with pytest.raises(ProviderDownError, match="holds none"):
        cloud.instance("x")


def test_what_the_api_cannot_do_is_said(cloud: Lambda) -> None:
    assert cloud.credit_usd() is None
    with pytest.raises(UnsupportedError, match="Lambda cannot stop an instance without destroying it"):
        cloud.stop("x")
