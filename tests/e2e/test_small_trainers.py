"""nanoGPT's and the universal simulator's own workload files go through their stages, and lose a machine in the middle.

The repositories are small ones of the same layout below ``layouts/`` (STAND-INs): the arguments, the files, what is
refused, and the projects' own mistakes around which the workload files work. Left out by overrides are torch and the
packages to build with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from yard import Yard

LAYOUTS = Path(__file__).parent / "layouts"
SMALL = ("packages=[]", "python.packages=[]", "checkpoints.every_s=1", "needs.disk_gb=10")


def copied(name: str, folder: Path) -> Path:
    """Return a copy of a small repository: a folder without git, as a download is."""
    for file in (LAYOUTS / name).rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            place = folder / name / file.relative_to(LAYOUTS / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return folder / name


def words(*overrides: str) -> tuple[str, str]:
    """Return overrides as words for a play."""
    return "-e", json.dumps({"overrides": [*SMALL, *overrides]})


def log(yard: Yard, run: str, stage: str) -> str:
    """Return what a stage has printed on all machines."""
    logs = yard.published(run, rf"\.gpuyard/logs/.*{stage}.*")
    return "".join(content.decode() for _, content in sorted(logs.items()))


def test_nanogpt_goes_on_from_its_published_checkpoint(yard: Yard, tmp_path: Path) -> None:
    """A step that was published before the machine went is not trained again, and the samples are of the last one."""
    run, code = "nanogpt-0", copied("nanogpt", tmp_path)
    (code / "data/shakespeare_char/input.txt").write_text("To be, or not to be.\n" * 50)
    ours = words(f"repository.path={code}", "eval_interval=50", "max_iters=1500")
    yard.play("launch", *ours, workload="nanogpt", profile="cpu", run=run, provider="vast")
    saved = yard.wait("a checkpoint of nanoGPT", lambda: yard.published(run, r"out/ckpt\.pt"))
    before = json.loads(saved["out/ckpt.pt"])["iter_num"]
    yard.control.preempt(run=run)
    yard.play("resume_search", run=run, shutdown="true")
    assert yard.instances(run) == [] and yard.control.status()["bill"]["billable"] == []

    assert 0 < before < 1500
    printed = log(yard, run, "train")
    assert "Resuming training from out" in printed
    steps = [int(step) for step in re.findall(r"^step (\d+):", printed.partition("Resuming")[2], re.M)]
    assert before <= steps[0] < 1500 and steps[-1] == 1500
    (samples,) = yard.published(run, r"results/samples\.txt").values()
    assert samples.decode().count("of iteration 1500") == 3


def test_u8_the_universal_simulator_goes_through_its_stages(yard: Yard, tmp_path: Path) -> None:
    """The data come from a bucket; the stage that was cut off begins again, from the same cache and operator."""
    run, code = "universal-simulator-0", copied("universal_simulator", tmp_path)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        yard.store.put(f"pdebench/burgers1d/burgers1d_{split}.h5", b"sample\n" * count)
    ours = words(
        f"repository.path={code}",
        f"datasets.burgers1d.from={yard.store.url}/pdebench/burgers1d",
        "environment.set.EPOCH_S=10",
    )
    yard.play("launch", *ours, workload="universal_simulator", profile="smoke", run=run, provider="vast")
    begun = r"reports/test_training_log\.jsonl"
    yard.wait(
        "the diffusion stage, published",
        lambda: b"diff_residual" in b"".join(yard.published(run, begun).values()),
    )
    before = yard.published(run, r"data/latent_cache/.*|checkpoints/test/operator\.pt")
    assert len(before) == 8 + 1
    yard.control.preempt(run=run)
    yard.play("resume_search", run=run, shutdown="true")
    assert yard.instances(run) == [] and yard.control.status()["bill"]["billable"] == []

    after = yard.published(run, ".*")
    assert {name: after[name] for name in before} == before
    stages = [json.loads(line)["stage"] for line in after["reports/test_training_log.jsonl"].splitlines()]
    assert stages == ["operator", "diff_residual", "diff_residual", "consistency_distill"]
    assert json.loads(after["reports/eval.json"]) == {"metrics": {"samples": 2}}
    # The data can be had again, so no checkpoint holds them.
    assert not [name for name in after if name.startswith("data/pdebench")]
