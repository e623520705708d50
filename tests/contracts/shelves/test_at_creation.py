# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A volume that a machine gets when it is created (V5), at every cloud of the sandbox that does it so."""

from __future__ import annotations

import pytest

from gpuyard.config import CLOUDS
from gpuyard.errors import NoCapacityError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Query
from gpuyard.providers.resources import ResourceSpec
from gpuyard.renting.storage import shelf_of

from .emulated import Emulated, emulated_names
from .test_shelves import OURS

REF = RunRef("miniprover-0", "miniprover")
AT_CREATION = [
    name
    for name in emulated_names()
    if (shelf := shelf_of(CLOUDS[name].make("key", base_url="http://127.0.0.1:9"))) and shelf.at_create
]


def test_these_clouds_do_it() -> None:
    assert sorted(AT_CREATION) == ["lambda", "runpod", "vast"]


@pytest.mark.parametrize("name", AT_CREATION)
def test_v5_it_is_made_where_the_offer_is_and_its_machine_has_it(emulated: Emulated, name: str) -> None:
    client = emulated.client(name)
    shelf = shelf_of(client)
    assert shelf
    offers = client.offers(Query())
    spec = ResourceSpec("miniprover-0", ref=REF, size_gb=20.0)
    quoted = shelf.quotes(spec, offers)
    assert 0 < len(quoted) <= len(offers) and all(price and price > 0 for _, price in quoted)
    offer, price = quoted[0]
    made = shelf.create(shelf.beside(spec, offer))
    assert shelf.reaches(made, offer)
    elsewhere = [one for one in offers if not shelf.reaches(made, one)]
    assert elsewhere
    if not shelf.elastic:  # such a one costs by what is in it
        assert made.price_per_month_usd == pytest.approx(price, rel=0.02)
    wrong = CreateSpec(REF, OURS, mounts=((made.id, "/data/cache"),))
    with pytest.raises(NoCapacityError):
        client.create(elsewhere[0], wrong)
    assert not client.instances()
    machine = client.create(offer, wrong)
    (found,) = shelf.all()
    assert found.ref == REF and found.attached_to == (machine.id,)
