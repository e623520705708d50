# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan knows how much room a run's files take, and refuses a disk that is too small before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuyard.formats.label import RunRef

from .conftest import Verb, World, instance, offer

# The table of B17.
WORKLOAD = """
name: burn
repository: {path: code}
needs: {gpu_ram_gb: 8, disk_gb: 200}
iterations: 5
sizes:
  lora: {gb: 0.5}
  merged: {gb: 15}
  ebm: {gb: 0.05}
  trajectories: {gb: 5}
  embeddings: {gb: 2}
stages:
  - {name: finetune, command: "true"}
"""
LATEST = ("merged: {gb: 15}", "merged: {gb: 15, keep: latest}")
VOLUME = ("iterations: 5", "iterations: 5\nvolumes: {cache: {mount: /mnt/persistent, size_gb: 100}}")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb, world: World) -> Any:
    """Return a function that plans the workload with changes to its text."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    (tmp_path / "workloads").mkdir()
    monkeypatch.chdir(tmp_path)
    world.vast.market = [offer("vast", "1", disk_gb=500.0)]

    def make(*changes: tuple[str, str], **options: Any) -> dict[str, Any]:
        text = WORKLOAD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "workloads" / "burn.yml"
        path.write_text(text)
        return verb("run_plan", workload=str(path), check=True, **options)

    return make


def test_b17_the_disk_is_checked_before_the_launch(plan: Any) -> None:
    """Five iterations of 22.55 GB."""
    assert "Disk: 112.8 GB needed by iteration 4, 200 GB asked." in plan()["text"]
    message = plan(disk_gb=100.0)["msg"]
    sentence, *table = message.splitlines()
    assert sentence.endswith(
        "burn.yml: the run's files take 112.8 GB of the disk by iteration 4, more than needs.disk_gb=100: ask for more "
        "with -e disk_gb=113, or needs.disk_gb in the workload, or run fewer iterations. Nothing was rented."
    )
    assert [line.split() for line in table[1:4]] == [
        ["lora", "5", "x", "0.5", "GB", "2.5", "GB"],
        ["merged", "5", "x", "15", "GB", "75", "GB"],
        ["ebm", "5", "x", "0.05", "GB", "0.25", "GB"],
    ]
    assert table[-1].split() == ["in", "all", "112.8", "GB"]
    # Fewer iterations need less, and the plan of this very run counts.
    assert "Disk: 45.1 GB needed by iteration 1, 100 GB asked." in plan(disk_gb=100.0, iterations=2)["text"]


def test_b18_what_keeps_the_latest_is_counted_once(plan: Any) -> None:
    assert "Disk: 52.75 GB needed by iteration 4, 100 GB asked." in plan(LATEST, disk_gb=100.0)["text"]
    both = (LATEST[0], "merged: {gb: 15, keep: 2}")
    assert "Disk: 67.75 GB needed by iteration 4, 100 GB asked." in plan(both, disk_gb=100.0)["text"]
    assert (
        "Disk: 37.55 GB needed by iteration 0, 100 GB asked."
        in plan(("  lora:", "  base: {gb: 15, per: run}\n  lora:"), both, disk_gb=100.0, iterations=1)["text"]
    )


def test_v5_what_lies_on_a_volume_is_checked_against_the_volume(plan: Any) -> None:
    message = plan(VOLUME)["msg"]
    assert "112.8 GB of the volume cache by iteration 4, more than volumes.cache.size_gb=100" in message
    assert "ask for more with volumes.cache.size_gb: 113 in the workload or run fewer iterations" in message
    text = plan(VOLUME, LATEST, ("  lora: {gb: 0.5}", "  lora: {gb: 0.5}\n  c: {gb: 30, per: run, place: disk}"))[
        "text"
    ]
    assert "Disk: 30 GB needed by iteration 4, 200 GB asked." in text
    assert "Volume cache: 52.75 GB needed by iteration 4, 100 GB asked." in text
    elsewhere = ("/mnt/persistent", "/mnt/cache")
    assert "Disk: 112.8 GB needed by iteration 4, 200 GB asked." in plan(VOLUME, elsewhere)["text"]


def test_a_machine_that_is_there_is_not_asked_for_a_larger_disk(plan: Any, world: World) -> None:
    world.vast.held = {"7": instance("vast", "7", ref=RunRef("burn-0", "burn"))}
    assert "nothing has to be rented" in plan(disk_gb=10.0, run="burn-0")["text"]


def test_several_machines_are_checked_each(plan: Any, world: World) -> None:
    world.vast.market = [offer("vast", str(number), disk_gb=500.0) for number in range(4)]
    pools = ("stages:", "pools: {main: {}, search: {needs: {disk_gb: 60}, nodes: 2}}\nstages:\n"
             "  - {name: search, command: x, pool: search}")  # fmt: skip
    assert "needs.disk_gb=60" in plan(pools)["msg"]
    assert plan(pools, LATEST)["text"].count("Disk: 52.75 GB needed by iteration 4, 60 GB asked.") == 1
