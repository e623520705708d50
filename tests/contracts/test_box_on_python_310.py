"""What travels to a box runs on Python 3.10 with nothing but its standard library: runner, checkpoints, modules.

Ubuntu 22.04, which many images of machine-learning boxes are made of, has that Python. The tests need a real one.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard import boxzip

ROOT = Path(__file__).resolve().parents[2]
VERSION = "{}.{}".format(*boxzip.OLDEST_PYTHON)
RUN = "canyon-0"
# What a module of ours needs of the controller's Python is named in the action group; the others run on boxes.
ON_THE_CONTROLLER = set(yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["all"])
ON_THE_BOX = sorted({file.stem for file in (ROOT / "plugins/modules").glob("*.py")} - ON_THE_CONTROLLER)


@functools.cache
def find_python() -> str:
    """Return a real Python 3.10 of this machine; ``""`` when it has none."""
    places = [shutil.which(f"python{VERSION}") or ""]
    installed = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    places += [str(file) for file in sorted(installed.glob(f"{VERSION}*/bin/python{VERSION}"))]
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        command = [str(uv), "python", "find", "--no-python-downloads", "--managed-python", VERSION]
        places.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    for place in filter(None, places):
        # A shim of pyenv is there for every version, and works only for the one that is chosen.
        done = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith(f"Python {VERSION}."):
            return place
    return ""


@pytest.fixture(scope="module")
def python() -> str:
    found = find_python()
    if not found:
        # Nothing that gpuyard may rely on installs an old Python everywhere; mypy checks the same files as 3.10 there.
        pytest.skip(f"there is no Python {VERSION} here: pyenv install {VERSION}, or uv python install {VERSION}")
    return found


class Box:
    """A box in a folder: its Python is 3.10, and box.zip is all that it has of gpuyard."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.root, self.settings, self.bucket = folder / "persistent", folder / "run", folder / "bucket"
        boxzip.build(folder / "box.zip")
        for made in (self.settings, self.bucket, folder / "src"):
            made.mkdir()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(folder / "box.zip"),
            "PYTHONNOUSERSITE": "1",
        }

    def describe(self, *stages: dict[str, Any]) -> None:
        workload = {
            "name": "canyon",
            "persist": {"root": str(self.root), "directories": ["results"]},
            "checkpoints": {"every_s": 0},
            "iterations": 1,
            "stages": stages,
        }
        settings = {"run": RUN, "bucket": f"file://{self.bucket}", "repository": str(self.folder / "src"), "path": []}
        (self.settings / "workload.json").write_text(json.dumps(workload))
        (self.settings / "settings.json").write_text(json.dumps(settings))
        (self.settings / "secrets.env").write_text("TOKEN='canary'\n")

    def execute(self, *words: str) -> str:
        done = subprocess.run(
            [self.python, *words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, module: str, verb: str, *words: str) -> str:
        return self.execute("-m", f"gpuyard.box.{module}", verb, "--settings", str(self.settings), *words)


@pytest.fixture
def box(tmp_path: Path, python: str) -> Box:
    return Box(tmp_path, python)


def test_every_module_of_the_archive_is_imported(box: Box) -> None:
    """No name of a later standard library, no syntax, no other package: whatever a run would meet only later."""
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in zipfile.ZipFile(box.folder / "box.zip").namelist()
        if name.endswith(".py") and not name.endswith("__main__.py")
    ]
    script = "import importlib, sys; [print(importlib.import_module(name).__file__) for name in sys.argv[1:]]"
    # -S: no package that this Python may have besides its own library.
    places = box.execute("-S", "-c", script, *names).splitlines()
    assert len(places) == len(names) > 20 and all(place.startswith(f"{box.folder}/box.zip/") for place in places)


