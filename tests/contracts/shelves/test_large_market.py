# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A market of thousands of machines, of which one answer of Vast shows 64: the client pages by the price."""

from __future__ import annotations

import pytest

from gpuyard.formats.label import RunRef
from gpuyard.providers import vast
from gpuyard.providers.base import CreateSpec, Query

from .emulated import Emulated
from .test_shelves import OURS


@pytest.fixture
def large(emulated: Emulated) -> Emulated:
    emulated.cloud.settings.offers, emulated.cloud.settings.seed = 5000, 7
    return emulated


def test_the_cheapest_of_thousands_are_all_seen_page_by_page(large: Emulated) -> None:
    client = large.client("vast")
    assert isinstance(client, vast.Vast)
    rows, capped = client._search({"gpu_name": {"in": ["RTX 4090"]}}, "on-demand", 20.0, most_pages=3)
    searches = [path for method, path in large.wire.requests if path.endswith("/bundles")]
    assert capped and len(searches) == 3
    # Pages overlap in what costs the same, so there are few rows less than three full pages.
    assert 2 * vast.PAGE_CAP < len(rows) <= 3 * vast.PAGE_CAP
    expected = sorted(
        record["dph_base"] + record["storage_cost"] * 20 / 720
        for record in large.cloud.vast_records
        if record["gpu_name"] == "RTX 4090" and record.get("verification") == "verified" and not record.get("external")
    )[: len(rows)]
    assert sorted(float(str(row["dph_total"])) for row in rows) == pytest.approx(expected, abs=2e-4)


def test_the_seed_says_which_machines_there_are(large: Emulated) -> None:
    first = large.cloud.vast_records
    assert len(first) > 5000 and len({record["machine_id"] for record in first}) == len(first)
    again = [*first]
    del large.cloud.vast_records
    assert large.cloud.vast_records == again
    del large.cloud.vast_records
    large.cloud.settings.seed = 8
    assert large.cloud.vast_records != again


def test_one_of_the_further_machines_can_be_rented(large: Emulated) -> None:
    large.cloud.settings.offers = 200
    client = large.client("vast")
    offer = next(one for one in client.offers(Query()) if int(one.machine_id) >= 100_000)
    made = client.create(offer, CreateSpec(RunRef("a-0", "a"), OURS))
    assert client.instance(made.id).machine_id == offer.machine_id  # type: ignore[union-attr]
