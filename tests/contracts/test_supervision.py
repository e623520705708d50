"""How a run is supervised, as versions of gpuyard write and read it: docs/formats/supervision.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats import versions
from gpuyard.formats.supervision import Supervision

GOLDEN = Path(__file__).parent / "golden" / "supervision" / "1.json"
WHOLE = Supervision(
    "renting", True, "search", "desk", "2026-03-01T12:00:00Z", ("vast/123",), ("loss:vast/123",), "", {"owner": "k"}
)


def test_it_is_written_as_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "0.1.0")
    assert WHOLE.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert Supervision.from_bytes(GOLDEN.read_bytes(), where="x") == WHOLE  # with what a newer gpuyard has added
    assert Supervision.from_bytes(b"{}", where="x") == Supervision()


def test_a_newer_major_version_is_named() -> None:
    newer = json.loads(GOLDEN.read_bytes()) | {"version": 2, "state": "something new"}
    with pytest.raises(CheckpointError, match=r"^s3://b/x is of version 2, and this gpuyard reads version 1"):
        Supervision.from_bytes(json.dumps(newer).encode(), where="s3://b/x")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"state": "idle"}', b'{"losses": 3}', b'{"version": "x"}'])
def test_what_is_damaged_is_named_and_not_taken_for_nothing(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x does not say how a run is supervised"):
        Supervision.from_bytes(data, where="s3://b/x")
