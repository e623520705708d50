from __future__ import annotations

import base64
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
from gpuyard.providers.http import Answer
from gpuyard.providers.vultr import Vultr, classify

from .conftest import SSH_KEY, VULTR_KEY, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin

TAGS = ["gpuyard", "run:miniprover-0", "workload:miniprover"]


def plan(plan_id: str = "vcg-a16-2c-8g-2vram", **changes: Any) -> dict[str, Any]:
    return {
        "id": plan_id,
        "vcpu_count": 2,
        "ram": 8192,
        "disk": 50,
        "disk_count": 1,
        "gpu_type": "NVIDIA_A16",
        "gpu_vram_gb": 2,
        "gpu_count": "1/8",
        "hourly_cost": 0.059,
        "hourly_cost_preemptible": 0.02,
        "monthly_cost": 43,
        "deploy_ondemand": True,
        "deploy_preemptible": True,
        "locations": ["ewr", "fra", ""],
        "location_cost": {"fra": {"hourly_cost": 0.07}},
        **changes,
    }


def row(instance_id: str = "cb676a46", **changes: Any) -> dict[str, Any]:
    return {
        "id": instance_id,
        "label": "miniprover-0",
        "tags": TAGS,
        "plan": "vcg-a16-2c-8g-2vram",
        "region": "fra",
        "status": "active",
        "power_status": "running",
        "server_status": "ok",
        "main_ip": "203.0.113.7",
        "date_created": "2026-11-22T05:00:00+00:00",
        **changes,
    }


def catalogue(service: Standin, *plans: dict[str, Any]) -> None:
    def by_type(request: Request) -> Reply:
        kind = request.params["type"]
        chosen = [item for item in plans if kind == "all" or item["id"].startswith(kind + "-")]
        return Reply({"plans": chosen, "meta": {"total": len(chosen), "links": {"next": "", "prev": ""}}})

    service.on("GET", "/plans", by_type)


def stock(service: Standin, **by_region: list[str]) -> None:
    def available(request: Request) -> Reply:
        region = request.path.split("/")[2]
        if region not in by_region:
            return Reply({"error": "Not found.", "status": 404}, 404)
        return Reply({"available_plans": by_region[region]})

    service.on("GET", "/regions/", available)


# -- offers ------------------------------------------------------------------------------------------------------------


def test_an_offer_is_a_plan_in_a_region_that_has_it(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan())
    stock(service, ewr=[], fra=["vcg-a16-2c-8g-2vram", "vcg-unknown"])
    [offer] = vultr.offers(Query())
    assert (offer.id, offer.region, offer.price_per_hour_usd) == ("vcg-a16-2c-8g-2vram@fra", "fra", 0.07)
    assert (offer.gpu_name, offer.gpu_count, offer.gpu_ram_gb) == ("A16", 0.125, 2.0)
    assert (offer.cpu_cores, offer.ram_gb, offer.disk_gb) == (2.0, 8.0, 50.0)
    assert (offer.market, offer.disk_price_per_hour_usd, offer.emulated) == ("on-demand", 0.0, False)
    assert all(request.params["type"] == "vcg" for request in service.calls("GET", "/regions/"))


def test_vram_is_the_plans_total(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan("vcg-a100-big", gpu_count=4, gpu_vram_gb=320, gpu_type="NVIDIA_A100"))
    stock(service, ewr=["vcg-a100-big"])
    [offer] = vultr.offers(Query())
    assert (offer.gpu_count, offer.gpu_ram_gb, offer.gpu_name) == (4.0, 80.0, "A100")


def test_a_preemptible_only_plan_costs_its_preemptible_price(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan(deploy_ondemand=False))
    stock(service, ewr=["vcg-a16-2c-8g-2vram"])
    [offer] = vultr.offers(Query())
    assert (offer.market, offer.price_per_hour_usd) == ("interruptible", 0.02)


def test_a_plan_without_public_regions_is_found_by_stock(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan("vdm-64c-8-h100-gpu", locations=[], gpu_type=None, gpu_count=8, gpu_vram_gb=640))
    service.on("GET", "/regions", Reply({"regions": [{"id": "sjc"}, {"id": "lax"}], "meta": {}}))
    stock(service, sjc=["vdm-64c-8-h100-gpu"], lax=[])
    [offer] = vultr.offers(Query())
    assert (offer.id, offer.gpu_name, offer.gpu_ram_gb) == ("vdm-64c-8-h100-gpu@sjc", "H100", 80.0)


