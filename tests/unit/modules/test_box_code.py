# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""gpuyard's own code on a machine: compiled for one Python, and run from its sources by any other."""

from __future__ import annotations

import base64
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard import boxzip

RunModule = Callable[..., dict[str, Any]]
WHERE = "import gpuyard.errors; print(gpuyard.errors.__file__)"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    content = base64.b64encode(boxzip.content()).decode()
    return {"src": "box.zip", "content": content, "dest": str(tmp_path / "box.zip"), "python": sys.executable}


def loaded_from(python: str, archive: str) -> str:
    return subprocess.check_output([python, "-c", WHERE], env={"PYTHONPATH": archive}, text=True).strip()


def test_it_is_compiled_once_for_the_python_that_runs_it(run_module: RunModule, options: dict[str, Any]) -> None:
    archive = Path(options["dest"])
    predicted = run_module("box_code", check=True, **options)
    assert predicted["changed"] and not archive.exists()
    first = run_module("box_code", **options)
    assert first["changed"] and first["state"] == predicted["state"]
    assert first["state"].endswith(f" for {sys.implementation.cache_tag}")
    assert loaded_from(sys.executable, str(archive)) == f"{archive}/gpuyard/errors.pyc"
    written = archive.stat().st_mtime_ns
    assert not run_module("box_code", **options)["changed"] and archive.stat().st_mtime_ns == written
    assert [path.name for path in archive.parent.iterdir() if path.name.startswith(".box")] == []


def test_another_python_runs_it_from_the_sources(run_module: RunModule, options: dict[str, Any]) -> None:
    run_module("box_code", **options)
    archive = Path(options["dest"])
    # What another Python sees: a magic number that is not its own.
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(archive.with_name("other.zip"), "w") as changed:
        for entry in opened.infolist():
            data = opened.read(entry)
            changed.writestr(entry, b"\x01\x02\r\n" + data[4:] if entry.filename.endswith(".pyc") else data)
    place = str(archive.with_name("other.zip"))
    assert loaded_from(sys.executable, place) == f"{place}/gpuyard/errors.py"


def test_without_a_python_to_compile_for_it_is_brought_as_it_is(run_module: RunModule, options: dict[str, Any]) -> None:
    plain = {**options, "python": "/nonexistent/python"}
    assert run_module("box_code", **plain)["state"].endswith(" for any Python")
    assert not run_module("box_code", **plain)["changed"]
    assert loaded_from(sys.executable, options["dest"]).endswith("/errors.py")
    assert run_module("box_code", **options)["changed"], "there is a Python now"


@pytest.mark.parametrize("damage", [b"torn", None])
def test_a_damaged_or_newer_archive_is_replaced(
    run_module: RunModule, options: dict[str, Any], damage: bytes | None
) -> None:
    run_module("box_code", **options)
    if damage:
        Path(options["dest"]).write_bytes(damage)
    else:
        newer = Path(options["dest"]).with_name("newer.zip")
        with zipfile.ZipFile(newer, "w") as archive:
            archive.writestr("gpuyard/__init__.py", "")
        options["content"] = base64.b64encode(newer.read_bytes()).decode()
    assert run_module("box_code", **options)["changed"]
    assert not run_module("box_code", **options)["changed"]
