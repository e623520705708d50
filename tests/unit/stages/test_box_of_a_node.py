"""A box that serves one of several nodes: it runs the stages of its pool, in a place of its own in the bucket."""

from __future__ import annotations

import json
from pathlib import Path

from stage_box import RUN, Box, mark

from gpuyard.box.checkpoints import latest_manifest, open_store, publish, read_record
from gpuyard.box.stages.runner import restore_checkpoint

PLACE = f"{RUN}/nodes/search-1"


def serve(box: Box, tmp_path: Path, *, place: str = PLACE, node: str = "search-1", pool: str = "search") -> str:
    """Tell the box which node it serves; return the address of its bucket."""
    bucket = f"file://{tmp_path / 'bucket'}"
    stages = [mark("train", pool="train"), mark("search", pool="search")]
    box.describe(stages, bucket=bucket, iterations=2)
    file = box.settings / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "node": node, "pools": [pool], "place": place}))
    return bucket


def test_a_box_runs_the_stages_of_its_pool_and_publishes_in_its_own_place(box: Box, tmp_path: Path) -> None:
    store = open_store(serve(box, tmp_path))
    assert box.run() == 0
    assert box.marks == ["0-search", "1-search"]
    assert (box.status()["state"], box.status()["node"], box.status()["stages_total"]) == ("finished", "search-1", 2)
    assert latest_manifest(store, RUN) is None
    made = latest_manifest(store, PLACE)
    assert made is not None and made.progress["node"] == "search-1" and made.progress["outcome"] == "done"
    # The end is this node's; the run has begun, and how it ends is not said by one node.
    assert read_record(store, PLACE).outcome == "done"
    assert read_record(store, RUN).created and read_record(store, RUN).outcome is None


def test_a_box_that_serves_all_pools_runs_all_stages_at_the_runs_place(box: Box, tmp_path: Path) -> None:
    bucket = serve(box, tmp_path)
    file = box.settings / "settings.json"
    told = json.loads(file.read_text())
    for name in ("node", "pools", "place"):
        del told[name]
    file.write_text(json.dumps(told))
    assert box.run() == 0
    assert box.marks == ["0-train", "0-search", "1-train", "1-search"]
    made = latest_manifest(open_store(bucket), RUN)
    assert made is not None and "node" not in made.progress


def test_a_node_without_a_checkpoint_of_its_own_begins_with_the_runs(box: Box, tmp_path: Path) -> None:
    store = open_store(serve(box, tmp_path))
    assert restore_checkpoint(box.spec).source == "nothing"
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "weights").write_text("of train-0")
    publish(store, RUN, trained)
    assert restore_checkpoint(box.spec).source == "cloud"
    assert (box.root / "weights").read_text() == "of train-0"
    # Once it has one, that one counts.
    (trained / "weights").write_text("of search-1")
    publish(store, PLACE, trained)
    (box.root / "weights").unlink()
    restore_checkpoint(box.spec)
    assert (box.root / "weights").read_text() == "of search-1"