def test_plans_without_gpu_or_price_are_no_offers(vultr: Vultr, service: Standin) -> None:
    free = plan("vcg-free", hourly_cost=0, hourly_cost_preemptible=0)
    bare = plan("vdm-cpu", gpu_type=None, gpu_count=0, gpu_vram_gb=0)
    catalogue(service, free, bare)
    assert vultr.offers(Query()) == []
    assert not service.calls("GET", "/regions")


def test_lists_follow_their_cursors(vultr: Vultr, service: Standin) -> None:
    def pages(request: Request) -> Reply:
        assert request.params["per_page"] == "500"
        second = request.params.get("cursor") == "bmV4dF9f"
        links = {"next": "" if second else "bmV4dF9f", "prev": ""}
        return Reply({"instances": [row("b" if second else "a")], "meta": {"total": 2, "links": links}})

    catalogue(service, plan())
    service.on("GET", "/instances", pages)
    assert [instance.id for instance in vultr.instances()] == ["a", "b"]
    assert [request.path for request in service.calls("GET", "/plans")] == ["/plans", "/plans-metal"]  # read once


def test_a_list_that_goes_in_circles_is_an_error(vultr: Vultr, service: Standin) -> None:
    service.on("GET", "/instances", Reply({"instances": [], "meta": {"links": {"next": "x", "prev": ""}}}))
    with pytest.raises(ProviderDownError, match="repeats"):
        vultr.instances()


# -- create ------------------------------------------------------------------------------------------------------------

OFFER = an_offer(provider="vultr", id="vcg-a16-2c-8g-2vram@fra", region="fra", gpu_name="A16", price_per_hour_usd=0.07)


def with_key(service: Standin) -> None:
    held = {"id": "key-1", "name": "mine", "ssh_key": " ".join(SSH_KEY.split()[:2]) + "\n"}
    service.on("GET", "/ssh-keys", Reply({"ssh_keys": [{"id": "key-0", "ssh_key": "ssh-rsa AAAA x"}, held]}))


def test_a_create_says_everything_once(vultr: Vultr, service: Standin) -> None:
    with_key(service)
    fresh = row(status="pending", server_status="none", main_ip="0.0.0.0", default_password="canary-password-1")
    service.on("POST", "/instances", Reply({"instance": fresh}, 202))
    instance = vultr.create(OFFER, a_spec(bootstrap="#!/bin/sh\n"))
    [post] = service.calls("POST")
    assert post.body == {
        "region": "fra",
        "plan": "vcg-a16-2c-8g-2vram",
        "os_id": 1743,
        "sshkey_id": ["key-1"],
        "label": "miniprover-0",
        "hostname": "miniprover-0",
        "tags": TAGS,
        "backups": "disabled",
        "activation_email": False,
        "user_data": base64.b64encode(b"#!/bin/sh\n").decode(),
    }
    assert post.headers["content-type"] == "application/json"
    assert (instance.state, instance.ssh_host, instance.price_per_hour_usd) == (State.PENDING, "", 0.07)
    assert instance.ref == RunRef("miniprover-0", "miniprover")
    assert instance.ssh_user == "root"
    assert "canary-password-1" not in repr(instance)


def test_a_limited_user_is_asked_for_and_logged_in_as(vultr: Vultr, service: Standin) -> None:
    with_key(service)
    service.on("POST", "/instances", Reply({"instance": row(user_scheme="limited")}, 202))
    instance = vultr.create(OFFER, a_spec(limited_user=True))
    [post] = service.calls("POST")
    assert post.body and post.body["user_scheme"] == "limited"
    assert instance.ssh_user == "linuxuser"


def test_the_accounts_ssh_keys_have_the_names_that_the_console_shows(vultr: Vultr, service: Standin) -> None:
    service.on("GET", "/ssh-keys", Reply({"ssh_keys": [{"id": "k", "name": "laptop", "ssh_key": "ssh-rsa AAAA me@x"}]}))
    assert vultr.ssh_keys() == ["ssh-rsa AAAA laptop"]


