"""What a launch writes and claims, in a bucket whose server takes no notice of ``If-None-Match``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuyard import tree
from gpuyard.box.checkpoints import open_store
from gpuyard.errors import UsageError
from gpuyard.formats.workload_record import SourceRef, WorkloadRecord
from gpuyard.renting import record

RUN = "turns-0"

# Takes the claim, counts itself in, works a moment, and counts itself out; fails when it is not alone.
CONTROLLER = """
import os, sys, time
from pathlib import Path
from gpuyard import pace
from gpuyard.box.checkpoints import open_store
from gpuyard.renting.claim import Claims
from gpuyard.renting.notebook import Notebook
inside = Path(sys.argv[2])
claims = Claims(Notebook(lambda: open_store(sys.argv[1])), clock=pace.Clock(first_delay=0.05, longest_delay=0.2))
for _ in range(2):
    with claims.hold("turns-0"):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        time.sleep(0.05)
        inside.unlink()
"""


def test_x4_controllers_take_turns_where_only_a_listing_decides(bucket: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CONTROLLER, f"s3://{bucket.name}/turns", str(tmp_path / "inside")]
    environment = os.environ | bucket.env
    started = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert [*open_store(f"s3://{bucket.name}/turns", env=bucket.env).objects("")] == []


def test_a_source_goes_into_the_bucket_and_comes_back(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    root = tmp_path / "code"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "a.bin").write_bytes(os.urandom(9_000_000))  # sent in parts
    found = tree.describe(root)
    store = open_store(f"s3://{bucket.name}/made", env=bucket.env)
    source = SourceRef("archive", found.digest, 1, 9_000_000)
    made = record.ToKeep(RUN, "turns", {"main": 1}, WorkloadRecord({"name": "turns"}, source), root)
    record.write(store, made)
    again = record.read(store, RUN)
    assert again.made_of is not None and again.made_of.source == source and again.record.pools == {"main": 1}
    assert tree.describe(record.fetch_source(store, RUN, source)) == found
    # A tree that changes between the plan and the launch is not taken for the planned one.
    (root / "lib" / "b.py").write_text("")
    other = record.ToKeep("turns-1", "turns", {}, made.made_of, root)
    with pytest.raises(UsageError, match="has changed since the plan was made; launch again"):
        record.write(store, other)
