# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An environment has what was asked for, and one that has it is left alone. With the real uv and without a network."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

UV = Path(sys.executable).with_name("uv")


def wheel(folder: Path, name: str) -> Path:
    """Write a wheel of one module that says its name, and return its path."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(f"{name}.py", f"NAME = {name!r}\n")
        packed.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        packed.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return file


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the module's options for an environment with one requirement."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "requirements.txt").write_text(f"# one\nfirst @ file://{wheel(tmp_path, 'first')}\n")
    return {
        "path": str(tmp_path / "envs/code"),
        "python": sys.executable,
        "requirements": str(tmp_path / "requirements.txt"),
        "uv": str(UV),
        "uv_root": str(tmp_path / "uv"),
        "uv_version": "0.0.0",
        "uv_sha256": ["0" * 64],
    }


def says(options: dict[str, Any], module: str) -> str:
    """Return what a program of the environment gets when it imports ``module``."""
    program = f"import {module}; print({module}.NAME)"
    return subprocess.check_output([f"{options['path']}/bin/python", "-c", program], text=True).strip()


def test_creates_once(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    predicted = run_module("uv_environment", check=True, **options)
    assert predicted["changed"] and not (tmp_path / "envs").exists()
    first = run_module("uv_environment", **options)
    assert first["actions"] == predicted["actions"] == ["create the environment", "install 1 requirements"]
    assert says(options, "first") == "first"
    second = run_module("uv_environment", **options)
    assert not second["changed"] and second["diff"]["before"] == second["diff"]["after"]


def test_one_that_was_only_begun_is_followed_by_the_next_task(run_module: Any, options: dict[str, Any]) -> None:
    begun = run_module("uv_environment", **options, wait=False)
    assert begun["under_way"] and begun["changed"]
    ended = run_module("uv_environment", **options, import_paths=["/opt/x.zip"])
    assert ended["changed"] and not ended["under_way"] and says(options, "first") == "first"
    right = run_module("uv_environment", **options, import_paths=["/opt/x.zip"], wait=False)
    assert not right["changed"] and not right["under_way"], "what is there is not begun again"


def test_a_new_requirement_is_added_to_what_there_is(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run_module("uv_environment", **options)
    (tmp_path / "more.txt").write_text(f"second @ file://{wheel(tmp_path, 'second')}\n")
    with (tmp_path / "requirements.txt").open("a") as file:
        file.write("-r more.txt\n")
    assert run_module("uv_environment", **options)["actions"] == ["install 2 requirements"]
    assert says(options, "first") + says(options, "second") == "firstsecond"
    (tmp_path / "more.txt").write_text("# nothing more\n")
    assert run_module("uv_environment", **options)["changed"], "a file that is included counts too"


def test_a_package_with_a_hash_is_installed_only_when_it_matches(
    run_module: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wheel(tmp_path, "third")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    del options["requirements"]
    options["packages"] = [f"third==1.0 --hash=sha256:{'0' * 64}"]
    refused = run_module("uv_environment", **options)
    assert refused["failed"] and "Hash mismatch" in refused["msg"]
    options["packages"] = [f"third==1.0 --hash=sha256:{'0' * 64} --hash=sha256:{right}"]
    assert run_module("uv_environment", **options)["changed"]
    assert says(options, "third") == "third"


def test_one_that_was_cut_off_does_not_count(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    good = requirements.read_text()
    run_module("uv_environment", **options)
    requirements.write_text(good + "no-such-package-anywhere==1.0\n")
    failed = run_module("uv_environment", **options)
    assert failed["failed"] and failed["msg"].startswith("Installing requirements failed with exit code")
    assert "no-such-package-anywhere" in failed["msg"]
    requirements.write_text(good)
    assert run_module("uv_environment", **options)["changed"], "what was complete before is in doubt now"
    assert says(options, "first") == "first"


def test_a_killed_modules_installation_is_taken_over(
    run_module: Any, killed_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """U6: it is not begun anew, which would clear the environment under the uv that still runs."""
    uv = tmp_path / "slow-uv"
    hold = f'case "$1" in pip) until [ -e {tmp_path}/go ]; do sleep 0.02; done ;; esac'
    uv.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\n{hold}\nexec {UV} "$@"\n')
    uv.chmod(0o755)
    options["uv"] = str(uv)
    killed_module("uv_environment", tmp_path / "calls", "pip", **options)
    (tmp_path / "go").touch()
    assert run_module("uv_environment", **options)["changed"]
    assert (tmp_path / "calls").read_text().split() == ["venv", "pip"] and says(options, "first") == "first"
    assert not run_module("uv_environment", **options)["changed"]


def test_import_paths(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as packed:
        packed.writestr("boxed.py", "NAME = 'boxed'\n")
    run_module("uv_environment", **options)
    added = run_module("uv_environment", **{**options, "import_paths": [str(tmp_path / "box.zip")]})
    assert added["actions"] == ["write import paths"]
    assert says(options, "boxed") == "boxed"


def test_an_environment_of_the_image_is_reused(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    image = tmp_path / "venv/main"
    run_module("uv_environment", **{**options, "path": str(image), "requirements": None})
    site = next(image.glob("lib/python3*/site-packages"))
    (site / "torch.py").write_text("NAME = 'the torch of the image'\n")
    absent = run_module("uv_environment", **{**options, "base": str(tmp_path / "nowhere")})
    assert absent["base"] == "" and not Path(options["path"]).is_symlink()
    reused = run_module("uv_environment", **{**options, "base": str(image)})
    assert reused["actions"] == [f"link {image}", "install 1 requirements"]
    assert says(options, "torch") == "the torch of the image" and says(options, "first") == "first"
    assert not run_module("uv_environment", **{**options, "base": str(image)})["changed"]
    own = run_module("uv_environment", **options)
    assert own["changed"] and (site / "torch.py").exists(), "leaving the image's environment must not empty it"


def test_bad_input_is_named(run_module: Any, options: dict[str, Any]) -> None:
    missing = run_module("uv_environment", **{**options, "requirements": "/nowhere/requirements.txt"})
    assert missing["failed"] and "/nowhere/requirements.txt does not exist" in missing["msg"]
    assert run_module("uv_environment", check=True, **{**options, "requirements": "/nowhere/requirements.txt"})[
        "changed"
    ]
    no_uv = run_module("uv_environment", **{**options, "uv": "/nowhere/uv"})
    assert no_uv["failed"] and "uv=/nowhere/uv is not a program" in no_uv["msg"]


def test_each_state_has_an_environment_of_its_own(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """X9: what a stage runs in is never changed; B8."""
    options |= {"by_content": True}
    first = run_module("uv_environment", **options)
    assert Path(first["path"]).parent == Path(options["path"]) and says(first, "first") == "first"
    assert not run_module("uv_environment", **options, beside=True)["changed"]
    before = {path: path.stat().st_mtime_ns for path in Path(first["path"]).rglob("*")}
    more = {"packages": [f"second @ file://{wheel(tmp_path, 'second')}"]}
    second = run_module("uv_environment", **options, **more, beside=True)
    assert second["path"] != first["path"] and says(second, "first") + says(second, "second") == "firstsecond"
    assert {path: path.stat().st_mtime_ns for path in Path(first["path"]).rglob("*")} == before
    assert run_module("uv_environment", **options)["path"] == first["path"]


def test_the_images_environment_waits_until_no_stage_runs(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """U1: it is one for all, so it cannot be prepared beside."""
    image = tmp_path / "venv/main"
    run_module("uv_environment", **{**options, "path": str(image), "requirements": None})
    options |= {"by_content": True, "base": str(image)}
    linked = run_module("uv_environment", **options)
    assert linked["path"] == f"{options['path']}/image" and Path(linked["path"]).readlink() == image
    assert not run_module("uv_environment", **options, beside=True)["changed"]
    more = {"packages": [f"second @ file://{wheel(tmp_path, 'second')}"]}
    refused = run_module("uv_environment", **options, **more, beside=True)
    assert refused["failed"] and "is in use by the stage that runs" in refused["msg"]
    assert not list(image.glob("lib/python3*/site-packages/second.py"))
    assert run_module("uv_environment", **options, **more)["changed"] and says(linked, "second") == "second"


@pytest.fixture
def code(tmp_path: Path, options: dict[str, Any]) -> Path:
    """Return a repository with a project whose backend needs no network, and an extra that is a wheel in it."""
    code = tmp_path / "code"
    (code / "libs").mkdir(parents=True)
    wheel(code / "libs", "extra")
    (code / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        "[project]\nname = 'mine'\nversion = '1.0'\nrequires-python = '>=3.10'\n"
        "[project.optional-dependencies]\ntrain = ['extra']\n"
        "[tool.uv.sources]\nextra = {path = 'libs/extra-1.0-py3-none-any.whl'}\n"
    )
    (code / "mine.py").write_text("NAME = 'mine'\n")
    (code / "backend.py").write_text(BACKEND)
    return code


BACKEND = """
import os, zipfile
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "mine-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\\nName: mine\\nVersion: 1.0\\nProvides-Extra: train\\n"
    about += "Requires-Dist: extra; extra == 'train'\\n"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as packed:
        packed.writestr("mine.pth", os.getcwd() + "\\n")
        packed.writestr("mine-1.0.dist-info/METADATA", about)
        packed.writestr("mine-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        packed.writestr("mine-1.0.dist-info/RECORD", "")
    return name
"""


def test_relative_requirements_are_those_of_the_repository(
    run_module: Any, options: dict[str, Any], code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-e .` and `./x.whl` mean the repository, wherever the module runs, and each state of it."""
    monkeypatch.chdir(tmp_path)
    (code / "needs").mkdir()
    (code / "needs/all.txt").write_text("./libs/extra-1.0-py3-none-any.whl\n")
    options |= {"by_content": True, "repository": str(code), "requirements": str(code / "needs/all.txt")}
    options |= {"packages": ["-e ."]}
    first = run_module("uv_environment", **options)
    assert says(first, "mine") + says(first, "extra") == "mineextra", first
    moved = code.rename(tmp_path / "elsewhere")
    options |= {"repository": str(moved), "requirements": str(moved / "needs/all.txt")}
    assert run_module("uv_environment", **options)["path"] != first["path"]


def test_extras_of_the_repositorys_own_project(run_module: Any, options: dict[str, Any], code: Path) -> None:
    options |= {"requirements": None, "repository": str(code)}
    plain = run_module("uv_environment", **options, project=".")
    assert plain["actions"] == ["create the environment", "install 1 requirements"] and says(options, "mine") == "mine"
    assert run_module("uv_environment", **options, extras=["train"])["changed"]
    assert says(options, "extra") == "extra"


def test_a_lock_names_everything_and_a_workspaces_lies_above(
    run_module: Any, options: dict[str, Any], code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's environment is not used then, and what the lock does not name is not there."""
    member = code / "packages/member"
    member.mkdir(parents=True)
    for name in ("mine.py", "backend.py", "libs"):
        (code / name).rename(member / name)
    (code / "pyproject.toml").rename(member / "pyproject.toml")
    (code / "pyproject.toml").write_text("[tool.uv.workspace]\nmembers = ['packages/*']\n")
    made = subprocess.run([str(UV), "lock", "--python", sys.executable], cwd=code, capture_output=True, text=True)
    assert made.returncode == 0 and (code / "uv.lock").exists(), made.stderr
    image = tmp_path / "venv/main"
    run_module("uv_environment", **{**options, "path": str(image), "requirements": None})
    options |= {"requirements": None, "repository": str(code), "project": "packages/member", "lock": "uv.lock"}
    options |= {"by_content": True, "base": str(image)}
    plain = run_module("uv_environment", **options)
    assert plain["base"] == "" and says(plain, "mine") == "mine", plain
    with_extra = run_module("uv_environment", **options, extras=["train"])
    assert with_extra["path"] != plain["path"] and says(with_extra, "extra") == "extra"
    assert not run_module("uv_environment", **options, extras=["train"])["changed"]
    with (code / "uv.lock").open("a") as lock:
        lock.write("# another state\n")
    assert run_module("uv_environment", **options)["path"] != plain["path"]
    (code / "uv.lock").unlink()
    missing = run_module("uv_environment", **options)
    assert missing["failed"] and f"The file {code}/uv.lock does not exist on this machine." in missing["msg"]


def test_our_own_uv_is_installed_by_checksum_once(
    run_module: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--require-hashes` is passed once."""
    commands: list[list[str]] = []

    uv_environment = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.uv_environment")
    monkeypatch.setattr(uv_environment._box, "run", lambda _m, command, **_: commands.append(command) or "")
    monkeypatch.setattr(uv_environment.Environment, "find_uv", lambda self: None)
    monkeypatch.setattr(uv_environment.Environment, "complete", lambda self, wanted, keep: None)
    run_module("uv_environment", **{**options, "requirements": None, "uv": None})
    assert [command.count("--require-hashes") for command in commands] == [0, 1]
