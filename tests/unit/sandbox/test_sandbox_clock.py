"""The clouds' clock is set forward on command, and the clouds are made as they were at first."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import Apis

from gpuyard.sandbox.model import Phase, World


def control(apis: Apis, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    return apis.client.request("POST", f"/sandbox{path}", json=body, headers=headers)


def test_an_hour_set_forward_is_an_hour_on_the_bill_and_ends_a_boot_at_once(apis: Apis) -> None:
    contract = apis.rent_vast()
    began = time.monotonic()
    rental = apis.cloud.world.find("vast", str(contract))
    assert rental is not None and rental.phase is Phase.BOOTING
    while not rental.made:  # from here on it waits for the end of its boot
        time.sleep(0.01)
    before = apis.cloud.clock()
    assert control(apis, "/clock", {"advance_s": 10}).json() == {"now": before + 10}
    while rental.phase is Phase.BOOTING:
        assert time.monotonic() - began < 5, "it boots for ten seconds of this machine's"
        time.sleep(0.01)
    control(apis, "/clock", {"advance_s": 3600})
    (gpu,) = [line for line in apis.cloud.statement()["lines"] if line["what"] == "gpu"]
    assert gpu["amount_usd"] == pytest.approx(gpu["price_per_hour_usd"])
    assert World.load(apis.cloud._file).clock_ahead_s == 3610
    assert control(apis, "/clock", {"advance_s": -1}).status_code == 422


def test_a_reset_leaves_nothing_and_gives_no_id_out_again(apis: Apis) -> None:
    first = apis.rent_vast()
    apis.rent_vultr()
    control(apis, "/faults", {"kind": "no-capacity", "provider": "vultr", "count": 3})
    control(apis, "/clock", {"advance_s": 60})
    assert control(apis, "/reset").json() == {}
    assert apis.vast("GET", "/v1/instances/").json()["instances"] == []
    assert apis.vultr("GET", "/instances").json()["instances"] == []
    statement = apis.cloud.statement()
    assert (statement["lines"], statement["total_usd"]) == ([], 0)
    assert (apis.cloud.world.faults, apis.cloud.world.clock_ahead_s) == ([], 0.0)
    asks = apis.vast("POST", "/v0/bundles/", {}).json()["offers"]
    assert apis.rent_vast(asks[0]["id"]) > first
