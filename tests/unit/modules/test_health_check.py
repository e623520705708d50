# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The health of a box that is in shape (V9), with the real box code and stand-ins for torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard import boxzip

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    boxzip.build(tmp_path / "box.zip")
    return {"box_zip": str(tmp_path / "box.zip"), "report": str(tmp_path / "health.json")}


def a_torch(folder: Path, gpus: int, right: bool = True) -> str:
    """Return a Python whose torch is a STAND-IN with so many GPUs, which multiplies matrices right or not."""
    (folder / "torch.py").write_text(
        "__version__ = '2.5.1'\nclass version: cuda = '12.4'\n"
        f"class cuda: device_count = staticmethod(lambda: {gpus})\n"
        "class M(float):\n"
        f"    __matmul__ = lambda self, other: M({64 if right else 63})\n"
        "    __eq__ = lambda self, other: All(float(self) == other)\n"
        "class All:\n    def __init__(self, is_so): self.is_so = is_so\n    def all(self): return self.is_so\n"
        "def ones(*_, device): return M(1)\n"
        "class multiprocessing:\n    spawn = staticmethod(lambda work, args, nprocs: args == (nprocs,) or 1 / 0)\n"
    )
    python = folder / "python"
    # Compiled code goes by the second in which a file was written, and the next one is written in the same second.
    python.write_text(f'#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_v9_the_answer_is_kept_and_changes_only_with_a_verdict(
    options: dict[str, Any], tmp_path: Path, run_module: RunModule
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    options.update(data=[str(data)], least={"disk_free_gb": 0.001, "network_mb_s": None})
    failed = run_module("health_check", **options)
    assert (
        failed["msg"].startswith("This machine cannot do its work (data):\n") and f"nothing in {data}" in failed["msg"]
    )
    assert any(
        line.split() == ["data", "failed", "0", "of", "1", "nothing", "in", str(data)] for line in failed["table"]
    )
    kept = run_module("health_check", required=False, **options)
    assert (kept["changed"], "failed" in kept) == (False, False)
    (data / "a.bin").write_text("a")
    assert run_module("health_check", check=True, **options)["changed"] is False
    assert run_module("health_check", **options)["changed"] is True
    again = run_module("health_check", **options)
    assert again["changed"] is False
    document = json.loads((tmp_path / "health.json").read_text())
    assert document["version"] == 1 and document["checks"] == again["checks"]
    assert {one["name"]: one["state"] for one in document["checks"]} == dict.fromkeys(
        ("disk space", "disk", "data"), "ok"
    )


def test_v9_torch_of_the_environment_sees_every_gpu(
    options: dict[str, Any], tmp_path: Path, run_module: RunModule
) -> None:
    def torch(gpus: int, *, right: bool = True, **more: Any) -> dict[str, dict[str, str]]:
        python = a_torch(tmp_path, gpus, right)
        # No GPU is asked for, since this machine has none; as many as wanted is the box code's own affair below.
        done = run_module("health_check", python=python, required=False, **options, **more)
        return {one["name"]: one for one in done["checks"]}

    assert torch(1)["torch"]["found"] == "torch 2.5.1 for CUDA 12.4 sees 1"
    assert torch(2)["nccl"]["found"] == "2 GPUs agree"
    wrong = torch(2, right=False)["torch"]
    assert (wrong["state"], wrong["why"]) == ("failed", "GPU 1 multiplies matrices wrong")
    assert torch(0, emulated=True)["torch"]["state"] == "skipped"
    assert torch(0, gpu_count=1)["torch"]["state"] == "failed"
    (tmp_path / "torch.py").write_text("raise ImportError('libcudnn.so.9')")
    python = str(tmp_path / "python")
    failed = run_module("health_check", python=python, **options)
    assert "torch cannot be imported: libcudnn.so.9" in failed["msg"]


def test_v9_checks_that_were_killed_leave_no_answer_and_the_next_ones_are_whole(
    options: dict[str, Any], tmp_path: Path, run_module: RunModule, killed_module: Callable[..., None]
) -> None:
    python, sign = Path(a_torch(tmp_path, 0)), tmp_path / "sign"
    options.update(python=str(python), emulated=True)
    right = python.read_text()
    python.write_text(f"#!/bin/sh\necho begun > {sign}; sleep 2; exit 1\n")
    killed_module("health_check", sign, "begun", **options)
    assert not list(tmp_path.glob("*health.json*"))
    python.write_text(right)
    done = run_module("health_check", **options)
    assert done["changed"] and json.loads((tmp_path / "health.json").read_text())["checks"] == done["checks"]
    assert not run_module("health_check", **options)["changed"]
    assert len(list(tmp_path.glob("*health.json*"))) == 1


def test_a_box_without_gpuyards_code_is_told(options: dict[str, Any], tmp_path: Path, run_module: RunModule) -> None:
    (tmp_path / "box.zip").unlink()
    assert "run the role checkpoints first" in run_module("health_check", **options)["msg"]
    (tmp_path / "box.zip").write_text("no archive")
    assert run_module("health_check", **options)["msg"].startswith("The checks broke off:\n")
