"""What a run is made of, as versions of gpuyard write and read it: docs/formats/workload-record.md and source.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.errors import CheckpointError
from gpuyard.formats import versions
from gpuyard.formats.workload_record import DamagedRecordError, SourceRef, WorkloadRecord, source_key, workload_key

GOLDEN = Path(__file__).parent / "golden" / "workload-record" / "1.json"
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.fixture(autouse=True)
def the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden file was written by this version."""
    monkeypatch.setattr(versions, "__version__", "0.1.0")


def test_it_is_written_as_it_always_was() -> None:
    record = WorkloadRecord({"name": "tiny"}, SourceRef("archive", DIGEST, 3, 1234), "0.1.0")
    assert record.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert WorkloadRecord.from_bytes(GOLDEN.read_bytes(), where="x") == record
    assert (workload_key("a-0"), source_key("a-0", DIGEST)) == ("a-0/workload.json", f"a-0/source/{DIGEST}.tar.gz")


def test_what_a_newer_gpuyard_added_is_no_reason_to_refuse_it() -> None:
    document = json.loads(GOLDEN.read_text()) | {"profiles": ["small"]}
    document["source"]["branch"] = "main"
    assert WorkloadRecord.from_bytes(json.dumps(document).encode(), where="x").source.digest == DIGEST


def test_a_newer_version_is_an_error_that_names_it() -> None:
    with pytest.raises(
        CheckpointError, match=r"x is of version 2, and this gpuyard reads version 1: use gpuyard 0\.1\.0 or newer"
    ) as it:
        WorkloadRecord.from_bytes(GOLDEN.read_bytes().replace(b'"version": 1', b'"version": 2'), where="x")
    assert not isinstance(it.value, DamagedRecordError)


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"source": None}, {"source": {"kind": "ftp"}}, {"source": {"kind": "archive", "digest": "../x"}}],
)
def test_a_damaged_one_is_told(change: dict[str, object]) -> None:
    data = json.dumps(json.loads(GOLDEN.read_text()) | change).encode()
    with pytest.raises(DamagedRecordError, match=r"^x does not say what the run is made of: it is damaged"):
        WorkloadRecord.from_bytes(data, where="x")
