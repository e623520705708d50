"""Documents that outlive a version: each file of ``golden/<format>/`` is one as some version of gpuyard writes it.

``<version>.…`` is what today's writer writes, byte for byte; ``<version>-with-more.…`` holds fields that today's reader
does not know; a number above today's version is one that it must refuse. A golden file is never changed: a new version
gets new files beside the old ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.box.checkpoints import (
    LocalStore,
    latest_manifest,
    list_runs,
    publish,
    restore,
    write_record,
)
from gpuyard.box.monitor import alerts
from gpuyard.errors import CheckpointError, UnreadableManifestError
from gpuyard.formats import journal, manifest, versions
from gpuyard.formats.journal import Journal, fold, parse
from gpuyard.formats.manifest import FileEntry, Manifest
from gpuyard.formats.run_record import RunRecord
from gpuyard.renting import runs

GOLDEN = Path(__file__).parent / "golden"
RUN = "miniprover-0"
WHEN = "2026-03-01T12:00:00Z"
ORDER = [(0, "finetune"), (0, "search"), (0, "evaluate")]
NEEDED = "is of version 2, and this gpuyard reads version 1: use gpuyard 0.9.0 or newer."


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


@pytest.fixture(autouse=True)
def the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden files were written by this version, at this time."""
    monkeypatch.setattr(versions, "__version__", "0.1.0")
    monkeypatch.setattr(journal, "timestamp", lambda: WHEN)


def the_manifest() -> Manifest:
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    target = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    written = f"{RUN}/checkpoints/000002/files/.gpuyard/journal.jsonl"
    older = f"{RUN}/checkpoints/000001/files/models/policy-0.npz"
    files = (
        FileEntry(".gpuyard/journal.jsonl", 3, digest, 0o644, written, tag="900150983cd24fb0d6963f7d28e17f72"),
        FileEntry("models/latest", 0, target, 0o777, "", link="policy-0.npz"),
        FileEntry("models/policy-0.npz", 3, digest, 0o600, older, mtime_ns=1772366400000000000),
    )
    progress = {"iteration": 0, "stage": "search", "done": [[0, "finetune"]], "finished": False, "outcome": None}
    return Manifest(RUN, 2, WHEN, files, progress)


def test_todays_writer_writes_the_newest_manifest_and_run_record() -> None:
    assert the_manifest().to_bytes() == golden("manifest/1.json")
    record = RunRecord(RUN, "miniprover", WHEN, "2026-03-01T14:00:00Z", "done")
    assert record.to_bytes() == golden("run-record/1.json")


def test_todays_writer_writes_the_newest_alerts_and_both_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "timestamp", lambda: WHEN)
    for line in golden("alerts/1.jsonl").splitlines():
        fields = json.loads(line)
        own = ("event", "alert", "text")
        more = {name: value for name, value in fields.items() if name not in (*own, "time")}
        alerts.append(tmp_path, *(fields[name] for name in own), **more)
    assert (tmp_path / alerts.FILE).read_bytes() == golden("alerts/1.jsonl")
    text = "the disk of /mnt/persistent is 91 % full (18 GB are free)"
    still_open = {"disk /mnt/persistent": {"alert": "disk /mnt/persistent", "text": text, "time": WHEN}}
    assert alerts.open_alerts(tmp_path) == still_open
    (tmp_path / alerts.FILE).write_bytes(golden("alerts/1-with-more.jsonl"))
    assert alerts.open_alerts(tmp_path) == still_open


def test_todays_writer_writes_the_newest_journal(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal.jsonl")
    for line in golden("journal/1.jsonl").splitlines():
        fields = json.loads(line)
        own = {"time", *(versions.mark(journal.VERSION) if fields["event"] == journal.BEGIN else ())}
        written.append(fields.pop("event"), **{name: value for name, value in fields.items() if name not in own})
    assert written.file.read_bytes() == golden("journal/1.jsonl")


@pytest.mark.parametrize("name", ["1", "1-with-more"])
def test_todays_reader_reads_what_is_of_its_version(name: str) -> None:
    read = Manifest.from_bytes(golden(f"manifest/{name}.json"), where="here", run=RUN)
    expected = the_manifest()
    assert read.files == expected.files and read.sequence == 2
    assert read.progress.items() >= expected.progress.items()
    progress = fold(parse(golden(f"journal/{name}.jsonl")), ORDER)
    assert progress.done == ORDER[:1] and progress.current == (0, "search")
    assert progress.outcome == "done" and progress.last_published and progress.last_published["sequence"] == 1


def test_fields_that_are_not_known_stay_in_a_record_that_is_written_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    store.put(f"{RUN}/run.json", golden("run-record/1-with-more.json"))
    write_record(store, RUN, "miniprover", outcome="cancelled")
    document = json.loads(store.get(f"{RUN}/run.json"))
    assert document["nodes"] == ["main-0"] and document["outcome"] == "cancelled" and document["created"] == WHEN


def test_a_newer_manifest_is_refused_by_every_verb(tmp_path: Path) -> None:
    """Restore, launch and resume, status, and the removal of old sets: none takes it for nothing."""
    store, root = LocalStore(tmp_path / "bucket"), tmp_path / "box"
    root.mkdir()
    (root / "weights").write_text("1")
    publish(store, RUN, root)
    store.put(f"{RUN}/checkpoints/000002/manifest.json", golden("manifest/2.json"))
    for read in (lambda: latest_manifest(store, RUN), lambda: restore(lambda: store, RUN, tmp_path / "new")):
        with pytest.raises(UnreadableManifestError, match=NEEDED):
            read()
    (run,) = runs.join([], runs.stored(store))
    assert NEEDED in run.problem, "what launch, resume and status go by"
    (root / "weights").write_text("2")
    published = publish(store, RUN, root)
    assert published.removed == 0 and NEEDED in " ".join(published.warnings)


def test_a_newer_run_record_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    store.put(f"{RUN}/run.json", golden("run-record/2.json"))
    write_record(store, "other-0", "miniprover")
    with pytest.raises(CheckpointError, match=NEEDED):
        write_record(store, RUN, "miniprover", outcome="done")
    assert store.get(f"{RUN}/run.json") == golden("run-record/2.json")
    assert [record.run for record in list_runs(store)] == [RUN, "other-0"], "it hides no other run"
    kept = runs.join([], runs.stored(store))
    assert [(run.name, NEEDED in run.problem) for run in kept] == [(RUN, True), ("other-0", False)]


def test_a_newer_journal_is_refused() -> None:
    with pytest.raises(CheckpointError, match=f"The journal of this run {NEEDED}"):
        parse(golden("journal/2.jsonl"))


def test_every_version_up_to_todays_has_a_golden_file() -> None:
    for folder, newest in (
        ("manifest", manifest.VERSION),
        ("run-record", manifest.VERSION),
        ("journal", journal.VERSION),
    ):
        numbers = {int(file.stem) for file in (GOLDEN / folder).iterdir() if file.stem.isdigit()}
        assert numbers == set(range(1, newest + 2)), f"{folder}: one for each version, and one that is newer"
