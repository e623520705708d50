"""The format of a host that has failed: what this version writes, what it reads of others', and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats import versions
from gpuyard.formats.failed_host import FailedHost

GOLDEN = Path(__file__).with_name("golden") / "failed-host/1.json"
HOST = FailedHost(
    "vast", "11402", "2026-03-01T12:00:00Z", "gpu arithmetic: 0 of 1 right", gpu_name="RTX 3060", region="Poland, PL"
)


def test_what_is_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "0.1.0")
    assert json.loads(HOST.to_bytes()) == json.loads(GOLDEN.read_bytes())
    assert FailedHost.from_bytes(GOLDEN.read_bytes(), where="x") == HOST
    assert HOST.key == "hosts/vast-11402.json"


def test_more_is_passed_over_and_a_newer_major_is_refused_by_name() -> None:
    document = json.loads(GOLDEN.read_bytes())
    assert FailedHost.from_bytes(json.dumps(document | {"times": 3}).encode(), where="x") == HOST
    newer = json.dumps(document | {"version": 2, "gpuyard": "0.9.0"}).encode()
    with pytest.raises(CheckpointError, match=r"h\.json is of version 2, .* use gpuyard 0\.9\.0 or newer"):
        FailedHost.from_bytes(newer, where="h.json")
    for damaged in (b"", b"[]", b'{"version": 1}', b'{"version": "x"}'):
        with pytest.raises(CheckpointError, match=r"h\.json is no record"):
            FailedHost.from_bytes(damaged, where="h.json")
