"""Builds the example's prover once, and makes working folders for it as the box has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "miniprover"


def cargo_command() -> str:
    """The installed cargo; on a Debian without one, and as root, its package of a recent enough version."""
    found = shutil.which("cargo")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "timeout": 500}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ["cargo-web", "gcc", "libc6-dev"]
        subprocess.run(
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages], env=environment, **quiet
        )
        found = shutil.which("cargo")
    assert found, "these tests build a Rust program: install cargo 1.85 or newer (Debian: cargo-web)"
    return found


@pytest.fixture(scope="session")
def cargo() -> str:
    return cargo_command()


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where cargo puts what it builds: not into the checkout."""
    return tmp_path_factory.mktemp("target")


@pytest.fixture(scope="session")
def prover(cargo: str, target: Path) -> Path:
    command = [cargo, "build", "--release", "--locked", "--offline", "--target-dir", str(target)]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return target / "release" / "prover"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the example's code and data, and nothing trained."""
    for name in ("miniprover", "data"):
        (tmp_path / name).symlink_to(EXAMPLE / name)
    return tmp_path