def test_a_missing_ssh_key_is_added_first(vultr: Vultr, service: Standin) -> None:
    service.on("GET", "/ssh-keys", Reply({"ssh_keys": [], "meta": {"links": {"next": "", "prev": ""}}}))
    service.on("POST", "/ssh-keys", LOST, Reply({"ssh_key": {"id": "key-9"}}, 201))
    service.on("POST", "/instances", Reply({"instance": row()}, 202))
    planned = vultr.plan_create(OFFER, a_spec())
    assert not service.calls("POST")
    vultr.create(OFFER, a_spec())
    made = service.calls("POST")
    assert [request.path for request in made] == ["/ssh-keys", "/ssh-keys", "/instances"]
    assert made[0].body["name"].startswith("gpuyard-")
    assert made[2].body["sshkey_id"] == ["key-9"]
    assert [call.url for call in planned] == [service.url + "/ssh-keys", service.url + "/instances"]
    assert planned[0].body == made[0].body
    assert (planned[1].body or {}) | {"sshkey_id": ["key-9"]} == made[2].body


@pytest.mark.parametrize("reply", [LOST, Reply({"error": "Server error", "status": 500}, 500), Reply({}, 202)])
def test_a_lost_answer_adopts_the_instance_by_its_tags(vultr: Vultr, service: Standin, reply: Reply) -> None:
    """A machine of the same label without our tags is somebody else's."""
    with_key(service)
    catalogue(service, plan())
    foreign = row("foreign", tags=[])
    service.on("GET", "/instances", Reply({"instances": [foreign]}), Reply({"instances": [foreign, row("ours")]}))
    service.on("POST", "/instances", reply)
    assert vultr.create(OFFER, a_spec()).id == "ours"
    assert len(service.calls("POST")) == 1


def test_a_lost_answer_without_an_instance_is_an_error(vultr: Vultr, service: Standin) -> None:
    with_key(service)
    service.on("GET", "/instances", Reply({"instances": []}))
    service.on("POST", "/instances", LOST)
    with pytest.raises(AmbiguousError, match=r"miniprover-0.*my\.vultr\.com"):
        vultr.create(OFFER, a_spec())
    assert len(service.calls("POST")) == 1


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, "Invalid API token.", AuthenticationError),
        (401, "Unauthorized IP address: 203.0.113.1", AuthenticationError),
        (403, "Forbidden", AuthenticationError),
        (404, "Not found.", NotFoundError),
        (400, "Invalid plan chosen.", InvalidRequestError),
        (400, "Script must be base64 encoded", InvalidRequestError),
        (400, "The plan is not available in the selected region", NoCapacityError),
        (412, "Server is out of stock", NoCapacityError),
        (403, "You have reached your instance limit", CreditError),
        (400, "Insufficient account balance", CreditError),
    ],
)
def test_what_an_error_means(status: int, text: str, kind: type[Exception]) -> None:
    assert type(classify(Answer(status, {}, {"error": text, "status": status}, text))) is kind


def test_an_address_that_is_not_allowed_is_explained() -> None:
    text = "Unauthorized IP address: 203.0.113.1"
    assert "allow-list" in str(classify(Answer(401, {}, {"error": text}, text)))


# -- instances ---------------------------------------------------------------------------------------------------------


def test_an_instance_gets_gpu_and_price_from_its_plan(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan())
    service.on("GET", "/instances/cb676a46", Reply({"instance": row()}))
    instance = vultr.instance("cb676a46")
    assert instance is not None
    assert (instance.gpu_name, instance.gpu_count, instance.gpu_ram_gb) == ("A16", 0.125, 2.0)
    assert (instance.price_per_hour_usd, instance.region) == (0.07, "fra")
    assert (instance.ssh_host, instance.ssh_port, instance.ssh_user) == ("203.0.113.7", 22, "root")
    assert instance.created_at == 1795323600.0


def test_an_instance_of_an_unknown_plan_is_shown_all_the_same(vultr: Vultr, service: Standin) -> None:
    catalogue(service)
    service.on("GET", "/instances/cb676a46", Reply({"instance": row(plan="vc2-old", tags=None, date_created=None)}))
    instance = vultr.instance("cb676a46")
    assert instance is not None
    assert (instance.ref, instance.gpu_name, instance.price_per_hour_usd, instance.created_at) == (None, "", 0.0, None)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (("pending", "running", "none", "0.0.0.0"), State.PENDING),
        (("active", "stopped", "locked", "203.0.113.7"), State.PENDING),
        (("active", "running", "installingbooting", "203.0.113.7"), State.PENDING),
        (("active", "running", "ok", "0.0.0.0"), State.PENDING),
        (("active", "running", "ok", "203.0.113.7"), State.RUNNING),
        (("resizing", "running", "ok", "203.0.113.7"), State.PENDING),
        (("active", "stopped", "ok", "203.0.113.7"), State.STOPPED),
        (("suspended", "stopped", "ok", "203.0.113.7"), State.PREEMPTED),
        (("failed", "", "", "0.0.0.0"), State.FAILED),
    ],
)
def test_states(vultr: Vultr, service: Standin, words: tuple[str, str, str, str], state: State) -> None:
    catalogue(service, plan())
    status = dict(zip(("status", "power_status", "server_status", "main_ip"), words, strict=True))
    service.on("GET", "/instances/x", Reply({"instance": row("x", **status)}))
    instance = vultr.instance("x")
    assert instance is not None
    assert instance.state is state


