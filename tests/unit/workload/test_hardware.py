"""What a workload says of CUDA and of the machine's health."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard.errors import UsageError
from gpuyard.workload import Workload, resolve
from gpuyard.workload.hardware import DEFAULTS

TEXT = "name: tiny\nrepository: {path: .}\nstages: [{name: one, command: 'true'}]\n"


def read(folder: Path, more: str) -> Workload:
    file = folder / "tiny.yml"
    file.write_text(TEXT + more)
    return resolve(str(file)).workload


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("cuda: {version: '12.4', minimum: '12.1'}", "cuda: must have either version or minimum and maximum"),
        ("cuda: {minimum: '12.8', maximum: '12.4'}", "a maximum that is not below the minimum 12.8, not 12.4"),
        ("cuda: {source: pip}", "cuda.source: must be one of auto, repository, distribution, wheels, image, not 'pip'"),
        ("cuda: {driver: no}", "cuda.driver: must be one of auto, keep, not false"),
        ("health: {disk_mb_s: -1}", "health.disk_mb_s: must be a positive number, not -1"),
        ("health: {data: [/data]}", "must be a relative path without '..', not '/data'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, more: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, more)
    assert sentence in str(caught.value)


def test_only_what_is_named_counts_as_named(tmp_path: Path) -> None:
    assert read(tmp_path, "").health is None
    health = read(tmp_path, "health: {disk_mb_s: 200, network_mb_s: null}").health
    assert health is not None and health.least == {"disk_mb_s": 200.0}
    assert set(DEFAULTS) == {name for name in type(health).model_fields if name.rpartition("_")[2] in ("s", "gb")}


def test_the_box_is_told_of_both(tmp_path: Path) -> None:
    box = read(tmp_path, "cuda: {minimum: '12.1'}\nhealth: {torch: true}").to_box()
    assert box["cuda"] == {"version": None, "minimum": "12.1", "maximum": None, "source": "auto", "driver": "auto"}
    assert isinstance(box["health"], dict) and box["health"]["torch"] is True
    assert read(tmp_path, "").to_box()["cuda"] is None
