from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_box import PROVER, Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, tmp_path / "persistent", tmp_path / "run", tmp_path / "src")
    made.repository.mkdir()
    (tmp_path / "t").mkdir()
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(["tmux", "kill-server"], env=made.env, capture_output=True, check=False)


@pytest.fixture
def prover(box: Box) -> Path:
    file = box.repository / "prover.py"
    file.write_text(PROVER)
    return file
