# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An environment has what was asked for, and one that has it is left alone. With the real uv and without a network."""

from __future__ import annotations

import hashlib
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
