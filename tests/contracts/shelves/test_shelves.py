"""What holds for everything that an account may hold, at every cloud that the sandbox has.

A cloud joins by :meth:`Provider.shelves`. Where a kind needs something else than most clouds ask for, it has a row in
``NEEDS``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest

from gpuyard.config import CLOUDS
from gpuyard.errors import AmbiguousError, LeakError
from gpuyard.formats.label import RunRef
from gpuyard.providers import vultr
from gpuyard.providers.base import CreateSpec, Query
from gpuyard.providers.cloud import Cloud as Client
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.sandbox.model import Fault

from .emulated import LOST, Emulated, Trouble, emulated_names, patterns

OURS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ours"
THEIRS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAISampleXSampleXSampleXSampleXSampleXSampleXSa theirs"
REF = RunRef("miniprover-0", "miniprover")
OF_A_RUN = (Kind.VOLUME, Kind.FILESYSTEM, Kind.SNAPSHOT, Kind.FIREWALL)
REGIONS = {"vultr": "ewr", "lambda": "us-east-1", "runpod": "EU-RO-1"}
NEEDS: dict[tuple[str, Kind], dict[str, Any]] = {("runpod", Kind.FILESYSTEM): {"size_gb": 100.0}}
"""What a cloud's kind is made with, where that is not what most clouds take: fields of a spec."""
ONE_OF_A_NAME = {("lambda", Kind.FILESYSTEM)}
"""What there cannot be two of for one run, beside what belongs to the account."""
SMALL_PAGES = {"vultr": (vultr, "_PAGE", 2)}
"""Where a client says itself how long a page of a list is."""


def shelves_of(name: str) -> Mapping[Kind, Shelf]:
    """Return a cloud's shelves; nothing is sent for them."""
    return CLOUDS[name].make("key", base_url="http://127.0.0.1:9").shelves()


EVERY = [pytest.param(name, kind, id=f"{name}-{kind}") for name in emulated_names() for kind in shelves_of(name)]


@dataclasses.dataclass
class Case:
    """A cloud's shelf of one kind, and what to make on it."""

    clouds: Emulated
    client: Client
    shelf: Shelf
    spec: ResourceSpec  # ours
    foreign: ResourceSpec  # somebody else's

    @property
    def found(self) -> list[Resource]:
        """What there is of ours."""
        return [one for one in self.shelf.all() if one.name != self.foreign.name]

    def let(self, which: str, status: int, *, acts: bool, times: int = 1) -> None:
        """Let the first request of a create, or the last one of a destroy, come out wrong."""
        if which == "create":
            calls = patterns(self.shelf.plan_create(self.spec))[:1]
        else:
            calls = patterns(self.shelf.plan_destroy(which))[-1:]
        self.clouds.wire.requests.clear()
        self.clouds.wire.troubles.append(Trouble(calls, status, acts, times))


@pytest.fixture
def case(request: pytest.FixtureRequest, emulated: Emulated) -> Case:
    name, kind = request.param
    client = emulated.client(name)
    common: dict[str, Any] = {}
    if kind in (Kind.VOLUME, Kind.FILESYSTEM):
        common |= {"region": REGIONS.get(name, ""), "size_gb": 100.0}
    if kind is Kind.SNAPSHOT:
        offer = next(offer for offer in client.offers(Query()) if offer.region == REGIONS.get(name, offer.region))
        common["source"] = client.create(offer, CreateSpec(ref=REF, ssh_public_key=OURS)).id
    common |= NEEDS.get((name, kind), {})
    contents = {Kind.SSH_KEY: (OURS, THEIRS), Kind.VARIABLE: ("canary-value-of-ours", "canary-value-of-theirs")}
    own, other = contents.get(kind, ("", ""))
    names = ("OUR_TOKEN", "THEIR_TOKEN") if kind is Kind.VARIABLE else ("gpuyardtest", "somebodyelses")
    spec = ResourceSpec(name=names[0], ref=REF if kind in OF_A_RUN else None, content=own, **common)
    foreign = ResourceSpec(name=names[1], content=other, **common)
    return Case(emulated, client, client.shelves()[kind], spec, foreign)


def each(test: Any) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in EVERY], indirect=True)(test)


def test_some_cloud_has_shelves() -> None:
    assert EVERY


@each
def test_it_is_made_listed_and_ended_as_planned(case: Case) -> None:
    shelf, wire = case.shelf, case.clouds.wire
    wire.requests.clear()
    planned = patterns(shelf.plan_create(case.spec))
    assert planned and wire.writes == [], "a plan changes nothing"
    noted: list[int] = []
    made = shelf.create(dataclasses.replace(case.spec, before_request=lambda: noted.append(len(wire.writes))))
    assert noted == [0], "what is about to be made is noted before"
    assert [Trouble([call], 0, False).strikes(*write) for call, write in zip(planned, wire.writes, strict=True)]
    assert (made.provider, made.kind, made.emulated) == (case.client.name, shelf.kind, True)
    assert made.ref == case.spec.ref and (made.ours or case.spec.ref is None)
    assert [one.place for one in case.found] == [made.place]
    seen = shelf.get(made.id)
    assert seen is not None and (seen.place, seen.name, seen.ref) == (made.place, made.name, made.ref)
    assert shelf.kind.bills or made.price_per_month_usd == 0

    wire.requests.clear()
    planned = patterns(shelf.plan_destroy(made.id))
    assert planned and wire.writes == [], "a plan changes nothing"
    shelf.destroy(made.id)
    assert [Trouble([call], 0, False).strikes(*write) for call, write in zip(planned, wire.writes, strict=True)]
    assert shelf.get(made.id) is None and case.found == []
    shelf.destroy(made.id)  # gone already is success


