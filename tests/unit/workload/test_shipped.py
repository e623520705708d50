"""The workloads that come with gpuyard can be used as they are, with each of their profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard.workload import Workload, resolve

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path.stem for path in (ROOT / "workloads").glob("*.yml"))


@pytest.mark.parametrize("name", FILES)
def test_b3_b28_f5_each_profile_resolves_and_can_be_sent_to_a_machine(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    own = resolve(name).workload
    for profile in ("", *own.profiles):
        found = resolve(name, profiles=[profile] if profile else []).workload
        assert found.to_box()["stages"], profile
        assert all(stage.hours for stage in found.stages), "the plan has to know what each stage takes"
        assert found.description and found.budget.max_price_per_hour


def test_the_five_projects_and_the_two_examples_are_there() -> None:
    projects = {"burnqed", "eigen2", "fairy2", "universal_simulator"}
    assert set(FILES) == {"miniprover", "nanogpt"} | projects


def test_b3_b23_b27_b28_burnqed_has_its_profiles_bands_and_ways_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    own = resolve("burnqed").workload
    profiles = {"qlora", "multi-gpu", "search", "ebm", "minimum", "recommended", "small"}
    assert set(own.profiles) == profiles
    stages = {stage.name: stage for stage in own.stages}
    assert {name: stage.resumable for name, stage in stages.items() if name not in ("data", "benchmarks")} == {
        "finetune": "partial",
        "export": "no",
        "ebm": "yes",
        "search": "yes",
        "evaluate": "no",
    }
    assert stages["finetune"].environment["SAVE_STEPS"] == "500"
    assert own.monitoring
    bands = own.monitoring.bands
    assert {band.metric for band in bands.values()} == {
        "gpu_use_percent",
        "gpu_memory_gb",
        "disk_growth_gb",
        "line_interval_s",
    }
    small = resolve("burnqed", profiles=["small"]).workload

    def hours(workload: Workload) -> float:
        return sum(stage.hours.expected for stage in workload.stages if stage.hours)

    assert hours(small) <= hours(own) / 5


def test_nanogpt_brings_what_its_programs_import() -> None:
    """``sample.py`` imports tiktoken also for a model of characters."""
    python = resolve("nanogpt").workload.python
    assert python is not None
    assert {name.partition(">")[0] for name in python.packages} == {"torch", "numpy", "requests", "tiktoken"}
