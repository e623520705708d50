"""The kit with which other projects test their own playbooks: the examples as they stand, and how a sandbox ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuyard.sandbox.engine import find

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LONGEST_S = 900


def run(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's programs in a folder, as somebody does who has installed ``gpuyard[testing]``."""
    vastai = ROOT / ".tools/vastai/bin"
    environment = os.environ | {"PATH": f"{BIN}:{vastai}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"} | more
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


def brought(example: str, folder: Path) -> Path:
    """Copy an example to a place outside of this repository, whose configuration it must not need."""
    return shutil.copytree(ROOT / "examples" / example, folder / example)


@pytest.mark.parametrize("example", ["test-a-playbook", "test-a-script"])
def test_an_example_for_pytest(tmp_path: Path, example: str) -> None:
    """X13."""
    done = run(brought(example, tmp_path), "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


def test_the_example_for_molecule(tmp_path: Path) -> None:
    """X13: and a platform that no cloud has is one sentence, with nothing left running."""
    role = brought("test-a-role", tmp_path)
    home = {"MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "ephemeral")}
    done = run(role, "molecule", "test", **home)
    assert done.returncode == 0 and "successful=5" in done.stdout, done.stdout

    configuration = role / "molecule/default/molecule.yml"
    text = configuration.read_text()
    configuration.write_text(text.replace("provider: vultr", "provider: volture"))
    assert "'volture' is not one of ['vast', 'vultr', 'lambda', 'runpod']" in run(role, "molecule", "create").stdout
    configuration.write_text(text.replace("gpu_ram_gb: 16", "gpu_ram_gb: 16000"))
    done = run(role, "molecule", "create", **home)
    assert done.returncode != 0 and "gpu_ram_gb" in done.stdout and "Traceback" not in done.stdout, done.stdout
    assert not (tmp_path / "ephemeral/gpuyard/sandbox/sandbox.json").exists()


def test_a_sandbox_ends_with_its_session_however_a_test_went(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_shared(gpuyard_sandbox):\n"
        "    gpuyard_sandbox.s3().put_object(Bucket=gpuyard_sandbox.bucket, Key='a', Body=b'b')\n"
        "    gpuyard_sandbox.rent('vultr', run='left-0')\n"
        "    print('SANDBOX', gpuyard_sandbox.info.name, gpuyard_sandbox.environment['VAST_API_KEY'][:12])\n"
        "    raise KeyError('a mistake in the test')\n"
        "def test_it_is_as_at_first(gpuyard_sandbox):\n"
        "    assert gpuyard_sandbox.rented() == [] and gpuyard_sandbox.bill()['lines'] == []\n"
        "    assert 'Contents' not in gpuyard_sandbox.s3().list_objects_v2(Bucket=gpuyard_sandbox.bucket)\n"
        "def test_own(gpuyard_own_sandbox, gpuyard_sandbox):\n"
        "    assert gpuyard_own_sandbox.info.name != gpuyard_sandbox.info.name\n"
        "    print('SANDBOX', gpuyard_own_sandbox.info.name, 'sandbox-vast')\n"
    )
    done = run(tmp_path, "pytest", "-q", "-rA", "-p", "no:cacheprovider", VAST_API_KEY="a-real-key")
    assert "2 passed, 1 failed" in done.stdout or "1 failed, 2 passed" in done.stdout, done.stdout
    named = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SANDBOX")]
    assert [key for _, key in named] == ["sandbox-vast"] * 2
    assert [find().containers(name) for name, _ in named] == [[], []]


def test_without_a_container_engine_the_tests_are_passed_over_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(gpuyard_sandbox):\n    raise AssertionError\n")
    done = run(tmp_path, "pytest", "-q", "-rs", "-p", "no:cacheprovider", PATH="/nonexistent")
    assert done.returncode == 0 and "1 skipped" in done.stdout
    assert "There is no sandbox: " in done.stdout and "apt-get install podman" in done.stdout, done.stdout