@each
@pytest.mark.parametrize("status", [LOST, 500])
def test_an_answer_that_is_lost_makes_no_second(case: Case, status: int) -> None:
    case.let("create", status, acts=True)
    first = patterns(case.shelf.plan_create(case.spec))[0]
    made = case.shelf.create(case.spec)
    assert [one.place for one in case.found] == [made.place]
    sent = [write for write in case.clouds.wire.writes if Trouble([first], 0, False).strikes(*write)]
    assert len(sent) == 1, "a create whose answer was lost is not repeated"


@each
def test_a_lost_request_is_an_error_and_no_second_request(case: Case) -> None:
    case.let("create", LOST, acts=False)
    start = case.clouds.clock()
    with pytest.raises(AmbiguousError, match=r"No .* has shown up\. Nothing else was rented"):
        case.shelf.create(case.spec)
    assert case.clouds.clock() - start >= 30, "it is looked for as long as it may be unlisted"
    assert case.found == [] and len(case.clouds.wire.writes) == 1


@each
@pytest.mark.parametrize("acts", [True, False])
def test_a_refusal_for_asking_too_often_makes_one_in_all(case: Case, acts: bool) -> None:
    case.let("create", 429, acts=acts)
    made = case.shelf.create(case.spec)
    assert [one.place for one in case.found] == [made.place]


@each
def test_what_was_there_before_is_not_taken_for_the_new_one(case: Case) -> None:
    if case.spec.ref is None or (case.client.name, case.shelf.kind) in ONE_OF_A_NAME:
        pytest.skip("there are no two of the same name")
    old = case.shelf.create(case.spec)
    case.let("create", LOST, acts=True)
    new = case.shelf.create(dataclasses.replace(case.spec, known_ids=frozenset({old.id})))
    assert new.id != old.id and {one.id for one in case.found} == {old.id, new.id}


@each
def test_an_end_that_is_refused_at_first_comes_true(case: Case) -> None:
    made = case.shelf.create(case.spec)
    for status in (429, 500, LOST):
        case.let(made.id, status, acts=False, times=3)  # together more than a client repeats a request by itself
    case.shelf.destroy(made.id)
    assert case.found == []


@each
def test_an_end_whose_answer_is_lost_is_confirmed(case: Case) -> None:
    made = case.shelf.create(case.spec)
    case.let(made.id, LOST, acts=True)
    case.shelf.destroy(made.id)
    assert case.found == []


@each
@pytest.mark.parametrize("status", [200, 500])
def test_an_end_that_never_comes_is_an_error_with_the_id(case: Case, status: int) -> None:
    made = case.shelf.create(case.spec)
    case.let(made.id, status, acts=False, times=10_000)
    with pytest.raises(LeakError) as caught:
        case.shelf.destroy(made.id)
    assert made.id in str(caught.value) and case.client.console_url in str(caught.value)
    assert caught.value.instance_id == made.id
    assert [one.id for one in case.found] == [made.id]


@each
def test_an_end_without_a_network_is_an_error_with_the_id(case: Case) -> None:
    made = case.shelf.create(case.spec)
    case.client._api.base_url = "http://127.0.0.1:9"
    with pytest.raises(LeakError, match=rf"{re.escape(made.id)}.* cannot be reached"):
        case.shelf.destroy(made.id)


@each
def test_it_ends_while_the_cloud_refuses_everything_for_a_while(case: Case) -> None:
    made = case.shelf.create(case.spec)
    for kind in ("throttle", "server-error"):
        case.clouds.cloud.add_fault(Fault(kind, case.client.name, 3))  # type: ignore[arg-type]
    case.shelf.destroy(made.id)
    assert case.found == []


@each
def test_what_is_not_ours_stays(case: Case) -> None:
    foreign = case.shelf.create(case.foreign)
    assert foreign.ref is None and not foreign.ours
    case.clouds.clock.sleep(60)  # it is past its making
    before = case.shelf.get(foreign.id)
    case.shelf.destroy(case.shelf.create(case.spec).id)
    case.let("create", LOST, acts=True)
    case.shelf.destroy(case.shelf.create(case.spec).id)
    assert not any(foreign.id in path for _, path in case.clouds.wire.writes)
    after = [one for one in case.shelf.all() if one.name == case.foreign.name]
    assert before is not None and [one.place for one in after] == [foreign.place] and after == [before]


@each
def test_a_list_is_read_over_all_pages(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.client.name in SMALL_PAGES:
        monkeypatch.setattr(*SMALL_PAGES[case.client.name])
    specs = [case.spec, case.foreign]
    if case.spec.ref is not None:
        specs += [dataclasses.replace(case.spec, ref=RunRef(f"run-{number}", "miniprover")) for number in range(3)]
    made = {case.shelf.create(spec).id for spec in specs}
    listed = [one.id for one in case.shelf.all()]
    assert len(made) == len(specs) and sorted(listed) == sorted(made)
