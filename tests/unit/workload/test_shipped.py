"""The workloads that come with gpuyard can be used as they are, with each of their profiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuyard.cost import estimate
from gpuyard.market import judge
from gpuyard.providers.base import Offer
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


@pytest.mark.parametrize(
    ("profiles", "gpus", "small", "large"),
    [
        (["dev"], (1, "A10G"), 2.2, 8.2),
        (["small"], (1, "H100"), 2.2, 8.2),
        (["medium"], (2, "H100"), 1.3, 4.6),
        (["large"], (4, "H100"), 0.76, 2.4),
        (["xlarge"], (8, "H100"), 0.48, 1.3),
    ],
)
def test_f5_f8_fairy2_has_its_scales_and_what_each_model_takes_there(
    profiles: list[str], gpus: tuple[float, str], small: float, large: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    count, model = gpus
    memory = 24.0 if model == "A10G" else 80.0
    offer = Offer("aws", "1", model, count, memory, 96, 1024, 500, "us-east-1", "on-demand", 3.0 * count)
    less = replace(offer, gpu_count=count / 2, gpu_name="T4" if count == 1 else model, gpu_ram_gb=16.0)
    own = resolve("fairy2", profiles=profiles).workload
    assert [verdict.fits for verdict in judge([offer, less], own.query())] == [True, False]
    scale = f"qwen3-4b-{profiles[0]}"
    four = resolve("fairy2", profiles=[*profiles, "qwen3-4b", *([scale] if count > 1 else [])]).workload
    assert four.needs.gpu_count == count and four.needs.disk_gb == 200
    for workload, hours in ((own, small), (four, large)):
        run = estimate(workload, offer.price_per_hour_usd).run
        assert run.hours and run.dollars and run.hours.expected == pytest.approx(hours)
        assert run.dollars.expected == pytest.approx(hours * 3.0 * count)


def test_nanogpt_brings_what_its_programs_import() -> None:
    """``sample.py`` imports tiktoken also for a model of characters."""
    python = resolve("nanogpt").workload.python
    assert python is not None
    assert {name.partition(">")[0] for name in python.packages} == {"torch", "numpy", "requests", "tiktoken"}