def test_a_run_is_run_published_lost_and_restored(box: Box) -> None:
    """B26: the stages run, their files are in the bucket, and another box goes on where the first one was lost."""
    box.describe(
        {"name": "train", "command": "echo $GPUYARD_RUN $TOKEN > $GPUYARD_PERSIST/results/train"},
        {"name": "search", "command": "test -e ../go && echo found > $GPUYARD_PERSIST/results/search"},
    )
    failed = subprocess.run(
        [box.python, "-m", "gpuyard.box.stages", "run", "--settings", str(box.settings)],
        env=box.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert failed.returncode == 1, failed.stdout + failed.stderr
    status = json.loads(box.call("stages", "status", "--json"))
    assert (status["state"], status["failure"]["stage"], status["stages_done"]) == ("failed", "search", 1)
    box.call("checkpoints", "publish")
    listed = [json.loads(line) for line in box.call("checkpoints", "list").splitlines()]
    assert listed and listed[0]["files"] >= 2
    assert json.loads(box.call("checkpoints", "verify"))["damaged"] == []

    shutil.rmtree(box.root)
    restored = json.loads(box.call("stages", "start", "--restore", "--state", "restored"))["restored"]
    assert (restored["source"], restored["sequence"]) == ("cloud", listed[0]["sequence"])
    assert (box.root / "results/train").read_text() == f"{RUN} canary\n"
    (box.folder / "go").touch()
    box.call("stages", "run")
    assert (box.root / "results/search").read_text() == "found\n"
    assert json.loads(box.call("stages", "status", "--json"))["state"] == "finished"
    assert "found" not in box.call("stages", "log", "--stage", "search")
    assert json.loads(box.call("checkpoints", "publish", "--json"))["state"] is True


def modules_and_options(folder: Path, python: str) -> dict[str, dict[str, Any]]:
    """Return harmless options, in check mode, for every module that runs on boxes."""
    return {
        "convergence": {"fingerprint": "aa", "state": "begun", "path": str(folder / "converged.json")},
        "box_code": {"src": __file__, "dest": str(folder / "box.zip"), "python": str(folder / "python")},
        "base_system": {"packages": ["no-such-package-anywhere"]},
        "lean_toolchain": {
            "toolchain": "leanprover/lean4:v4.27.0",
            "root": str(folder / "lean"),
            "bin_dir": str(folder / "bin"),
            "elan_version": "4.2.3",
        },
        "pantograph_build": {
            "url": f"file://{folder}/none",
            "commit": "0" * 40,
            "root": str(folder / "pantograph"),
            "bin_dir": str(folder / "bin"),
        },
        "cuda_toolkit": {"root": str(folder / "cuda"), "bin_dir": str(folder / "bin"), "driver": "keep"},
        "health_check": {"report": str(folder / "health.json")},
        "data_disks": {
            "volumes": {
                "cache": {"mount": str(folder / "cache"), "source": "attached", "size_gb": 0.001, "file_system": "ext4"}
            },
            "record": str(folder / "volumes.json"),
        },
        "dataset": {"datasets": {"pairs": {"from": "http://127.0.0.1:9/x", "to": "x"}}, "rclone": "/bin/false"},
        "model_weights": {
            "weights": {"base": {"repository": "org/tiny", "revision": "0" * 40, "directory": "models"}},
            "endpoint": "http://127.0.0.1:9",
        },
        "monitoring_targets": {"prometheus": str(folder / "node-exporter/gpuyard.prom")},
        "persistent_links": {"root": str(folder / "volume"), "directories": ["models"]},
        "rust_toolchain": {
            "version": "1.96.0",
            "root": str(folder / "rust"),
            "bin_dir": str(folder / "bin"),
            "rustup_version": "1.28.2",
            "rustup_sha256": {f"{machine}-unknown-linux-gnu": ["0" * 64] for machine in ("x86_64", "aarch64")},
        },
        "snapshot_bundle": {
            "state": "restored",
            "root": str(folder / "gpuyard"),
            "offers": [{"platform": "riscv64-plan9-none"}],
        },
        "stage_session": {
            "run": RUN,
            "workload": {"name": "canyon", "stages": []},
            "settings": str(folder / "settings"),
            "python": python,
        },
        "uv_environment": {
            "path": str(folder / "environment"),
            "packages": ["six"],
            "uv_root": str(folder / "uv"),
            "uv_version": "0.9.0",
            "uv_sha256": ["0" * 64],
        },
        "work_tree": {"dest": str(folder / "tree"), "url": f"file://{folder}/none", "commit": "0" * 40},
    }


def test_every_module_that_runs_on_boxes_runs(tmp_path: Path, python: str) -> None:
    """As Ansible sends them: packed with what they import, in a process of the box's Python."""
    options = modules_and_options(tmp_path, python)
    tasks = [
        # One without options here is refused for that, once it has been imported.
        {f"gpuyard.cloud.{name}": options.get(name, {}), "name": name, "register": "done"}
        for name in ON_THE_BOX
    ]
    for task in tasks:
        # A refusal in a sentence is a result, too. What broke off has an exception and says nothing.
        task["failed_when"] = "done.exception is defined and done.msg is not defined"
    tasks.append({"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "python"]}})
    tasks.append({"ansible.builtin.debug": {"msg": "version={{ ansible_facts.python.version.minor }}"}})
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "--check",
            "-e",
            f"ansible_python_interpreter={python}",
            str(tmp_path / "play.yml"),
        ],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"version={boxzip.OLDEST_PYTHON[1]}" in done.stdout


def test_the_linter_takes_as_python_310_what_travels_and_nothing_else() -> None:
    """One list: the archive's is the linter's. The type checker asks for the archive's own, see scripts/test."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    assert set(patterns.values()) == {"py310"}

    def is_old(path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in patterns)

    travels = {file.relative_to(ROOT).as_posix() for file in boxzip.sources() if file.suffix == ".py"}
    core = {file.relative_to(ROOT).as_posix() for file in (ROOT / "src").rglob("*.py")}
    assert {path for path in core if is_old(path)} == travels
    for name in ON_THE_BOX:
        assert is_old(f"plugins/modules/{name}.py"), name
    assert is_old("plugins/module_utils/_box.py")
