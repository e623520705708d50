"""The format of a ledger's entry: what this version writes, what it reads of others', and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats.ledger import Change, Entry

GOLDEN = Path(__file__).with_name("golden") / "ledger-1.json"

ENTRY = Entry(
    run="miniprover-0",
    workload="miniprover",
    provider="vast",
    id="20000004",
    gpu_name="RTX 4090",
    region="Norway, NO",
    market="interruptible",
    price_per_hour_usd=0.36,
    idle_price_per_hour_usd=0.036,
    changes=(
        Change(1800.0, "rented", 0.036),
        Change(3600.0, "running", 0.36),
        Change(5400.0, "lost", 0.036),
        Change(9000.0, "ended", 0.0),
    ),
    last_seen=5400.0,
    node="search-1",
)


def golden(**changes: Any) -> bytes:
    """Return the golden entry, changed."""
    return json.dumps(json.loads(GOLDEN.read_bytes()) | changes).encode()


def test_what_is_written_and_read() -> None:
    assert json.loads(ENTRY.to_bytes()) == json.loads(GOLDEN.read_bytes())
    assert Entry.from_bytes(GOLDEN.read_bytes(), where="x") == ENTRY
    assert ENTRY.cost_usd(1e6) == pytest.approx(0.5 * 0.036 + 0.5 * 0.36 + 1.0 * 0.036)


def test_an_entry_from_before_there_were_nodes_is_of_the_only_one() -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document["node"]
    assert Entry.from_bytes(json.dumps(document).encode(), where="x").node == "main-0"


def test_what_a_later_version_adds_is_kept_when_the_entry_is_written_again() -> None:
    read = Entry.from_bytes(golden(traffic_gb=3.5, kind="instance"), where="x")
    again = json.loads(read.changed("ended", 0.0, 9900.0).to_bytes())
    assert (again["traffic_gb"], again["kind"], again["version"]) == (3.5, "instance", 1)
    # A change of a kind that is not known costs what it says.
    changes = [{"time": 0.0, "what": "rented", "price_per_hour_usd": 1.0}]
    changes.append({"time": 3600.0, "what": "hibernated", "price_per_hour_usd": 0.5, "why": "asked"})
    assert Entry.from_bytes(golden(changes=changes), where="x").cost_usd(7200.0) == 1.5


def test_a_newer_major_version_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"^s3://b/x is of version 2, and this gpuyard reads version 1: use the newer"
    ):
        Entry.from_bytes(golden(version=2), where="s3://b/x")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"null", golden(changes=[]), golden(changes=3), golden(last_seen="soon"), golden(version="1")],
)
def test_what_is_no_entry_is_named(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x is not an entry of gpuyard's ledger"):
        Entry.from_bytes(data, where="s3://b/x")
