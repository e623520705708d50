"""The benchmark's own judgement: which roles have looked, and whether a limit is held."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SAID = """
TASK [gpuyard.cloud.rust : Have Rust 1.96.0] ****
  … gpuyard.cloud.rust : Have Rust 1.96.0 (5 s)
ok: [box]

TASK [gpuyard.cloud.python_env : Have the environment x] ****
ok: [box]

TASK [gpuyard.cloud.python_env : Have the environment venv] ****
changed: [box]

TASK [gpuyard.cloud.lean : Have what Lean needs] ****
skipping: [box]

TASK [Write down that the machine is in shape] ****
changed: [box]
"""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    file = Path(__file__).parents[3] / "benchmarks/run.py"
    spec = importlib.util.spec_from_file_location("benchmarks_run", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_roles_that_have_looked_and_those_that_have_changed_something(bench: ModuleType) -> None:
    assert bench.roles_in(SAID) == {"rust": False, "python_env": True}


def test_a_limit_that_is_not_held_is_said_and_fails(bench: ModuleType) -> None:
    figures = {row.name: [1.0, 2.0] for row in bench.ROWS}
    lines, ratios, held = bench.table(figures)
    assert held and ratios["empty"] == {"floor": 1.0, "shell": 1.0} and ratios["several"] == {"one": 1.0}
    assert sum("NOT held" in line for line in lines) == 0
    lines, ratios, held = bench.table(figures | {"full": [10.1, 10.2], "ready": [6.1, 6.3]})
    assert not held and ratios["ready"]["floor"] == pytest.approx(6.1)
    assert [line[:35].strip() for line in lines if "NOT held" in line] == [
        "first line, machine that matches",
        "launch.yml, all roles look at every",
    ]
