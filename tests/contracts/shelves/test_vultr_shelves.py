"""What only Vultr's shelves have: volumes that move and grow, tiers, the rules of a firewall group."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpuyard.errors import (
    InvalidRequestError,
    NotFoundError,
    ProviderDownError,
    ProviderError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Query
from gpuyard.providers.cloud import Cloud as Client
from gpuyard.providers.resources import Kind, ResourceSpec, Shelf
from gpuyard.sandbox.clouds.vultr.holdings import VultrHoldings
from gpuyard.sandbox.model import Holding, Json, Phase

from .emulated import LOST, Emulated, Trouble

REF = RunRef("miniprover-0", "miniprover")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx me"
VOLUME = ResourceSpec("", REF, region="ewr", size_gb=1000, options={"block_type": "storage_opt"})
BLOCK = r"/v2/blocks/[^/]+"


@pytest.fixture
def vultr(emulated: Emulated) -> Client:
    return emulated.client("vultr")


@pytest.fixture
def volumes(vultr: Client) -> Shelf:
    return vultr.shelves()[Kind.VOLUME]


def rent(vultr: Client, region: str = "ewr") -> str:
    offer = next(offer for offer in vultr.offers(Query()) if offer.region == region)
    return vultr.create(offer, CreateSpec(ref=REF, ssh_public_key=KEY)).id


def billed(emulated: Emulated, what: str) -> float:
    lines = [line for line in emulated.cloud.statement()["billable"] if line["what"] == what]
    return float(sum(line["price_per_hour_usd"] for line in lines)) * 720


def test_v5_a_terabyte_through_its_whole_life(emulated: Emulated, vultr: Client, volumes: Shelf) -> None:
    first, second = rent(vultr), rent(vultr)
    start, told = emulated.clock(), list[str]()
    volume = volumes.create(VOLUME, progress=told.append)
    assert volume.ready and emulated.clock() - start >= 4, "it comes back when the volume is active"
    assert (volume.name, volume.ref, volume.size_gb, volume.region) == (REF.label, REF, 1000, "ewr")
    assert volume.price_per_month_usd == volumes.price_per_month_usd(VOLUME) == 25
    assert billed(emulated, "volume") == pytest.approx(25)
    assert volume.detail["device"].startswith("/dev/disk/by-id/virtio-ewr-")

    rental = emulated.cloud.world.find("vultr", first)
    assert rental is not None
    rental.phase = Phase.RUNNING
    volumes.attach(volume.id, first)
    seen = volumes.get(volume.id)
    assert seen is not None and seen.attached_to == (first,) and rental.phase is Phase.RUNNING, "it was not restarted"
    sent = len(emulated.wire.writes)
    volumes.attach(volume.id, first)  # it has it already
    with pytest.raises(InvalidRequestError, match=f"belongs to instance {first}: detach it there first"):
        volumes.attach(volume.id, second)
    assert len(emulated.wire.writes) == sent

    volumes.grow(volume.id, 2000)
    assert billed(emulated, "volume") == pytest.approx(50)
    volumes.grow(volume.id, 2000)
    for size in (1999, 2000.5):
        with pytest.raises(InvalidRequestError, match="has 2000 GB, and only grows, by whole GB"):
            volumes.grow(volume.id, size)

    vultr.destroy(first)
    seen = volumes.get(volume.id)
    assert seen is not None and seen.attached_to == (), "it survives its machine"
    volumes.attach(volume.id, second)
    volumes.detach(volume.id)
    volumes.detach(volume.id)
    volumes.destroy(volume.id)
    assert volumes.all() == [] and billed(emulated, "volume") == 0


def test_a_volume_is_taken_from_its_instance_before_it_ends(emulated: Emulated, vultr: Client, volumes: Shelf) -> None:
    volume = volumes.create(VOLUME)
    volumes.attach(volume.id, rent(vultr))
    planned = [(call.method, call.url.rpartition("/v2")[2]) for call in volumes.plan_destroy(volume.id)]
    assert planned == [("POST", f"/blocks/{volume.id}/detach"), ("DELETE", f"/blocks/{volume.id}")]
    emulated.wire.requests.clear()
    volumes.destroy(volume.id)
    assert emulated.wire.writes == [(method, f"/v2{path}") for method, path in planned]
    assert volumes.all() == [] and len(vultr.instances()) == 1


@pytest.mark.parametrize("status", [LOST, 500])
@pytest.mark.parametrize("action", ["attach", "detach"])
def test_a_move_whose_answer_is_lost_has_happened(
    emulated: Emulated, vultr: Client, volumes: Shelf, action: str, status: int
) -> None:
    volume, instance = volumes.create(VOLUME), rent(vultr)
    if action == "detach":
        volumes.attach(volume.id, instance)
    emulated.wire.troubles.append(Trouble([("POST", f"{BLOCK}/{action}")], status, acts=True))
    if action == "attach":
        volumes.attach(volume.id, instance)
    else:
        volumes.detach(volume.id)
    seen = volumes.get(volume.id)
    assert seen is not None and seen.attached_to == ((instance,) if action == "attach" else ())


def test_a_move_that_never_happens_is_an_error_with_the_id(emulated: Emulated, vultr: Client, volumes: Shelf) -> None:
    volume, instance = volumes.create(VOLUME), rent(vultr)
    emulated.wire.troubles.append(Trouble([("POST", f"{BLOCK}/attach")], 200, acts=False))
    with pytest.raises(ProviderDownError, match=f"block storage {volume.id} is active, after 60 s"):
        volumes.attach(volume.id, instance)


def test_a_volume_only_goes_to_an_instance_of_its_region(emulated: Emulated, vultr: Client, volumes: Shelf) -> None:
    volume, elsewhere = volumes.create(VOLUME), rent(vultr, "ord")
    sent = len(emulated.wire.writes)
    with pytest.raises(InvalidRequestError, match=f"is in ewr, and instance {elsewhere} in ord: choose an instance in"):
        volumes.attach(volume.id, elsewhere)
    with pytest.raises(NotFoundError, match="Vultr has no instance nothing"):
        volumes.attach(volume.id, "nothing")
    for call in (volumes.detach, lambda gone: volumes.attach(gone, elsewhere), lambda gone: volumes.grow(gone, 3000)):
        with pytest.raises(NotFoundError, match="Vultr has no block storage gone"):
            call("gone")
    assert len(emulated.wire.writes) == sent


NOTHING = {"region": "", "size_gb": None, "options": {}}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (Kind.VOLUME, {"ref": None}, "A Vultr block storage needs a name."),
        (Kind.VOLUME, {"region": ""}, "A Vultr block storage needs a region."),
        (Kind.VOLUME, {"region": "mars"}, "region=mars has no block storage of the type storage_opt at Vultr; these"),
        (
            Kind.VOLUME,
            {"region": "fra", "options": {}},
            "region=fra has no block storage of the type high_perf at Vultr; these have it: ams, ewr, nrt, ord, sjc.",
        ),
        (Kind.VOLUME, {"size_gb": None}, "A Vultr block storage needs a size in GB."),
        (Kind.VOLUME, {"size_gb": 39}, "size 39 GB: a Vultr block storage has 40 to 40000 GB. Choose one."),
        (Kind.VOLUME, {"size_gb": 9, "options": {}}, "size 9 GB: a Vultr block storage has 10 to 10000 GB."),
        (Kind.VOLUME, {"source": "x"}, "A Vultr block storage has no source: leave it out."),
        (Kind.VOLUME, {"options": {"tier": "x"}}, "A Vultr block storage has no option tier: it knows block_type."),
        (
            Kind.VOLUME,
            {"options": {"block_type": "nvme"}},
            "block_type='nvme' of a Vultr block storage is not high_perf or storage_opt.",
        ),
        (Kind.SNAPSHOT, NOTHING, "A Vultr snapshot needs an instance as its source."),
        (Kind.SSH_KEY, NOTHING, "is no public key"),
        (Kind.FIREWALL, {"region": ""}, "A Vultr firewall group has no size: leave it out."),
    ],
)
def test_what_cannot_be_made_is_one_sentence_before_anything_is_sent(
    emulated: Emulated, vultr: Client, kind: Kind, changes: dict[str, Any], words: str
) -> None:
    shelf, spec = vultr.shelves()[kind], dataclasses.replace(VOLUME, **changes)
    for call in (shelf.create, shelf.plan_create):
        with pytest.raises((UsageError, UnsupportedError)) as caught:
            call(spec)
        assert words in str(caught.value)
    assert emulated.wire.writes == []


def test_the_price_of_a_tier(volumes: Shelf) -> None:
    fast = dataclasses.replace(VOLUME, options={"block_type": "high_perf"})
    assert volumes.price_per_month_usd(fast) == volumes.create(fast).price_per_month_usd == 100
    assert volumes.price_per_month_usd(dataclasses.replace(VOLUME, options={})) == 100


def test_a_volume_that_does_not_become_active_is_ended_again(emulated: Emulated, volumes: Shelf) -> None:
    emulated.cloud.settings.boot_seconds = 10_000
    told: list[str] = []
    with pytest.raises(ProviderDownError, match="is pending, after 300 s"):
        volumes.create(VOLUME, progress=told.append)
    assert volumes.all() == [] and emulated.cloud.statement()["billable"] == []
    assert any("is pending." in line for line in told) and any("Destroying block storage" in line for line in told)


def test_a_volume_that_is_not_answered_about_is_waited_for(emulated: Emulated, volumes: Shelf) -> None:
    emulated.wire.troubles.append(Trouble([("GET", BLOCK)], 503, acts=False, times=12))
    assert volumes.create(VOLUME).ready
    assert len(volumes.all()) == 1


def test_a_snapshot_is_pending_first(emulated: Emulated, vultr: Client) -> None:
    shelf, instance = vultr.shelves()[Kind.SNAPSHOT], rent(vultr)
    made = shelf.create(ResourceSpec("", REF, source=instance))
    assert (made.ready, made.status_text, made.size_gb, made.price_per_month_usd) == (False, "pending", None, None)
    emulated.clock.sleep(4)
    done = shelf.get(made.id)
    assert done is not None and (done.ready, done.status_text, done.ref) == (True, "complete", REF)
    assert done.size_gb and done.price_per_month_usd == pytest.approx(done.size_gb * 0.05)
    assert billed(emulated, "snapshot") == pytest.approx(done.price_per_month_usd)
    vultr.destroy(instance)
    assert [one.id for one in shelf.all()] == [made.id], "it outlives its machine"


def test_a_snapshot_that_is_listed_as_deleted_is_gone(vultr: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, instance = vultr.shelves()[Kind.SNAPSHOT], rent(vultr)
    kept, gone = (shelf.create(ResourceSpec(name, source=instance)) for name in ("kept", "gone"))
    row_of = VultrHoldings.snapshot_row

    def row(self: VultrHoldings, snapshot: Holding) -> Json:
        return {**row_of(self, snapshot), **({"status": "deleted"} if snapshot.id == gone.id else {})}

    monkeypatch.setattr(VultrHoldings, "snapshot_row", row)
    assert [one.id for one in shelf.all()] == [kept.id] and shelf.get(gone.id) is None


def test_a_key_says_itself_and_is_as_it_was_given(vultr: Client) -> None:
    shelf = vultr.shelves()[Kind.SSH_KEY]
    made = shelf.create(ResourceSpec("laptop", content=KEY))
    public = " ".join(KEY.split()[:2])
    assert (made.name, made.ours, made.detail["public_key"]) == ("laptop", False, public)
    assert shelf.create(ResourceSpec("again", content=KEY)) == made, "the account has it already"
    assert vultr.ssh_keys() == [" ".join([*KEY.split()[:2], "laptop"])]


def rules(emulated: Emulated) -> list[tuple[Any, ...]]:
    (group,) = emulated.cloud.world.held("vultr", "firewall")
    names = ("ip_type", "protocol", "port", "subnet", "subnet_size", "action")
    return [tuple(rule[name] for name in names) for rule in group.item_record["rules"]]


SSH_ONLY = [("v4", "tcp", "22", "0.0.0.0", 0, "accept"), ("v6", "tcp", "22", "::", 0, "accept")]


def test_v17_a_firewall_group_lets_ssh_in_and_nothing_else(emulated: Emulated, vultr: Client) -> None:
    made = vultr.shelves()[Kind.FIREWALL].create(ResourceSpec("", REF))
    assert rules(emulated) == SSH_ONLY and made.ready and made.status_text == "2 rules" and made.ref == REF


@pytest.mark.parametrize("status", [LOST, 500, 429])
@pytest.mark.parametrize("acts", [True, False])
def test_rules_are_added_once_whatever_becomes_of_the_answers(
    emulated: Emulated, vultr: Client, status: int, acts: bool
) -> None:
    emulated.wire.troubles.append(Trouble([("POST", r"/v2/firewalls/[^/]+/rules")], status, acts, times=2))
    vultr.shelves()[Kind.FIREWALL].create(ResourceSpec("", REF))
    assert sorted(rules(emulated)) == SSH_ONLY


@pytest.mark.parametrize("status", [500, 400])
def test_a_group_without_its_rules_is_ended_again(emulated: Emulated, vultr: Client, status: int) -> None:
    emulated.wire.troubles.append(Trouble([("POST", r"/v2/firewalls/[^/]+/rules")], status, acts=False, times=99))
    with pytest.raises(ProviderError):
        vultr.shelves()[Kind.FIREWALL].create(ResourceSpec("", REF))
    assert vultr.shelves()[Kind.FIREWALL].all() == []
