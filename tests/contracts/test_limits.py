"""The limits of a run, as versions of gpuyard write and read them: docs/formats/limits.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats import versions
from gpuyard.formats.limits import Limits

GOLDEN = Path(__file__).parent / "golden" / "limits" / "1.json"
LIMITS = Limits(1772373600.0, 25.0, ("vultr/volume/b1f2",))


def test_they_are_written_as_they_always_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "0.1.0")
    assert LIMITS.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert Limits.from_bytes(GOLDEN.read_bytes(), where="x") == LIMITS
    assert Limits.from_bytes(Limits().to_bytes(), where="x") == Limits()


def test_what_a_newer_gpuyard_added_is_kept() -> None:
    read = Limits.from_bytes(
        json.dumps({**json.loads(GOLDEN.read_bytes()), "owner": {"name": "k"}}).encode(), where="x"
    )
    assert json.loads(read.keeping(less=("vultr/volume/b1f2",)).to_bytes())["owner"] == {"name": "k"}
    assert read.keeping(less=("vultr/volume/b1f2",)).kept == ()


def test_a_newer_major_version_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x is of version 2, and this gpuyard reads version 1"):
        Limits.from_bytes(GOLDEN.read_bytes().replace(b'"version": 1', b'"version": 2'), where="s3://b/x")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"lease_end": "soon"}', b'{"budget_usd": true}', b'{"kept": 3}', b'{"lease_end": NaN}'],
)
def test_what_is_no_limit_is_named_and_never_taken_for_none(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^s3://b/x are no limits of a run"):
        Limits.from_bytes(data, where="s3://b/x")
