# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module that looks into a run's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore, publish, sequences

Verb = Callable[..., dict[str, Any]]


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """Three sets of a run, and one of a node that has a place of its own."""
    store, root = LocalStore(tmp_path / "bucket"), tmp_path / "box"
    root.mkdir()
    for number in range(3):
        (root / "weights").write_text(str(number))
        publish(store, "canyon-0", root)
    (root / "weights").write_text("of the node")
    publish(store, "canyon-0/nodes/search-1", root)
    return store.url


def test_the_module_does_what_it_is_told(verb: Verb, bucket: str, tmp_path: Path) -> None:
    store = LocalStore(Path(bucket.removeprefix("file://")))
    here: dict[str, Any] = {"run": "canyon-0", "bucket": bucket}
    listed = verb("run_checkpoints", **here)
    assert [item["sequence"] for item in listed["checkpoints"]] == [3, 2, 1] and not listed["changed"]
    assert [item["bytes"] for item in verb("run_checkpoints", node="search-1", **here)["checkpoints"]] == [11]
    assert len(verb("run_checkpoints", do="verify", every=True, **here)["verified"]) == 3
    assert verb("run_checkpoints", do="verify", sequence=2, **here)["verified"][0]["sequence"] == 2
    assert verb("run_checkpoints", do="diff", sequence=1, against=2, **here)["diff"]["after"] == 2
    fetched = verb("run_checkpoints", do="restore_file", path="weights", to=str(tmp_path / "back"), **here)
    assert fetched["changed"] and (tmp_path / "back").read_text() == "2"
    would = verb("run_checkpoints", do="prune", keep_last=1, check=True, **here)
    assert would["changed"] and would["pruned"]["sets"] == [2, 1] and len(sequences(store, "canyon-0")) == 3
    assert verb("run_checkpoints", do="prune", keep_last=1, **here)["pruned"] == would["pruned"]
    assert not verb("run_checkpoints", do="prune", keep_last=1, **here)["changed"]
    assert sequences(store, "canyon-0") == [3]


def test_what_is_wrong_is_one_sentence(verb: Verb, bucket: str) -> None:
    store = LocalStore(Path(bucket.removeprefix("file://")))
    store.put("canyon-0/checkpoints/000003/files/weights", b"9")
    damaged = verb("run_checkpoints", do="verify", run="canyon-0", bucket=bucket)
    assert damaged["failed"] and damaged["msg"].startswith("Damaged: checkpoint 3 of canyon-0 (weights: ")
    for options, sentence in (
        ({"run": "nosuch-0", "bucket": bucket}, "Run nosuch-0 has no checkpoint in"),
        ({"run": "", "bucket": bucket}, "run is not set"),
        ({"run": "canyon-0", "bucket": ""}, "There is no bucket to look into"),
        ({"run": "canyon-0", "bucket": bucket, "do": "prune", "keep_last": 0}, "keep_last=0 must be at least 1"),
        ({"do": "keep_versions", "bucket": bucket}, "is no store that gpuyard could have keep versions"),
    ):
        result = verb("run_checkpoints", **options)
        assert result["failed"] and sentence in result["msg"]
