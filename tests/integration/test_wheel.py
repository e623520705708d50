"""The wheel is the whole installation: core, collection, workloads and examples."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel where Python looks before it looks into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [str(PROGRAMS / "uv"), "build", "--wheel", "--quiet", "--no-build-isolation", "--out-dir", str(folder)]
    subprocess.run([*build, "--python", sys.executable, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *words: str) -> str:
    """Run a program in an empty folder with the wheel's content first on Python's path."""
    environment = os.environ | {"PYTHONPATH": str(installed), "GPUYARD_HOME": str(folder)}
    done = subprocess.run(
        [str(PROGRAMS / words[0]), *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plays_and_plugins_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "ansible-playbook", "gpuyard.cloud.resume_search", "--list-tasks")
    assert "Plan the run" in listed
    document = run(installed, tmp_path, "ansible-doc", "-t", "module", "--json", "gpuyard.cloud.instance")
    assert str(installed) in document


def test_the_workload_and_its_repository_are_found(installed: Path, tmp_path: Path) -> None:
    script = (
        "from gpuyard.workload import load_workload; from gpuyard.fingerprint import collection_root;"
        "print(collection_root()); print(load_workload('miniprover').local_tree)"
    )
    root, tree = run(installed, tmp_path, "python", "-c", script).split()
    assert root == str(installed / "ansible_collections" / "gpuyard" / "cloud")
    assert tree == f"{root}/examples/miniprover" and (Path(tree) / "Cargo.lock").is_file()


def test_nothing_built_or_private_is_in_it(installed: Path) -> None:
    names = {path.relative_to(installed).parts[-1] for path in installed.rglob("*")}
    assert not names & {"target", "__pycache__", ".venv", "sandbox.json"}
