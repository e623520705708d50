"""What a RunPod account holds beside pods, against answers right and wrong (docs/reference/runpod.md)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpuyard.errors import (
    AmbiguousError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    ProviderDownError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.http import Patience
from gpuyard.providers.rental import Waits
from gpuyard.providers.resources import Kind, ResourceSpec, Shelf
from gpuyard.providers.runpod import RunPod

from .conftest import SSH_KEY, a_spec, an_offer
from .standin import LOST, Reply, Request, Standin

REF = RunRef("miniprover-0", "miniprover")
VOLUMES, KEYS = "/network-volumes", "/account/ssh-keys"
THEIRS = "ssh-rsa AAAAB3NzaTheirs= colleague  with two spaces"
OURS = " ".join([*SSH_KEY.split()[:2], "gpuyard-laptop"])
MISSING = Reply({"title": "Not Found", "detail": "resource not found"}, 404)


@pytest.fixture
def cloud(service: Standin, patience: Patience, waits: Waits) -> RunPod:
    return RunPod("canary-runpod-11aa22bb33cc44dd", base_url=service.url, patience=patience, waits=waits)


@pytest.fixture
def volumes(cloud: RunPod) -> Shelf:
    return cloud.shelves()[Kind.FILESYSTEM]


@pytest.fixture
def keys(cloud: RunPod) -> Shelf:
    return cloud.shelves()[Kind.SSH_KEY]


def row(volume_id: str = "vol1", **changes: Any) -> dict[str, Any]:
    named = {"id": volume_id, "name": REF.label, "size": 100, "dataCenter": "EU-RO-1", "type": "STANDARD"}
    return {**named, "createdAt": "2026-11-22T05:00:00Z", **changes}


def a_volume(**changes: Any) -> ResourceSpec:
    wanted: dict[str, Any] = {"name": "data", "ref": REF, "region": "EU-RO-1", "size_gb": 99.5, **changes}
    return ResourceSpec(**wanted)


class KeyList:
    """The account's list of keys; ``meanwhile`` is what somebody else does after each change."""

    def __init__(self, service: Standin, *keys: str) -> None:
        self.keys = [*keys]
        self.lost = 0
        self.acts = True
        self.meanwhile: list[list[str]] = []
        service.on("GET", KEYS, lambda _: Reply({"keys": self.keys}))
        service.on("PUT", KEYS, self.put)

    def put(self, request: Request) -> Reply:
        if self.acts:
            self.keys = request.body["keys"]
        if self.meanwhile:
            self.keys = self.meanwhile.pop(0)
        self.lost -= 1
        return LOST if self.lost >= 0 else Reply({"keys": self.keys})


# -- network volumes ---------------------------------------------------------------------------------------------------


def test_a_volume_is_ordered_with_its_runs_name(volumes: Shelf, service: Standin) -> None:
    service.on("POST", VOLUMES, Reply(row(), 201))
    made = volumes.create(a_volume())
    [post] = service.calls("POST")
    assert post.body == {"name": REF.label, "size": 100, "dataCenter": "EU-RO-1", "type": "STANDARD"}
    assert (made.id, made.ref, made.ours, made.size_gb, made.region) == ("vol1", REF, True, 100, "EU-RO-1")
    assert (made.price_per_month_usd, made.created_at, made.emulated) == (pytest.approx(7), 1795323600.0, False)
    assert [call.body for call in volumes.plan_create(a_volume())] == [post.body]
    assert len(service.seen) == 1