def test_a_deleted_instance_is_none(vultr: Vultr, service: Standin) -> None:
    assert vultr.instance("gone") is None


def test_destroy_comes_back_at_the_404(vultr: Vultr, service: Standin) -> None:
    catalogue(service, plan())
    service.on("DELETE", "/instances/x", Reply(None, 204))
    service.on("GET", "/instances/x", Reply({"instance": row("x")}), Reply({"error": "Not found."}, 404))
    vultr.destroy("x")
    assert len(service.calls("DELETE")) == 1


def test_a_destroy_that_cannot_be_confirmed_names_the_id(vultr: Vultr, service: Standin) -> None:
    service.on("DELETE", "/instances/x", Reply(None, 204))
    service.on("GET", "/instances/x", Reply("down", 503))
    with pytest.raises(LeakError, match=r"instance x .*503.*my\.vultr\.com") as caught:
        vultr.destroy("x")
    assert (caught.value.instance_id, VULTR_KEY in str(caught.value)) == ("x", False)


def test_start_and_halt_have_empty_answers(vultr: Vultr, service: Standin) -> None:
    service.on("POST", "/instances/x/start", Reply(None, 204))
    service.on("POST", "/instances/x/halt", Reply(None, 204))
    vultr.start("x")
    vultr.stop("x")
    assert [request.path for request in service.calls("POST")] == ["/instances/x/start", "/instances/x/halt"]


def test_credit_is_the_negative_balance_less_what_is_pending(vultr: Vultr, service: Standin) -> None:
    service.on("GET", "/account", Reply({"account": {"balance": -50.0, "pending_charges": 1.5}}), Reply({}))
    assert vultr.credit_usd() == 48.5
    assert vultr.credit_usd() is None


def test_bare_metal_has_a_life_cycle_of_its_own(vultr: Vultr, service: Standin) -> None:
    """No power and no server are shown, sizes are texts, and routes and wrappers are others."""
    with_key(service)
    catalogue(service)
    metal = {"plan": "vbm-8-a100-gpu", "ram": "2097152 MB", "disk": "8 x 3840 GB NVMe", "main_ip": "0.0.0.0"}
    pending = {name: value for name, value in row("m", status="pending", **metal).items() if "_status" not in name}
    service.on(
        "GET",
        "/plans-metal",
        Reply({"plans_metal": [plan("vbm-8-a100-gpu", vcpu_count=None, cpu_count=112, gpu_count=8, gpu_vram_gb=640)]}),
    )
    (offer, _) = [one for one in vultr.offers(Query()) if one.id.startswith("vbm")]
    assert offer.id == "vbm-8-a100-gpu@ewr" and offer.cpu_cores == 112 and offer.gpu_count == 8
    service.on("POST", "/bare-metals", Reply({"bare_metal": pending}, 202))
    made = vultr.create(offer, a_spec())
    assert "backups" not in (service.calls("POST", "/bare-metals")[0].body or {}) and made.state is State.PENDING
    running = {**pending, "status": "active", "main_ip": "203.0.113.9"}
    service.on("GET", "/instances", Reply({"instances": []}))
    service.on("GET", "/bare-metals", Reply({"bare_metals": [running]}))
    (listed,) = vultr.instances()
    assert listed.state is State.RUNNING and listed.ssh_host == "203.0.113.9" and listed.ref == made.ref
    service.seen.clear()
    service.on("DELETE", "/bare-metals/m", Reply(None, 204))
    service.on("POST", "/bare-metals/m/reboot", Reply(None, 204))
    service.on("GET", "/bare-metals/m", Reply({"error": "Not found."}, 404))
    vultr.reboot("m")
    with pytest.raises(UnsupportedError, match="m is not stopped"):
        vultr.stop("m")
    (planned,) = vultr.plan_destroy("m")
    assert planned.url.endswith("/bare-metals/m")
    vultr.destroy("m")
    assert not [request for request in service.seen if request.path.startswith("/instances")]
