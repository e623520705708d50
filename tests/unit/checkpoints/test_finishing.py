"""A machine that is finished with: all of it is verified in a real bucket before anything is written down."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import Store, latest_manifest, open_store, read_record
from gpuyard.box.monitor import finishing, known_limits
from gpuyard.box.monitor.beating import beat
from gpuyard.box.monitor.finishing import finish
from gpuyard.box.stages import BoxSpec, load_spec
from gpuyard.box.stages.ending import Saved, publish_and_tell
from gpuyard.formats.heartbeat import Heartbeat, heartbeat_key
from gpuyard.formats.ledger import Change, Entry
from gpuyard.formats.limits import Limits, limits_key

NOW = time.time()


def a_box(folder: Path, bucket: Any, run: str, address: str | None = None) -> BoxSpec:
    """Return a box on which a run has ended that has one file to save."""
    root, settings = folder / "persistent", folder / "run"
    (root / ".gpuyard").mkdir(parents=True)
    settings.mkdir()
    workload = {
        "name": "canyon",
        "persist": {"root": str(root)},
        "stages": [{"name": "a", "command": "true"}],
    }
    told = {
        "run": run,
        "bucket": f"s3://{bucket.name}/finishing" if address is None else address,
        "bucket_endpoint": bucket.endpoint if address is None else "",
        "instance": {"provider": "vast", "id": "77"},
    }
    (settings / "workload.json").write_text(json.dumps(workload))
    (settings / "settings.json").write_text(json.dumps(told))
    (settings / "secrets.env").write_text("".join(f"{name}='{value}'\n" for name, value in bucket.env.items()))
    events = [
        {"event": "run-start"},
        {"event": "stage-start", "iteration": 0, "stage": "a"},
        {"event": "stage-end", "iteration": 0, "stage": "a", "outcome": "done", "exit_code": 0},
        {"event": "run-end", "outcome": "done"},
    ]
    lines = [json.dumps({"time": "2026-01-01T00:00:00Z", **event}) for event in events]
    (root / ".gpuyard/journal.jsonl").write_text("\n".join(lines) + "\n")
    (root / "model").write_bytes(os.urandom(5000))
    return load_spec(settings)


def entry(run: str, instance_id: str, hours_ago: float, price: float) -> Entry:
    began = Change(NOW - hours_ago * 3600, "rented", price)
    return Entry(run, "canyon", "vast", instance_id, "A100", "", "on-demand", price, 0.1, (began,), NOW)


@pytest.fixture
def store(bucket: Any) -> Store:
    return open_store(f"s3://{bucket.name}/finishing", env=bucket.env)


def test_everything_is_in_the_bucket_before_it_is_written_down(bucket: Any, store: Store, tmp_path: Path) -> None:
    """U9: how the run ended, that its machine is over, and from when on it costs nothing."""
    spec = a_box(tmp_path, bucket, "done-0")
    store.put(entry("done-0", "77", 1, 2.0).key, entry("done-0", "77", 1, 2.0).to_bytes())
    saved = finish(spec, "shutdown", ends_itself=True)
    assert saved.state and saved.sequence == 1
    manifest = latest_manifest(store, "done-0")
    assert manifest is not None and "model" in {one.path for one in manifest.files}
    record = read_record(store, "done-0")
    assert (record.outcome, record.over) == ("done", "shutdown")
    closed = Entry.from_bytes(store.get(entry("done-0", "77", 1, 2.0).key), where="x")
    assert closed.ended_by_us and closed.cost_usd(NOW + 9999) == pytest.approx(2.0, abs=0.1)
    # Whoever cannot end itself leaves that open.
    other = a_box(tmp_path / "other", bucket, "done-1")
    store.put(entry("done-1", "77", 1, 2.0).key, entry("done-1", "77", 1, 2.0).to_bytes())
    assert finish(other, "idle", ends_itself=False).state
    assert not Entry.from_bytes(store.get(entry("done-1", "77", 1, 2.0).key), where="x").ended


def test_a_damaged_bucket_keeps_the_machine(
    bucket: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = a_box(tmp_path, bucket, "damaged-0")

    def spoiling(spec: BoxSpec) -> Saved:
        saved = publish_and_tell(spec)
        [key] = [one.key for one in store.objects("damaged-0/") if one.key.endswith("/model")]
        store.put(key, b"x" * 5000)
        return saved

    monkeypatch.setattr(finishing, "publish_and_tell", spoiling)
    saved = finish(spec, "shutdown", ends_itself=True)
    assert not saved.state and "is not whole in s3://" in saved.why
    assert read_record(store, "damaged-0").over == ""


def test_a_bucket_that_is_none_keeps_the_machine(bucket: Any, tmp_path: Path) -> None:
    for number, address in enumerate((f"s3://{bucket.name}-none/x", "", (tmp_path / "folder").as_uri())):
        spec = a_box(tmp_path / str(number), bucket, "kept-0", address=address)
        saved = finish(spec, "shutdown", ends_itself=True)
        assert not saved.state and saved.why, address


def test_the_heartbeat_says_how_the_run_stands_and_the_limits_come_with_it(
    bucket: Any, store: Store, tmp_path: Path
) -> None:
    spec = a_box(tmp_path, bucket, "beats-0")
    beat(spec, store, "finished")
    found = Heartbeat.from_bytes(store.get(heartbeat_key("beats-0")), where="x")
    assert (found.instance, found.state, found.stage, found.done, found.total) == ("vast/77", "finished", None, 1, 1)
    assert found.disk_free_gb is not None and not known_limits.read(spec.folder).any
    store.put(limits_key("beats-0"), Limits(lease_end=NOW + 60, budget_usd=5.0).to_bytes())
    for one in (entry("beats-0", "77", 1, 2.0), entry("beats-0", "76", 2, 1.0)):
        store.put(one.key, one.to_bytes())
    store.put("beats-0/ledger/vast-75.json", b"damaged")
    beat(spec, store, "running")
    known = known_limits.read(spec.folder)
    spent = 4.0 + 3.0 * (known.time - NOW) / 3600
    assert known.lease_end == NOW + 60 and known.spent_usd == pytest.approx(spent, abs=0.02)
    assert known.over(NOW) is None and known.price_per_hour_usd == 3.0
    assert (known.over(NOW + 61) or ("",))[0] == "lease"
    no_lease = known_limits.KnownLimits(None, 5.0, known.spent_usd, 3.0, known.time)
    assert no_lease.over(NOW + 600) is None and (no_lease.over(NOW + 1500) or ("",))[0] == "budget"
    store.delete(limits_key("beats-0"))
    beat(spec, store, "running")
    assert not known_limits.read(spec.folder).any, "limits that were taken away are none"