@pytest.mark.parametrize(("size", "month"), [(100, 7.0), (1000, 70.0), (2000, 120.0)])
def test_above_a_terabyte_it_costs_less(volumes: Shelf, size: float, month: float) -> None:
    assert volumes.price_per_month_usd(a_volume(size_gb=size)) == pytest.approx(month)
    assert volumes.price_per_month_usd(a_volume(options={"type": "HIGH_PERFORMANCE"})) is None


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"region": ""}, UsageError, "name it as region, such as EU-RO-1"),
        ({"size_gb": None}, UsageError, "needs a size in GB"),
        ({"size_gb": 9}, UsageError, "9 GB: a RunPod network volume has 10 to 4096 GB"),
        ({"size_gb": 4096.5}, UsageError, "10 to 4096"),
        ({"options": {"type": "FAST"}}, UsageError, "type='FAST' .*STANDARD or HIGH_PERFORMANCE"),
        ({"options": {"tier": "x"}}, UnsupportedError, "has no option tier: it knows type"),
        ({"source": "pod"}, UnsupportedError, "has no source: leave it out"),
        ({"name": "", "ref": None}, UsageError, "needs a name"),
        ({"name": "a\nb"}, UsageError, "control character"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(
    volumes: Shelf, service: Standin, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    for act in (volumes.create, volumes.plan_create):
        with pytest.raises(error, match=why):
            act(a_volume(**changes))
    assert service.seen == []


@pytest.mark.parametrize("reply", [LOST, Reply({"title": "x"}, 500), Reply({}, 201)])
def test_a_lost_answer_finds_the_volume_by_its_name(volumes: Shelf, service: Standin, reply: Reply) -> None:
    foreign, earlier = row("foreign", name="models"), row("earlier")
    there = [foreign, earlier]
    service.on("GET", VOLUMES, Reply({"networkVolumes": there}), Reply({"networkVolumes": [*there, row("ours")]}))
    service.on("GET", "/pods", Reply({"pods": []}))
    service.on("POST", VOLUMES, reply)
    assert volumes.create(a_volume(known_ids=frozenset({"earlier"}))).id == "ours"
    assert len(service.calls("POST")) == 1


def test_a_lost_answer_without_a_volume_makes_no_second(volumes: Shelf, service: Standin) -> None:
    service.on("GET", VOLUMES, Reply({"networkVolumes": []}))
    service.on("POST", VOLUMES, LOST)
    with pytest.raises(AmbiguousError, match=r"No network volume of run miniprover-0 has shown up"):
        volumes.create(a_volume())
    assert len(service.calls("POST")) == 1


def test_what_a_sandbox_has_says_so(service: Standin) -> None:
    cloud = RunPod("key", base_url=service.url, emulated=True, sandbox="ab12")
    service.on("GET", f"{VOLUMES}/vol1", Reply(row(emulated=True)))
    found = cloud.shelves()[Kind.FILESYSTEM].get("vol1")
    assert found is not None and (found.emulated, found.sandbox) == (True, "ab12")


@pytest.mark.parametrize("paged", [True, False])
def test_the_list_says_who_has_them(volumes: Shelf, service: Standin, paged: bool) -> None:
    pod = {"id": "pod1", "mounts": {"network": [{"volumeId": "vol1", "path": "/data"}]}}
    service.on("GET", "/pods", Reply({"pods": [pod, {"id": "pod2", "mounts": {}}, {"id": "pod3", "mounts": None}]}))
    both = [row(), row("vol2", name="models", type="HIGH_PERFORMANCE")]
    service.on("GET", VOLUMES, Reply({"networkVolumes": both} if paged else both))
    first, second = volumes.all()
    assert (first.attached_to, second.attached_to) == (("pod1",), ())
    assert (second.ref, second.ours, second.price_per_month_usd) == (None, False, None)


def test_an_answer_that_is_no_list_is_not_an_empty_account(volumes: Shelf, service: Standin) -> None:
    service.on("GET", VOLUMES, Reply({"volumes": [row()]}))
    with pytest.raises(ProviderDownError, match="holds no list"):
        volumes.all()
    service.on("GET", f"{VOLUMES}/vol1", Reply({}))
    with pytest.raises(ProviderDownError, match="holds none"):
        volumes.get("vol1")


def test_destroy_waits_until_no_pod_has_it_and_comes_back_at_the_404(volumes: Shelf, service: Standin) -> None:
    used = Reply({"title": "Conflict", "detail": "network volume is in use by a pod"}, 409)
    service.on("DELETE", f"{VOLUMES}/vol1", used, Reply(None, 204))
    service.on("GET", f"{VOLUMES}/vol1", *[Reply(row())] * 3, MISSING)
    volumes.destroy("vol1")
    assert len(service.calls("DELETE")) == 2
    [planned] = volumes.plan_destroy("vol1")
    assert (planned.method, planned.url.endswith("/network-volumes/vol1")) == ("DELETE", True)


def test_gone_already_is_success(volumes: Shelf, service: Standin) -> None:
    service.on("DELETE", VOLUMES, MISSING)
    service.on("GET", VOLUMES, MISSING)
    volumes.destroy("vol1")


def test_an_end_that_cannot_be_confirmed_names_the_volume(volumes: Shelf, service: Standin) -> None:
    service.on("DELETE", VOLUMES, Reply({"title": "Conflict", "detail": "network volume is in use by a pod"}, 409))
    service.on("GET", f"{VOLUMES}/vol1", Reply(row()))
    with pytest.raises(
        LeakError, match=r"network volume vol1 could not .*in use by a pod.*console\.runpod\.io"
    ) as leak:
        volumes.destroy("vol1")
    assert leak.value.instance_id == "vol1"


def test_it_only_grows(volumes: Shelf, service: Standin) -> None:
    service.on("GET", f"{VOLUMES}/vol1", Reply(row()))
    service.on("PATCH", f"{VOLUMES}/vol1", Reply(row(size=200)))
    volumes.grow("vol1", 100)
    assert service.calls("PATCH") == []
    volumes.grow("vol1", 199.5)
    assert [call.body for call in service.calls("PATCH")] == [{"size": 200}]
    with pytest.raises(UsageError, match="has 100 GB, and it can only grow"):
        volumes.grow("vol1", 50)


# -- a pod with a volume -----------------------------------------------------------------------------------------------


def order_of(cloud: RunPod, place: str, *mounts: tuple[str, str]) -> Any:
    offer = an_offer(provider="runpod", id=f"NVIDIA L4|{place}|EU-RO-1|1|8|32|")
    return (cloud.plan_create(offer, a_spec(mounts=mounts))[0].body or {}).get("mounts")


def test_a_pod_is_created_with_its_volume(cloud: RunPod) -> None:
    assert order_of(cloud, "SECURE", ("vol1", "/data")) == {"network": [{"volumeId": "vol1", "path": "/data"}]}
    assert order_of(cloud, "COMMUNITY") is None


def test_a_pod_that_cannot_have_it_is_not_ordered(cloud: RunPod, service: Standin) -> None:
    with pytest.raises(UnsupportedError, match="one network volume at most, not with 2"):
        order_of(cloud, "SECURE", ("a", "/a"), ("b", "/b"))
    # The next offer is tried.
    with pytest.raises(NoCapacityError, match=r"no network volumes on hosts' machines"):
        order_of(cloud, "COMMUNITY", ("vol1", "/data"))
    assert service.seen == []


# -- SSH keys ----------------------------------------------------------------------------------------------------------


def a_key(**changes: Any) -> ResourceSpec:
    return ResourceSpec(**{"name": "gpuyard-laptop", "content": SSH_KEY + "\n", **changes})


def test_a_key_is_added_to_those_of_others_as_they_are(keys: Shelf, service: Standin) -> None:
    account = KeyList(service, THEIRS)
    made = keys.create(a_key())
    assert account.keys == [THEIRS, OURS]
    assert (made.name, made.ours, made.id) == ("gpuyard-laptop", True, keys.all()[1].id)
    assert keys.all()[0].ours is False and re.fullmatch("[0-9a-f]{32}", made.id)
    assert keys.price_per_month_usd(a_key()) == made.price_per_month_usd == 0


def test_a_key_that_is_there_is_not_written_again(keys: Shelf, service: Standin) -> None:
    KeyList(service, THEIRS, f"{SSH_KEY} under another name")
    assert keys.create(a_key()).name == "gpuyard under another name"
    assert keys.plan_create(a_key()) == [] and service.calls("PUT") == []


def test_a_plan_writes_nothing_and_shows_the_whole_list(keys: Shelf, service: Standin) -> None:
    KeyList(service, THEIRS)
    [planned] = keys.plan_create(a_key())
    assert (planned.method, planned.body) == ("PUT", {"keys": [THEIRS, OURS]})
    there = keys.all()[0].id
    assert [call.body for call in keys.plan_destroy(there)] == [{"keys": []}]
    assert keys.plan_destroy("none") == [] and service.calls("PUT") == []


def test_a_key_whose_answer_was_lost_is_found(keys: Shelf, service: Standin) -> None:
    other = "ssh-ed25519 AAAAC3Older gpuyard-laptop"  # of the same name, and another key
    account = KeyList(service, other)
    account.lost = 1
    assert keys.create(a_key()).detail["public_key"] == " ".join(SSH_KEY.split()[:2])
    assert len(service.calls("PUT")) == 1 and account.keys == [other, OURS]


def test_what_others_add_while_a_refusal_is_waited_for_stays(keys: Shelf, service: Standin) -> None:
    account = KeyList(service)
    answers = [Reply({"title": "Too Many Requests"}, 429, {"Retry-After": "1"}), account.put]

    def put(request: Request) -> Reply:
        answer = answers.pop(0)
        if callable(answer):
            return answer(request)
        account.keys = [THEIRS]  # in the meantime
        return answer

    service.on("PUT", KEYS, put)
    keys.create(a_key())
    assert account.keys == [THEIRS, OURS]


def test_a_key_that_somebody_elses_change_has_removed_at_once_is_told(keys: Shelf, service: Standin) -> None:
    account = KeyList(service, THEIRS)
    account.meanwhile = [[THEIRS]]
    with pytest.raises(AmbiguousError, match="somebody else has changed the keys at the same moment"):
        keys.create(a_key())


def test_only_the_one_key_is_removed(keys: Shelf, service: Standin) -> None:
    account = KeyList(service, THEIRS, OURS)
    keys.destroy(keys.all()[1].id)
    assert account.keys == [THEIRS]
    keys.destroy("none")
    assert len(service.calls("PUT")) == 1


def test_a_removal_whose_answer_is_lost_looks_before_it_writes_again(keys: Shelf, service: Standin) -> None:
    account = KeyList(service, OURS)
    account.lost, account.meanwhile = 1, [[THEIRS]]  # carried out, and then somebody else adds a key
    keys.destroy(keys.all()[0].id)
    assert account.keys == [THEIRS] and len(service.calls("PUT")) == 1


def test_a_list_that_is_not_understood_is_never_written(keys: Shelf, service: Standin) -> None:
    service.on("GET", KEYS, Reply({"keys": [{"key": THEIRS}]}))
    with pytest.raises(ProviderDownError, match="holds no list"):
        keys.create(a_key())
    assert service.calls("PUT") == []


@pytest.mark.parametrize(
    "content", ["", "-----BEGIN OPENSSH PRIVATE KEY-----\ncanary\n", "ssh-ed25519 canary\nssh-rsa x"]
)
def test_what_is_no_public_key_goes_nowhere(keys: Shelf, service: Standin, content: str) -> None:
    service.on("GET", KEYS, Reply({"keys": []}))
    spec = a_key(content=content)
    with pytest.raises(UsageError, match="is no public key") as told:
        keys.create(spec)
    assert "canary" not in f"{told.value}{spec!r}" and service.calls("PUT") == []


def test_a_refusal_is_told_as_it_is(keys: Shelf, service: Standin) -> None:
    account = KeyList(service)
    service.on("PUT", KEYS, Reply({"title": "x", "detail": "too many keys"}, 422))
    with pytest.raises(InvalidRequestError, match="too many keys"):
        keys.create(a_key(ref=REF))
    assert account.keys == []
