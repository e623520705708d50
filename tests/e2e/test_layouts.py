"""The workloads of three projects go all the way through their stages, on small repositories of the projects' layouts.

The workload files are the real ones. What a machine here cannot have is left out by overrides: CUDA, Rust with crates,
Lean and Pantograph, torch, and the large Debian packages; what stages run of it are STAND-INs below layouts/. Sizes and
intervals are small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yard import Yard

LAYOUTS = Path(__file__).parent / "layouts"
SMALL = ("needs.gpu_ram_gb=8", "needs.gpu_names=[]", "needs.cpu_cores=2", "needs.ram_gb=4", "needs.disk_gb=20")
BURNQED = (
    *("repository.url=", "repository.commit=", f"repository.path={LAYOUTS / 'burnqed'}"),
    *("cuda=", "rust=", "lean=", "pantograph=", "health=", "needs.cuda=", "packages=[]"),
    *(f"sizes.{name}.gb=0.1" for name in ("merged", "trajectories", "base-model", "mathlib", "environment")),
    *("python.packages=[]", "build=[sh programs/install.sh]", "checkpoints.every_s=1", "iterations=2"),
    *("model_revision=model-1", "data_revision=data-1"),
)
TOKEN = {"HF_TOKEN": "a-token-of-nobody"}
STAGES = ("data", "benchmarks", "finetune", "export", "search", "evaluate")


def launch(yard: Yard, run: str, *overrides: str, **options: Any) -> None:
    """Launch a run of the workload that its name begins with."""
    words = json.dumps({"overrides": [*SMALL, *overrides]})
    yard.play("launch", "-e", words, workload=run.rpartition("-")[0], run=run, **options)


def stages_done(yard: Yard, run: str) -> list[tuple[int, str]]:
    """Return iteration and name of each stage that was done, in order, from the newest checkpoint's journal."""
    (content,) = yard.published(run, r"\.gpuyard/journal\.jsonl").values()
    events = [json.loads(line) for line in content.decode().splitlines()]
    ended = [event for event in events if event["event"] == "stage-end" and event["outcome"] == "done"]
    return [(event["iteration"], event["stage"]) for event in ended]


def lines(yard: Yard, run: str, path: str) -> list[str]:
    """Return the lines of one published file."""
    (content,) = yard.published(run, path).values()
    return content.decode().split()


def test_b11_b13_b18_b20_b25_b27_burnqed_loses_its_machine_in_the_search(yard: Yard) -> None:
    """Every stage of two iterations; the search goes on where its last flush was published, on a new machine."""
    run, searched = "burnqed-0", "data/logs/searched-iter0_search_theorems.log"
    launch(yard, run, *BURNQED, provider="vast", env=TOKEN)
    found = yard.wait(
        "a part of the search", lambda: yard.published(run, r"data/trajectories/iter_0\.parquet"), seconds=300
    )
    before = next(iter(found.values())).decode().split()
    yard.control.preempt(run=run)
    yard.play("resume_search", run=run, shutdown="true", env=TOKEN)
    assert yard.instances(run) == [] and yard.control.status()["bill"]["billable"] == []

    first = [(0, name) for name in STAGES]
    later = [(1, name) for name in ("finetune", "export", "ebm", "search", "evaluate")]
    assert stages_done(yard, run) == [*first, *later]
    theorems = [f"iter0_search_theorems_{number}" for number in range(12)]
    assert 0 < len(before) < 12
    assert lines(yard, run, "data/trajectories/iter_0.parquet") == theorems
    # No theorem whose result was published is searched again. A checkpoint may have read the log before the results.
    names = lines(yard, run, searched)
    assert all(names.count(name) <= 1 for name in before)

    kept = yard.published(run, "data/.*")
    assert kept["data/checkpoints/lora/iter_1/adapter_model.safetensors"].decode().split()[-2] == "12"
    assert "data/checkpoints/lora/iter_0/adapter_model.safetensors" in kept
    assert kept["data/checkpoints/ebm/iter_1/final/model.mpk"] == b"energies after 2000 steps\n"
    # Of merged models the newest, and neither what can be fetched nor what can be made again.
    assert [name for name in kept if "safetensors" in name and "models" in name] == [
        "data/models/merged/iter_1/model.safetensors"
    ]
    assert not [name for name in kept if name.startswith(("data/lean", "data/embeddings", "data/traced"))]
    # Each iteration's own model is searched with and evaluated.
    for iteration in (0, 1):
        report = kept[f"data/evals/minif2f_eval/deepseek/iter_{iteration}/4090/test.json"]
        assert json.loads(report) == {"llm_path": f"models/merged/iter_{iteration}"}


def test_f4_f5_f6_f7_fairy2_trains_by_mode_scale_and_overrides(yard: Yard, tmp_path: Path) -> None:
    """Mode by profile, overrides passed on; of the checkpoints the two newest are published."""
    source = ("repository.url=", "repository.commit=", f"repository.path={LAYOUTS / 'fairy2'}")
    (tmp_path / "key.json").write_text("{}")
    words = ("training.max_steps=4", "gcs.bucket=mine")
    key = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
    launch(yard, "fairy2-0", *source, *words, profile="dev,w1,gcs", shutdown="true", env=key)
    kept = {name.rpartition("outputs/")[2] for name in yard.published("fairy2-0", ".*/outputs/.*")}
    saves = {f"checkpoint-{step}/{name}.pt" for step in (3, 4) for name in ("model", "training_state")}
    assert kept == {"arguments.json", *saves}
    (arguments,) = yard.published("fairy2-0", ".*/arguments.json").values()
    assert json.loads(arguments) == {
        "model": "smollm2_135m",
        "training": "fairy2_w1",
        "training.max_steps": "4",
        "gcs.enabled": "true",
        "gcs.prefix": "fairy2/${model.name}",
        "gcs.bucket": "mine",
    }
    assert stages_done(yard, "fairy2-0") == [(0, "train")] and yard.instances("fairy2-0") == []


def test_e7_eigen2_goes_on_from_its_newest_checkpoint(yard: Yard) -> None:
    """The data are looked for, arguments passed on, and an interrupted run goes on from every fifth generation."""
    source = (f"repository.path={LAYOUTS / 'eigen2'}", "health.torch=false", "checkpoints.every_s=1")
    launch(yard, "eigen2-0", *source, "arguments=--generations 20", shutdown="true")
    assert lines(yard, "eigen2-0", "checkpoints/population.txt") == ["20"]
    assert len(lines(yard, "eigen2-0", "logs/training.log")) == 40
    assert stages_done(yard, "eigen2-0") == [(0, "train")] and yard.instances("eigen2-0") == []
