"""The examples for training code: short, whole, and the one for PyTorch goes on on another machine."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/training"
MOST_LINES = 60


@pytest.mark.parametrize("name", ["pytorch_loop", "lightning_callback", "huggingface_trainer"])
def test_an_example_is_short_and_uses_what_there_is(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.count("\n") <= MOST_LINES
    tree = ast.parse(text)
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {"download_checkpoints", "sync_checkpoints"} <= called
    assert f"`{name}.py`" in (EXAMPLES / "README.md").read_text()


def train(box: Path, bucket: str, steps: int) -> str:
    """Run the loop, with the STAND-IN for PyTorch, on a machine that has the folder ``box``."""
    box.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "pytorch_loop.py"), "--steps", str(steps)],
        cwd=box,
        env={
            "PYTHONPATH": str(Path(__file__).parent / "standin"),
            "CLOUD_PROVIDER": "local",
            "CLOUD_BUCKET": bucket,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_e4_the_loop_goes_on_from_the_bucket_on_another_machine(tmp_path: Path) -> None:
    bucket = str(tmp_path / "bucket")
    assert "going on" not in train(tmp_path / "one", bucket, 12)
    assert "going on after step 12" in train(tmp_path / "another", bucket, 20)
    state = json.loads((tmp_path / "another/checkpoints/newest.pt").read_text())
    assert (state["step"], state["optimizer"]["steps"]) == (20, 20)
    assert not (tmp_path / "alone/bucket").exists() and "going on" not in train(tmp_path / "alone", "", 5)
