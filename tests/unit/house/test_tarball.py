"""What `ansible-galaxy collection build` packs, and what works when nothing but that and the core is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GALAXY = [sys.executable, "-m", "ansible", "galaxy", "collection"]
NEEDED = {"CHANGELOG.rst", "LICENSE", "README.md", "changelogs", "meta", "playbooks", "plugins", "roles"}


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection from what git would take, without what earlier runs have left in the checkout."""
    folder = tmp_path_factory.mktemp("tarball")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / "source" / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    build = [*GALAXY, "build", str(folder / "source"), "--output-path", str(folder)]
    subprocess.run(build, capture_output=True, text=True, check=True)
    (made,) = folder.glob("gpuyard-cloud-*.tar.gz")
    return made


def test_only_what_a_collection_needs_is_packed(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = {name for name in archive.getnames() if name != "."}
    assert {name.split("/")[0] for name in names} == NEEDED | {"MANIFEST.json", "FILES.json"}
    assert {"plugins/action/verb.py", "meta/execution-environment.yml", "playbooks/status.yml"} <= names
    assert not [
        name for name in names if "__pycache__" in name or (name.startswith("plugins/") and name.endswith(".pyc"))
    ]


def test_the_installed_tarball_plays_from_any_folder(tarball: Path, tmp_path: Path) -> None:
    # What is installed already would do for the installer: this checkout, which is on Python's path.
    install = [*GALAXY, "install", "--force", str(tarball), "--collections-path", str(tmp_path / "site")]
    subprocess.run(install, capture_output=True, check=True)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "site"),
        "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false",  # where this checkout is
        "ANSIBLE_NOCOLOR": "1",
    }
    (tmp_path / "elsewhere").mkdir()
    play = ["ansible-playbook", "gpuyard.cloud.status", "-vv"]
    done = subprocess.run(
        play, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
    )
    assert str(tmp_path / "site/ansible_collections/gpuyard/cloud/playbooks/status.yml") in done.stdout, done.stderr
    assert "There is no key of any cloud" in done.stdout  # the verb of the installed collection, over the core
