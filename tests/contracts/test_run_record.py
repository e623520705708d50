"""The record of a run, as versions of gpuyard write and read it: docs/formats/run-record.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import CheckpointError, LocalStore, RunRecord
from gpuyard.formats import versions
from gpuyard.renting import runs

GOLDEN = Path(__file__).parent / "golden" / "run-record" / "1-launched.json"
RUN = "miniprover-0"


@pytest.fixture(autouse=True)
def the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden file was written by this version."""
    monkeypatch.setattr(versions, "__version__", "0.1.0")


def test_it_is_written_as_it_always_was() -> None:
    record = RunRecord(RUN, "miniprover", "2026-03-01T12:00:00Z", None, None, "2026-03-01T11:50:00Z", {"main": 1})
    assert record.to_bytes() == GOLDEN.read_bytes().rstrip()
    assert RunRecord.from_bytes(RUN, GOLDEN.read_bytes()) == record


def test_why_its_machine_is_over_is_written_where_it_is() -> None:
    record = RunRecord(RUN, "miniprover", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z", "done", over="shutdown")
    assert RunRecord.from_bytes(RUN, record.to_bytes()) == record


def test_the_first_form_is_read() -> None:
    first = b'{"version": 1, "run": "a-0", "workload": "a", "created": "2026-01-01T00:00:00Z", "outcome": "done"}'
    record = RunRecord.from_bytes("a-0", first)
    assert (record.workload, record.outcome, record.launched, record.pools) == ("a", "done", "", {})


def test_what_a_newer_gpuyard_added_is_kept_when_the_record_is_written_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put(f"{RUN}/run.json", json.dumps(json.loads(GOLDEN.read_text()) | {"owner": {"name": "k"}}).encode())
    checkpoints.write_record(store, RUN, "miniprover", outcome="done")
    written = json.loads(store.get(f"{RUN}/run.json"))
    assert written["owner"] == {"name": "k"}
    assert (written["outcome"], written["launched"], written["pools"]) == ("done", "2026-03-01T11:50:00Z", {"main": 1})
    assert written["created"] == "2026-03-01T12:00:00Z"


def test_a_newer_version_is_an_error_that_names_it_and_hides_no_other_run(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put(f"{RUN}/run.json", GOLDEN.read_bytes().replace(b'"version": 1', b'"version": 2'))
    checkpoints.write_record(store, "other-0", "other")
    kept = runs.stored(store)
    assert set(kept.records) == {RUN, "other-0"}
    needed = f"The record of run {RUN} is of version 2, and this gpuyard reads version 1: use gpuyard 0.1.0 or newer."
    assert kept.problems[RUN] == needed
    with pytest.raises(CheckpointError, match="version 2"):
        checkpoints.write_record(store, RUN, "miniprover")


@pytest.mark.parametrize(
    "damaged", [b"", b"[", b"[]", b"null", b'{"pools": {"main": "x"}}', b'{"version": "y", "pools": 3}']
)
def test_a_damaged_one_counts_as_never_written(damaged: bytes) -> None:
    assert RunRecord.from_bytes(RUN, damaged) == RunRecord(RUN)
