"""The key that an instance has of its own: it serves that instance, and nothing else of the account."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Apis
from test_sandbox_runpod import rent

from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.model import Phase, ProviderName


def with_key(apis: Apis, key: str, method: str, path: str, body: Any = None) -> Any:
    return apis.client.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})


def own_key(apis: Apis, provider: ProviderName, rental_id: str) -> str:
    """Return the key as the instance's own environment has it."""
    rental = apis.cloud.world.find(provider, rental_id)
    assert rental is not None
    environment = EMULATED[provider].boot(rental, apis.cloud.settings.instance_key(provider, rental_id)).environment
    return environment["CONTAINER_API_KEY" if provider == "vast" else "RUNPOD_API_KEY"]


@pytest.mark.parametrize("provider", ["vast", "runpod"])
def test_an_instance_can_end_itself_and_nobody_else_x8(apis: Apis, provider: ProviderName) -> None:
    if provider == "vast":
        mine, other = str(apis.rent_vast()), str(apis.rent_vast(ask=11877000))
        one, everything = "/api/v0/instances/{}/", "/api/v1/instances/"
    else:
        mine, other = rent(apis), rent(apis)
        one, everything = "/runpod/v2/pods/{}", "/runpod/v2/pods"
    key = own_key(apis, provider, mine)
    assert key and key not in (own_key(apis, provider, other), apis.cloud.settings.vast_key)
    assert with_key(apis, key, "GET", one.format(mine)).status_code == 200
    for method in ("GET", "DELETE"):
        assert with_key(apis, key, method, one.format(other)).status_code == 403
    assert with_key(apis, key, "GET", everything).status_code == 403
    assert with_key(apis, f"{key}x", "DELETE", one.format(mine)).status_code in (401, 404)
    assert with_key(apis, key, "DELETE", one.format(mine)).status_code in (200, 204)
    phases = {one.id: one.phase for one in apis.cloud.world.rentals}
    assert phases[mine] is Phase.GONE and phases[other] is not Phase.GONE
    # What is gone has no key any more.
    assert with_key(apis, key, "GET", one.format(mine)).status_code in (401, 404)


def test_an_instances_own_key_rents_nothing(apis: Apis) -> None:
    key = own_key(apis, "vast", str(apis.rent_vast()))
    assert with_key(apis, key, "PUT", "/api/v0/asks/11877000/", {"image": "a/b", "disk": 20}).status_code == 403
    key = own_key(apis, "runpod", rent(apis))
    assert with_key(apis, key, "POST", "/runpod/v2/pods", {}).status_code == 403
    assert with_key(apis, key, "PUT", "/runpod/v2/account/ssh-keys", {"keys": []}).status_code == 403
    assert len(apis.cloud.world.rentals) == 2
