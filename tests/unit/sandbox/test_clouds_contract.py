"""What every cloud keeps, over its client and its emulation: the registry's, and a toy that is added here.

Each of the money-safe promises, for instances: a label from the first moment, at most one machine of a create, an end
that is confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import Apis, serve
from toy_cloud import client, emulation

from gpuyard import config, market
from gpuyard.errors import AuthenticationError, LeakError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import OWN, CreateSpec, Instance, Provider, Query
from gpuyard.providers.http import Patience
from gpuyard.providers.rental import Waits
from gpuyard.renting import survey
from gpuyard.sandbox.clouds import BASE_PATHS, EMULATED
from gpuyard.sandbox.model import Fault
from gpuyard.sandbox.server import build

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx gpuyard"
QUICK = Waits(first_delay=0.01, longest_delay=0.05, throttled_delay=0.01, between_creates=0.0, unlisted=0.5)
PATIENT = Patience(tries=4, first_delay=0.01, longest_delay=0.02)
# Clouds that are reached through SkyPilot have no emulation of their own.
NAMES = [name for name in config.CLOUDS if name not in (OWN, "skypilot")]
SPEC = CreateSpec(RunRef("contract-0", "contract", "search-1"), KEY)


@dataclass
class Contract:
    """One cloud with its emulation, which fails on command."""

    cloud: Provider
    url: str
    apis: Apis

    def fail(self, kind: str, place: str = "", count: int = 1) -> None:
        """Let the next requests of a kind go wrong."""
        self.apis.cloud.add_fault(Fault(kind, self.cloud.name, count, place=place))  # type: ignore[arg-type]

    def connect(self, key: str) -> Provider:
        """Return the client with another key, made as the configuration makes it."""
        return config.CLOUDS[self.cloud.name].make(key, base_url=self.url, patience=PATIENT, waits=QUICK)

    def rent(self) -> Instance:
        """Rent the cheapest machine."""
        query = Query(market="on-demand")
        return self.cloud.create(market.choose(self.cloud.offers(query), query)[0], SPEC)

    def held(self) -> list[str]:
        """Return the ids of what the cloud lists."""
        return [one.id for one in self.cloud.instances()]


@pytest.fixture(params=[*NAMES, "toy"])
def contract(request: Any, apis: Apis, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Contract]:
    name = request.param
    settings = apis.cloud.settings
    if name == "toy":
        # The one row of the registry, and the one of the sandbox.
        row = config.Cloud(client.Toy, client.ToyKey)
        monkeypatch.setitem(config.CLOUDS, "toy", row)
        app: Any = build(apis.cloud, tmp_path, [*EMULATED.values(), emulation.EmulatedToy()])
        key, path = emulation.KEY, emulation.EmulatedToy.base_path
    else:
        app, key = build(apis.cloud, tmp_path), getattr(settings, f"{name}_key")
        document = settings.sandbox_json(1, BASE_PATHS)["endpoints"]
        assert isinstance(document, dict)
        path = document[name].removeprefix(f"http://127.0.0.1:{settings.port}")
    with serve(app) as root:
        url = root + path
        yield Contract(config.CLOUDS[name].make(key, base_url=url, patience=PATIENT, waits=QUICK), url, apis)


def test_offers_have_a_price_and_a_name_of_their_own(contract: Contract) -> None:
    offers = contract.cloud.offers(Query())
    assert offers and all(offer.provider == contract.cloud.name for offer in offers)
    assert all(offer.price_per_hour_usd > 0 for offer in offers)
    assert len({(offer.id, offer.market) for offer in offers}) == len(offers)


def test_a_machine_has_its_label_from_the_first_moment_and_is_found_by_it(contract: Contract) -> None:
    planned = contract.cloud.plan_create(contract.cloud.offers(Query())[0], SPEC)
    assert planned and planned[-1].url.startswith(contract.url) and contract.held() == []
    made = contract.rent()
    assert (made.ref, made.provider, contract.held()) == (SPEC.ref, contract.cloud.name, [made.id])
    assert [one.id for one in survey.find([contract.cloud], "contract-0", "search-1")] == [made.id]
    seen = contract.cloud.instance(made.id)
    assert seen is not None and seen.ref == SPEC.ref and seen.price_per_hour_usd > 0


@pytest.mark.parametrize("fault", ["lost-answer", "error-after", "throttle"])
def test_at_most_one_machine_comes_of_a_create(contract: Contract, fault: str) -> None:
    contract.fail(fault, "create")
    made = contract.rent()
    assert contract.held() == [made.id] and contract.apis.cloud.world.faults == []


def test_an_end_is_confirmed_also_when_it_is_refused_at_first(contract: Contract) -> None:
    made = contract.rent()
    for fault in ("throttle", "server-error", "no-network"):
        contract.fail(fault, "destroy", PATIENT.tries)  # more than one question is tried
    assert [call.url.startswith(contract.url) for call in contract.cloud.plan_destroy(made.id)] == [True]
    contract.cloud.destroy(made.id)
    assert contract.apis.cloud.world.faults == []
    assert contract.held() == [] and contract.cloud.instance(made.id) is None
    contract.cloud.destroy(made.id)  # what is gone already is success


def test_a_wrong_key_is_one_and_never_an_empty_account(contract: Contract) -> None:
    made = contract.rent()
    stranger = contract.connect("wrong-key")
    for ask in (stranger.instances, lambda: stranger.instance(made.id), lambda: stranger.destroy(made.id)):
        with pytest.raises((AuthenticationError, LeakError)) as error:
            ask()
        assert "wrong-key" not in str(error.value)
    assert contract.held() == [made.id]


def test_the_configuration_finds_a_key_of_every_cloud(contract: Contract) -> None:
    name = contract.cloud.name
    (found,) = config.connect(
        name, sandbox=False, env={config.CLOUDS[name].credential.variable: "k" * 40, "HOME": "/nowhere"}
    )
    assert isinstance(found, type(contract.cloud))
