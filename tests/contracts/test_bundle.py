"""What a bundle holds, as versions of gpuyard write and read it: docs/formats/bundle.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats import versions
from gpuyard.formats.bundle import Bundle, Piece

GOLDEN = Path(__file__).parent / "golden" / "bundle-1.json"
BUNDLE = Bundle(
    platform="x86_64-debian12-glibc2.36",
    parts={"rust": "6275", "build": "56b5"},
    held=("build", "rust"),
    pieces=(Piece("ab" * 32, 20_000_000),),
    zstd=Piece("cd" * 32, 1_000_000),
    folders=("/opt/gpuyard/rust",),
    files=("/usr/local/bin/cargo",),
    repository="/opt/gpuyard/src/tiny/0123",
    search_path=("/opt/gpuyard/envs/tiny/4567/bin",),
    workload="tiny",
    created="2026-03-01T12:00:00Z",
    unpacked_bytes=70_000_000,
    built_s={"/opt/gpuyard/rust": 12.5},
)


def test_it_is_written_and_read_as_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__version__", "0.1.0")
    assert BUNDLE.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert Bundle.from_bytes(GOLDEN.read_bytes(), where="it") == BUNDLE


def test_what_a_newer_gpuyard_added_is_passed_over() -> None:
    assert Bundle.from_bytes(GOLDEN.read_bytes().replace(b"{", b'{"more": 1,', 1), where="it") == BUNDLE


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{}", b'{"pieces": 3}'])
def test_a_damaged_one_is_an_error_that_names_it(damaged: bytes) -> None:
    with pytest.raises(CheckpointError, match="its/manifest is damaged"):
        Bundle.from_bytes(damaged, where="its/manifest")


def test_a_newer_version_is_an_error_that_names_it() -> None:
    newer = GOLDEN.read_bytes().replace(b'"version": 1', b'"version": 2')
    with pytest.raises(CheckpointError, match="is of version 2, and this gpuyard reads version 1"):
        Bundle.from_bytes(newer, where="it")
