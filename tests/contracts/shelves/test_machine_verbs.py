# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be asked of a machine that lives: reboot, another bid, its log; each at every cloud of the sandbox."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gpuyard.errors import UnsupportedError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.providers import runpod
from gpuyard.providers.base import CreateSpec, Instance, Query, State
from gpuyard.sandbox.cloud import GPU_LINE
from gpuyard.sandbox.model import Phase

from .emulated import Emulated, emulated_names
from .test_shelves import OURS

LOG = [f"line {number}" for number in range(1, 6)]


def rented(emulated: Emulated, name: str, market: str = "on-demand") -> tuple[Any, Instance]:
    """Return a client, and a machine that runs."""
    client = emulated.client(name)
    offer = next(one for one in client.offers(Query()) if one.market == market)
    made = client.create(offer, CreateSpec(RunRef("a-0", "a"), OURS))
    await_phase(emulated, name, made.id, Phase.RUNNING)
    return client, made


def await_phase(emulated: Emulated, name: str, instance_id: str, phase: Phase) -> Any:
    """Wait until the emulated machine is there; the clouds' clock goes on meanwhile."""
    rental = emulated.cloud.world.find(name, instance_id)
    assert rental
    deadline = time.monotonic() + 30
    while rental.phase is not phase:
        assert time.monotonic() < deadline, rental
        emulated.cloud.advance(1.0)
        time.sleep(0.01)
    return rental


@pytest.mark.parametrize("name", emulated_names())
def test_a_machine_is_rebooted_and_stays_the_same(emulated: Emulated, name: str) -> None:
    client, made = rented(emulated, name)
    client.reboot(made.id)
    rental = emulated.cloud.world.find(name, made.id)
    assert rental and rental.boot == "reboot"
    await_phase(emulated, name, made.id, Phase.RUNNING)
    assert [one.id for one in client.instances()] == [made.id]


@pytest.mark.parametrize("name", emulated_names())
def test_a_bid_is_changed_where_there_are_bids(emulated: Emulated, name: str) -> None:
    if name != "vast":
        with pytest.raises(UnsupportedError, match="takes no bids"):
            emulated.client(name).change_bid("1", 0.5)
        return
    client, made = rented(emulated, name, "interruptible")
    rental = emulated.cloud.world.find(name, made.id)
    assert rental and rental.bid
    least = rental.bid
    client.change_bid(made.id, least * 2)
    assert rental.bid == pytest.approx(least * 2)
    prices = [line.price_per_hour_usd for line in rental.lines if line.what == GPU_LINE]
    assert prices == pytest.approx([least, least * 2]) and client.instance(made.id).price_per_hour_usd > least * 2
    client.change_bid(made.id, least / 2)
    assert client.instance(made.id).state is State.PREEMPTED
    client.change_bid(made.id, least * 2)
    await_phase(emulated, name, made.id, Phase.RUNNING)
    with pytest.raises(UsageError, match=r"bid=33: Vast\.ai takes \$0\.001 to \$32 an hour"):
        client.change_bid(made.id, 33.0)
    fixed = client.create(
        next(one for one in client.offers(Query()) if one.market == "on-demand"), CreateSpec(RunRef("b-0", "b"), OURS)
    )
    with pytest.raises(UsageError, match="is on demand, and nothing is bid for it"):
        client.change_bid(fixed.id, 0.5)


@pytest.mark.parametrize("name", emulated_names())
def test_a_log_comes_from_the_cloud_where_it_keeps_one(
    emulated: Emulated, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At Vast the file is not there at the first look; at RunPod the stream never ends by itself."""
    monkeypatch.setattr(runpod, "_LOG_QUIET_S", 0.3)
    if name not in ("vast", "runpod"):
        with pytest.raises(UnsupportedError, match="keeps no logs of its instances"):
            emulated.client(name).logs("1", 10)
        return
    client, made = rented(emulated, name)
    engine: Any = emulated.cloud.engine
    engine.logs.side_effect = lambda _container, lines: LOG[-lines:]
    assert client.logs(made.id, 3) == LOG[-3:]
    assert client.logs(made.id, 100) == LOG
    engine.logs.side_effect = lambda *_: []
    assert client.logs(made.id, 10) == []


def test_bare_metal_is_offered_rented_listed_billed_and_ended_like_any_machine(emulated: Emulated) -> None:
    client = emulated.client("vultr")
    offers = [one for one in client.offers(Query()) if one.id.startswith("vbm-")]
    assert {(one.market, one.gpu_name) for one in offers} == {("interruptible", "A100"), ("on-demand", "B200")}
    made = client.create(offers[0], CreateSpec(RunRef("a-0", "a"), OURS))
    assert client.instance(made.id).state is State.PENDING
    await_phase(emulated, "vultr", made.id, Phase.RUNNING)
    (listed,) = client.instances()
    assert listed.id == made.id and listed.ref == RunRef("a-0", "a") and listed.state is State.RUNNING
    assert listed.price_per_hour_usd == pytest.approx(offers[0].price_per_hour_usd) and listed.gpu_count == 8
    # Another controller, which has not seen it yet, ends it as well.
    emulated.client("vultr").destroy(made.id)
    assert client.instances() == [] and client.instance(made.id) is None
    rental = emulated.cloud.world.find("vultr", made.id)
    assert rental is None or rental.ended_at
