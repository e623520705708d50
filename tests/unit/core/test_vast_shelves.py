"""What a Vast.ai account holds beside instances, against answers right and wrong (docs/reference/vast.md)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.providers.vast import Vast

from .conftest import SSH_KEY, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin

REF = RunRef("miniprover-0", "miniprover")
NAME = "gpuyard_Rminiprover_0_Wminiprover"
SECRETS, KEYS, VOLUMES = "/api/v0/secrets/", "/api/v0/ssh/", "/api/v0/volumes/"
SECRET = "canary-secret-value-0123456789"
DOWN = Reply("<html>502</html>", 502)


@pytest.fixture
def variables(vast: Vast) -> Shelf:
    return vast.shelves()[Kind.VARIABLE]


@pytest.fixture
def keys(vast: Vast) -> Shelf:
    return vast.shelves()[Kind.SSH_KEY]


@pytest.fixture
def volumes(vast: Vast) -> Shelf:
    return vast.shelves()[Kind.VOLUME]


def refusal(status: int, code: str, message: str = "no") -> Reply:
    return Reply({"success": False, "error": code, "msg": message}, status)


# -- stored variables --------------------------------------------------------------------------------------------------


def held(service: Standin, *names: str) -> None:
    service.on("GET", SECRETS, Reply({"success": True, "secrets": dict.fromkeys(names, "*****")}))


def a_variable(**changes: Any) -> ResourceSpec:
    return ResourceSpec(**{"name": "wandb_api_key", "content": SECRET, **changes})


def test_a_variable_is_made_where_it_is_not_and_changed_where_it_is(variables: Shelf, service: Standin) -> None:
    """V3. Its value never comes back, so it is always written."""
    held(service, "OTHER")
    service.on("POST", SECRETS, Reply({"success": True}))
    made = variables.create(a_variable())
    assert (made.id, made.name, made.ours, made.kind) == ("WANDB_API_KEY", "WANDB_API_KEY", False, Kind.VARIABLE)
    held(service, "OTHER", "WANDB_API_KEY")
    service.on("PUT", SECRETS, LOST, Reply({"success": True}))  # the same again does no harm
    variables.create(a_variable())
    body = {"key": "WANDB_API_KEY", "value": SECRET}
    assert [call.body for call in (*service.calls("POST"), *service.calls("PUT"))] == [body] * 3


def test_a_change_that_never_arrives_is_no_success(variables: Shelf, service: Standin) -> None:
    """The name is there all the time, and says nothing of the value."""
    held(service, "WANDB_API_KEY")
    service.on("PUT", SECRETS, DOWN)
    with pytest.raises(ProviderDownError):
        variables.create(a_variable())


def test_a_new_variable_whose_answer_was_lost_is_found(variables: Shelf, service: Standin) -> None:
    nothing, there = ({"success": True, "secrets": dict.fromkeys(names, "*****")} for names in ((), ("WANDB_API_KEY",)))
    service.on("GET", SECRETS, Reply(nothing), Reply(nothing), Reply(there))
    service.on("POST", SECRETS, LOST)
    assert variables.create(a_variable()).id == "WANDB_API_KEY" and len(service.calls("POST")) == 1


def test_no_value_is_shown_anywhere(variables: Shelf, service: Standin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    held(service)
    service.on("POST", SECRETS, refusal(400, "max_secrets", "too many"))
    told: list[str] = []
    with pytest.raises(InvalidRequestError, match="too many") as refused:
        variables.create(a_variable(), progress=told.append)
    planned = variables.plan_create(a_variable())
    assert planned[0].body == {"key": "WANDB_API_KEY", "value": "(the value)"}
    with pytest.raises(UnsupportedError, match=r"cannot be stored at Vast\.ai") as unfit:
        variables.create(a_variable(content=f"{SECRET} with a space"))
    shown = f"{a_variable()!r} {planned!r} {refused.value} {unfit.value} {told} {caplog.text} {variables!r}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"name": "1X"}, UsageError, "cannot be a variable's name"),
        ({"name": "A-B"}, UsageError, "cannot be a variable's name"),
        ({"name": ""}, UsageError, "needs a name"),
        ({"content": ""}, UsageError, "has no value"),
        ({"ref": REF}, UnsupportedError, "has no run"),
        ({"region": "NO"}, UnsupportedError, "has no region"),
    ],
)
def test_a_variable_that_cannot_be_is_not_sent(
    variables: Shelf, service: Standin, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    for act in (variables.create, variables.plan_create):
        with pytest.raises(error, match=why):
            act(a_variable(**changes))
    assert service.seen == []


def test_a_variable_is_deleted_by_its_name(variables: Shelf, service: Standin) -> None:
    body = {"success": True, "secrets": {"A": "*****"}}
    service.on("GET", SECRETS, Reply(body), Reply({"success": True, "secrets": {}}))
    service.on("DELETE", SECRETS, Reply({"success": True}))
    variables.destroy("A")
    service.on("DELETE", SECRETS, refusal(400, "nonexistent_key"))
    variables.destroy("A")
    assert [call.body for call in service.calls("DELETE")] == [{"key": "A"}] * 2
    assert [call.body for call in variables.plan_destroy("A")] == [{"key": "A"}]


def test_an_answer_without_variables_confirms_no_end(variables: Shelf, service: Standin) -> None:
    service.on("GET", SECRETS, Reply({"success": True}))
    with pytest.raises(ProviderDownError, match="holds none"):
        variables.get("A")


# -- SSH keys ----------------------------------------------------------------------------------------------------------


def a_key(**changes: Any) -> ResourceSpec:
    return ResourceSpec(**{"name": "gpuyard-laptop", "content": SSH_KEY, **changes})


def test_a_key_is_called_by_its_comment(keys: Shelf, service: Standin) -> None:
    body = " ".join([*SSH_KEY.split()[:2], "gpuyard-laptop"])
    theirs = {"id": 7, "public_key": "ssh-rsa AAAA me@home", "created_at": 1.5}
    service.on("GET", KEYS, Reply({"success": False, "msg": "No SSH keys found for the user."}, 404), Reply([theirs]))
    service.on("POST", KEYS, Reply({"success": True, "key": {"id": 8, "key": body}}))
    made = keys.create(a_key())
    assert [call.body for call in service.calls("POST")] == [{"ssh_key": body}]
    assert (made.id, made.name, made.ours) == ("8", "gpuyard-laptop", True)
    [other] = keys.all()
    assert (other.id, other.name, other.ours, other.created_at) == ("7", "me@home", False, 1.5)


def test_a_key_that_is_there_is_not_sent_again(keys: Shelf, service: Standin) -> None:
    rows = [{"id": 5, "key": SSH_KEY, "deleted_at": "yesterday"}, {"id": 6, "key": SSH_KEY}]
    service.on("GET", KEYS, Reply(rows))
    assert keys.create(a_key()).id == "6" and keys.plan_create(a_key()) == [] and service.calls("POST") == []


def test_a_key_whose_answer_was_lost_is_found(keys: Shelf, service: Standin) -> None:
    older = {"id": 7, "key": "ssh-rsa AAAA gpuyard-laptop"}  # of the same name
    made = {"id": 8, "key": " ".join([*SSH_KEY.split()[:2], "gpuyard-laptop"])}
    service.on("GET", KEYS, Reply([older]), Reply([older, made]))
    service.on("POST", KEYS, LOST)
    assert keys.create(a_key()).id == "8" and len(service.calls("POST")) == 1


@pytest.mark.parametrize("message", ["no_ssh_key", ""])
def test_a_key_that_is_gone_already_is_no_error(keys: Shelf, service: Standin, message: str) -> None:
    service.on("GET", KEYS, Reply([]))
    service.on("DELETE", f"{KEYS}7/", Reply({"success": False, "error": message, "msg": "SSH key not found"}, 400))
    keys.destroy("7")
    assert len(service.calls("DELETE")) == 1


def test_a_wrong_api_key_is_not_an_account_without_keys(keys: Shelf, service: Standin) -> None:
    service.on("GET", KEYS, refusal(404, "auth_error", "Invalid user key"))
    with pytest.raises(AuthenticationError):
        keys.all()


# -- local volumes -----------------------------------------------------------------------------------------------------


def offer_row(number: int = 1, **changes: Any) -> dict[str, Any]:
    shown = {"id": number, "machine_id": 90 + number, "disk_space": 500, "storage_cost": 0.1}
    return {**shown, "geolocation": "Oslo, NO", **changes}


def row(number: int = 41, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "label": NAME,
        "status": "created",
        "machine_id": 91,
        "type": "machine",
        "disk_space": 100,
        "instances": [],
        "start_date": 1790000000.5,
        "storage_total_cost": 0.01,
        "geolocation": "Oslo, NO",
        **changes,
    }


def listed(service: Standin, *rows: dict[str, Any]) -> None:
    service.on("GET", VOLUMES, Reply({"volumes": [*rows]}))


def offered(service: Standin, *rows: dict[str, Any]) -> None:
    service.on("POST", f"{VOLUMES}search/", Reply({"offers": [*rows]}))


def a_volume(**changes: Any) -> ResourceSpec:
    return ResourceSpec(**{"name": "data", "ref": REF, "size_gb": 99.5, **changes})


def test_the_cheapest_volume_that_fits_is_made_with_its_runs_name(volumes: Shelf, service: Standin) -> None:
    listed(service, row())
    offered(
        service,
        offer_row(1, storage_cost=0.2),
        offer_row(2),
        offer_row(3, storage_cost=0.01, disk_space=50),
        offer_row(4, storage_cost=0.01, geolocation="Poland, PL"),
    )
    service.on("PUT", VOLUMES, Reply({"success": True, "volume_name": "V.41"}))
    made = volumes.create(a_volume(region="no"))
    assert [call.body for call in service.calls("PUT")] == [{"id": 2, "size": 100, "name": NAME}]
    assert service.calls("POST")[0].body["disk_space"] == {"gte": 100}
    assert (made.id, made.ref, made.ours, made.detail["machine"]) == ("41", REF, True, "91")
    assert (made.price_per_month_usd, made.region, made.size_gb) == (pytest.approx(7.3), "Oslo, NO", 100)
    assert volumes.price_per_month_usd(a_volume(region="NO")) == pytest.approx(10 * 730 / 720)
    [planned] = volumes.plan_create(a_volume(region="Oslo, NO"))
    assert (planned.method, planned.body) == ("PUT", {"id": 2, "size": 100, "name": NAME})
    assert len(service.calls("PUT")) == 1


def test_a_volume_on_the_machine_that_is_named(volumes: Shelf, service: Standin) -> None:
    """The server may pass over a condition, so it is looked at again."""
    offered(service, offer_row(1, storage_cost=0.01), offer_row(5))
    [planned] = volumes.plan_create(a_volume(options={"machine": "95"}))
    assert planned.body == {"id": 5, "size": 100, "name": NAME}
    assert service.calls("POST")[0].body["machine_id"] == {"eq": 95}
    with pytest.raises(NoCapacityError, match="no local volume of 100 GB on machine 99"):
        volumes.create(a_volume(options={"machine": "99"}))
    with pytest.raises(NoCapacityError, match="no local volume of 100 GB in SE"):
        volumes.create(a_volume(region="SE"))
    assert service.calls("PUT") == []


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"size_gb": None}, UsageError, "needs a size"),
        ({"size_gb": 0}, UsageError, "1 to 100000 GB"),
        ({"options": {"machine": "x"}}, UsageError, "machine='x' is not the number"),
        ({"options": {"type": "x"}}, UnsupportedError, "it knows machine"),
        ({"ref": None, "name": "my data"}, UsageError, "letters, digits and underscores"),
        ({"ref": None, "name": "d" * 65}, UsageError, "1 to 64"),
    ],
)
def test_a_volume_that_cannot_be_is_not_asked_for(
    volumes: Shelf, service: Standin, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    for act in (volumes.create, volumes.plan_create):
        with pytest.raises(error, match=why):
            act(a_volume(**changes))
    assert service.seen == []


@pytest.mark.parametrize("reply", [LOST, DOWN, Reply({"success": True})])
def test_a_lost_answer_finds_the_volume_by_its_name(volumes: Shelf, service: Standin, reply: Reply) -> None:
    offered(service, offer_row())
    listed(service, row(7, label="my_data"), row(8, label=None), row(41))
    service.on("PUT", VOLUMES, reply)
    assert volumes.create(a_volume()).id == "41" and len(service.calls("PUT")) == 1
    assert volumes.create(a_volume(ref=None, name="my-data")).id == "7"


def test_a_lost_answer_without_a_volume_makes_no_second(volumes: Shelf, service: Standin) -> None:
    offered(service, offer_row())
    listed(service)
    service.on("PUT", VOLUMES, LOST)
    with pytest.raises(AmbiguousError, match="No local volume of run miniprover-0"):
        volumes.create(a_volume())
    assert len(service.calls("PUT")) == 1


def test_a_volume_is_made_whatever_the_list_says_afterwards(volumes: Shelf, service: Standin) -> None:
    offered(service, offer_row())
    service.on("PUT", VOLUMES, Reply({"success": True, "volume_id": 41}))
    service.on("GET", VOLUMES, DOWN)
    made = volumes.create(a_volume())
    assert (made.id, made.name, made.ref, made.size_gb) == ("41", NAME, REF, 100)


def test_the_list_says_who_has_them(volumes: Shelf, service: Standin) -> None:
    listed(service, row(instances=[12, 13], status="in-use"), row(42, label=None, storage_total_cost=None))
    first, second = volumes.all()
    assert (first.attached_to, first.status_text, first.created_at) == (("12", "13"), "in-use", 1790000000.5)
    assert (second.ref, second.ours, second.price_per_month_usd) == (None, False, None)
    assert service.seen[0].params == {"owner": "me", "type": "local_volume"}
    service.on("GET", VOLUMES, Reply({"success": True}))
    with pytest.raises(ProviderDownError, match="holds no list"):
        volumes.get("41")


def test_one_that_a_destroyed_instance_still_holds_is_deleted_later(volumes: Shelf, service: Standin) -> None:
    busy = [refusal(400, "volume_in_use")] * 9
    service.on("DELETE", VOLUMES, *busy, Reply({"success": True}))
    deleted = lambda: len(service.calls("DELETE")) > 9  # noqa: E731

    def volumes_now(_: Request) -> Reply:
        return Reply({"volumes": [] if deleted() else [row()]})

    service.on("GET", VOLUMES, volumes_now)
    volumes.destroy("41")
    assert [call.params for call in service.calls("DELETE")] == [{"id": "41"}] * 10
    [planned] = volumes.plan_destroy("41")
    assert planned.url.endswith("/api/v0/volumes/?id=41")


def test_gone_already_is_success_and_an_end_that_cannot_be_confirmed_names_it(volumes: Shelf, service: Standin) -> None:
    listed(service)
    service.on("DELETE", VOLUMES, refusal(404, "no_such_volume"))
    volumes.destroy("41")
    listed(service, row())
    service.on("DELETE", VOLUMES, refusal(400, "volume_in_use"))
    with pytest.raises(LeakError, match="local volume 41 could not be confirmed") as leak:
        volumes.destroy("41")
    assert leak.value.instance_id == "41"


# -- an instance with a volume -----------------------------------------------------------------------------------------


def test_an_instance_is_created_with_the_volume_of_its_machine(vast: Vast, service: Standin) -> None:
    listed(service, row())
    service.on("GET", KEYS, Reply([{"id": 1, "key": SSH_KEY}]))
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 9}))
    offer, spec = an_offer(machine_id="91"), a_spec(mounts=(("41", "/data"),))
    vast.create(offer, spec)
    [put] = service.calls("PUT")
    assert put.body["volume_info"] == {"create_new": False, "volume_id": 41, "mount_path": "/data"}
    assert [call.body for call in vast.plan_create(offer, spec)] == [put.body]
    assert "volume_info" not in (vast.plan_create(offer, a_spec())[0].body or {})


@pytest.mark.parametrize(
    ("mounts", "error", "why"),
    [
        ((("41", "/a"), ("42", "/b")), UsageError, "one volume at most, not 2"),
        ((("41", "data"),), UsageError, "choose an absolute path"),
        ((("7", "/data"),), NotFoundError, "no local volume 7"),
        # Another offer may be of the right machine.
        ((("41", "/data"),), NoCapacityError, "is on machine 91, and no instance of machine 55 can have it"),
    ],
)
def test_an_instance_that_cannot_have_it_is_not_created(
    vast: Vast, service: Standin, mounts: tuple[tuple[str, str], ...], error: type[Exception], why: str
) -> None:
    listed(service, row())
    for act in (vast.create, vast.plan_create):
        with pytest.raises(error, match=why):
            act(an_offer(machine_id="55"), a_spec(mounts=mounts))
    assert service.calls("PUT") == service.calls("POST") == []


def test_no_other_cloud_takes_a_volume_along(vultr: Any, service: Standin) -> None:
    for act in (vultr.create, vultr.plan_create):
        with pytest.raises(UnsupportedError, match="No machine of Vultr is created with a volume: leave"):
            act(an_offer(provider="vultr"), a_spec(mounts=(("b1", "/data"),)))
    assert service.seen == []


def test_a_resource_shows_what_it_is(volumes: Shelf, service: Standin) -> None:
    listed(service, row())
    [one] = volumes.all()
    assert isinstance(one, Resource) and one.place == ("vast", "volume", "41")
