"""The heartbeat of a node, as versions of gpuyard write and read it: docs/formats/heartbeat.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats.heartbeat import Heartbeat, heartbeat_key

GOLDEN = Path(__file__).parent / "golden" / "heartbeat-1.json"
BEAT = Heartbeat(
    "2026-03-01T12:00:00Z",
    "miniprover-0",
    instance="vast/20000001",
    iteration=1,
    stage="search",
    done=5,
    total=8,
    checkpoint=42,
    gpu_use_percent=(97.0,),
    disk_used_percent=58.3,
    disk_free_gb=41.7,
)


def test_it_is_written_and_read_as_it_always_was() -> None:
    assert BEAT.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert Heartbeat.from_bytes(GOLDEN.read_bytes(), where="x") == BEAT
    assert heartbeat_key("miniprover-0", "search-3") == "miniprover-0/heartbeat/search-3.json"
    least = Heartbeat.from_bytes(b'{"schema": 1, "time": "2026-03-01T12:00:00Z", "run": "a-0"}', where="x")
    assert (least.node, least.state, least.gpu_use_percent) == ("main-0", "running", ())


def test_what_a_newer_gpuyard_added_is_passed_over() -> None:
    document = {**json.loads(GOLDEN.read_bytes()), "network": {"gb": 1}}
    assert Heartbeat.from_bytes(json.dumps(document).encode(), where="x").more == {"network": {"gb": 1}}


def test_a_newer_schema_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x is of version 2, and this gpuyard reads version 1"):
        Heartbeat.from_bytes(GOLDEN.read_bytes().replace(b'"schema": 1', b'"schema": 2'), where="s3://b/x")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b'{"schema": 1}', b'{"schema": true, "time": "", "run": ""}', b'{"schema": 1,']
)
def test_what_is_no_heartbeat_is_named(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x is no heartbeat"):
        Heartbeat.from_bytes(data, where="s3://b/x")
