"""What runs on the box runs from one zip file, without any other part of gpuyard."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from gpuyard import boxzip


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first = boxzip.build(tmp_path / "a/box.zip")
    time.sleep(0.01)
    (tmp_path / "b").mkdir()
    os.umask(os.umask(0o077))
    assert boxzip.build(tmp_path / "b/box.zip") == first
    data = (tmp_path / "a/box.zip").read_bytes()
    assert data == (tmp_path / "b/box.zip").read_bytes() and hashlib.sha256(data).hexdigest() == first
    written = (tmp_path / "a/box.zip").stat().st_mtime_ns
    assert boxzip.build(tmp_path / "a/box.zip") == first
    assert (tmp_path / "a/box.zip").stat().st_mtime_ns == written, "an archive that is right is left alone"
    (tmp_path / "a/box.zip").write_bytes(b"torn")
    assert boxzip.build(tmp_path / "a/box.zip") == first
    assert (tmp_path / "a/box.zip").read_bytes() == data
    names = zipfile.ZipFile(tmp_path / "a/box.zip").namelist()
    assert "gpuyard/box/stages/__main__.py" in names and "gpuyard/providers/base.py" not in names


def test_it_runs_from_the_archive_alone(tmp_path: Path) -> None:
    boxzip.build(tmp_path / "box.zip")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "box.zip")}
    for module in ("gpuyard.box.stages", "gpuyard.box.checkpoints"):
        # -S: no site-packages, so neither the installed gpuyard nor any dependency is within reach.
        answer = subprocess.run(
            [sys.executable, "-S", "-m", module, "--help"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert f"python -m {module}" in answer.stdout
