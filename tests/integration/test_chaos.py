"""Twelve faults of `make chaos`, by a fixed seed; and that its checks find what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import faults, trainer
from chaos.checks import WrongError, check_trace, disk
from chaos.running import settings
from chaos.world import World

from gpuyard.box.checkpoints.listing import Listing, manifest_key
from gpuyard.formats.journal import Journal

TESTS = Path(__file__).resolve().parents[1]
SEED = "12"


def test_twelve_faults_at_random_moments(tmp_path: Path) -> None:
    kept = tmp_path / "chaos.json"
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--faults", "12", "--seed", SEED, "--jobs", "2", "--json", str(kept)],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS / 'e2e'}", "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    runs = json.loads(kept.read_text())["runs"]
    assert [run["store"] for run in runs] == ["folder", "S3"]
    struck = [fault for run in runs for fault in run["faults"]]
    assert [fault["number"] for fault in struck] == list(range(1, 13))
    assert len({fault["kind"] for fault in struck}) >= 6
    assert f"seed {SEED}" in done.stdout and not list(tmp_path.glob("gpuyard-chaos-*"))


def test_a_seed_says_what_strikes() -> None:
    there = {"folder", "mounts"}
    assert faults.drawn(3, "a", 20, there) == faults.drawn(3, "a", 20, there) != faults.drawn(4, "a", 20, there)
    assert "bucket slow" not in faults.drawn(3, "a", 500, there)
    wanted = settings(25, "a")
    assert [(one.first, one.count) for one in wanted] == [(1, 9), (10, 8), (18, 8)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(0, "checks", tmp_path / "w")
    yield made
    made.close()


def test_the_checks_find_what_is_wrong(world: World) -> None:
    """In one world, one thing after another, each put right before the next."""
    assert world.wait_for_end(world.start("stages", "run")) == 0
    assert world.check() == {}
    newest = world.bucket.newest(world.spec)
    assert newest is not None
    store = world.bucket.store
    manifest = manifest_key(newest.run, newest.sequence)
    for key, damage, wrong in (
        (newest.files[-1].key, b"x", "does not have its content"),
        (newest.files[-1].key, None, "holds no"),
        (manifest, b"{}", "is not a manifest"),
        (manifest, store.get(manifest) + b" ", "has changed"),
        (manifest, None, "are gone"),
    ):
        right = store.get(key)
        store.delete(key) if damage is None else store.put(key, damage)
        with pytest.raises(Exception, match=wrong):
            world.check()
        store.put(key, right)
    assert Listing(store, newest.run).complete and world.check() == {}

    table, root = world.machine.root / "data/table.bin", world.machine.root
    right = table.read_bytes()
    table.unlink()
    with pytest.raises(WrongError, match="calls prepare of iteration 0 done, and its files are not there"):
        world.check()
    table.write_bytes(right)
    results = root / "results/train-1.txt"
    right = results.read_bytes()
    results.write_bytes(right.replace(b"7 ", b"7 0", 1))
    with pytest.raises(WrongError, match="results of iteration 1 are wrong"):
        world.check()
    results.write_bytes(right)
    world.iterations = 3
    world.describe()
    Journal(root / ".gpuyard/journal.jsonl").append("stage-end", iteration=2, stage="export", outcome="done")
    (root / "results/export-2.json").write_text(json.dumps({"chain": trainer.states(2, 28)[-1]}))
    with pytest.raises(WrongError, match="calls export of iteration 2 done, and it has not ended"):
        world.check()


def test_the_trace_tells_work_that_was_lost_and_work_at_the_same_time(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    begun = ["begin 7 1.0 0 0", "step 7 1.1 0 1", "saved 7 1.2 0 1", "step 7 1.3 0 2", "fault 0 1.4 0 5"]
    file.write_text("\n".join([*begun, "begin 8 2.0 0 1", "step 8 2.4 0 2", ""]))
    (recovery,) = check_trace(file, []).values()
    assert (recovery.repeated, recovery.seconds) == (1, 1.0)
    for more, wrong in (
        ("begin 8 2.0 0 0", "begins at step 0, and step 1 was saved"),
        ("begin 8 2.0 0 1\nstep 7 2.1 0 3", "process 7 trains beside process 8"),
    ):
        file.write_text("\n".join([*begun, more, ""]))
        with pytest.raises(WrongError, match=wrong):
            check_trace(file, [])
    file.write_text("\n".join([*begun, "lost 0 1.5 0 0", "begin 8 2.0 0 0", ""]))
    assert check_trace(file, [])[5].repeated == 2
    assert disk(tmp_path)("nothing") == b""
