from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_box import PROVER, Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    # The path of a socket may have 107 characters, which a folder of pytest's own can exceed.
    sockets = Path(tempfile.mkdtemp(prefix="yard", dir="/tmp"))
    made = Box(tmp_path, tmp_path / "persistent", tmp_path / "run", tmp_path / "src", sockets)
    made.repository.mkdir()
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(["tmux", "kill-server"], env=made.env, capture_output=True, check=False)
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture
def signals() -> Iterator[None]:
    """Let a runner work in the tests' own process: it takes over signals, which are given back."""
    taken = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in taken.items():
        signal.signal(number, handler)


@pytest.fixture
def prover(box: Box) -> Path:
    file = box.repository / "prover.py"
    file.write_text(PROVER)
    return file
