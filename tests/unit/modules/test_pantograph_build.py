# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""B9: the module against real git repositories of the true layout, and stand-ins for lake and Pantograph's REPL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

STAND_INS = Path(__file__).resolve().parents[2] / "stand_ins"
TOOLCHAIN = "leanprover/lean4:v4.27.0"
MODULES = ["Mathlib.Init", "Mathlib.Data.Nat.Basic", "Mathlib.Order.«Some»"]


def commit(folder: Path, files: dict[str, str], tag: str = "v1") -> str:
    """Make a commit of a git repository in ``folder`` and return it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["tag", "-f", tag]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of Pantograph's layout, as a submodule's folder."""
    folder = tmp_path / "prover/vendor/Pantograph"
    folder.mkdir(parents=True)
    (folder / ".git").write_text("gitdir: ../../.git/modules/vendor/Pantograph\n")
    (folder / "lean-toolchain").write_text(f"{TOOLCHAIN}\n")
    (folder / "lakefile.lean").write_text("import Lake\nopen Lake DSL\npackage pantograph\n")
    shutil.copy(STAND_INS / "repl", folder / "Main.lean")
    return folder


@pytest.fixture
def mathlib(tmp_path: Path) -> Path:
    """A repository of Mathlib's layout, tagged v1."""
    folder = tmp_path / "mathlib4"
    imports = "".join(f"public import {name}\n" for name in MODULES)
    commit(folder, {"lean-toolchain": f"{TOOLCHAIN}\n", "Mathlib.lean": f"module\n{imports}"})
    return folder


@pytest.fixture
def options(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LAKE_CALLS", str(tmp_path / "calls"))
    (tmp_path / "bin").mkdir()
    shutil.copy(STAND_INS / "lake", tmp_path / "bin/lake")
    return {"src": str(source), "root": str(tmp_path / "root"), "bin_dir": str(tmp_path / "bin"), "timeout_s": 5}


@pytest.fixture
def with_mathlib(options: dict[str, Any], mathlib: Path) -> dict[str, Any]:
    return {**options, "mathlib": "v1", "mathlib_url": f"file://{mathlib}"}


def calls(tmp_path: Path) -> list[str]:
    """Return what lake was asked for."""
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def states(tmp_path: Path) -> list[str]:
    return sorted(
        path.name for path in (tmp_path / "root").iterdir() if not path.name.startswith(".") and path.is_dir()
    )


def test_a_submodule_is_built_once(run_module: Any, options: dict[str, Any], tmp_path: Path, source: Path) -> None:
    predicted = run_module("pantograph_build", check=True, **options)
    assert predicted["changed"] and not (tmp_path / "root").exists() and predicted["toolchain"] == TOOLCHAIN
    first = run_module("pantograph_build", **options)
    assert first["actions"] == predicted["actions"]
    assert first["actions"] == ["bring Pantograph", "build Pantograph", "talk to Pantograph", "write launcher"]
    assert first["path"] == predicted["path"] and Path(first["repl"]).is_file() and first["modules"] == 0
    assert not (source / ".lake").exists()
    second = run_module("pantograph_build", **options)
    assert not second["changed"] and second["diff"]["before"] == second["diff"]["after"]
    assert calls(tmp_path).count("lake build") == 1


def test_the_launcher_needs_nothing_from_the_shell(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run_module("pantograph_build", **options)
    command = [str(tmp_path / "bin/pantograph-repl"), "Init"]
    env = {"PATH": os.environ["PATH"]}
    assert subprocess.check_output(command, env=env, text=True, input="\n") == "ready.\n"
    assert (tmp_path / "root/project/lakefile.lean").is_file()


def test_mathlib_comes_with_every_prebuilt_file(run_module: Any, with_mathlib: dict[str, Any], tmp_path: Path) -> None:
    predicted = run_module("pantograph_build", check=True, **with_mathlib)
    first = run_module("pantograph_build", **with_mathlib)
    assert first["actions"] == predicted["actions"]
    assert first["actions"][1] == "fetch Mathlib's prebuilt files" and first["modules"] == len(MODULES) + 1
    place = Path(first["path"])
    assert (
        f'require mathlib from git\n  "{with_mathlib["mathlib_url"]}" @ "v1"' in (place / "lakefile.lean").read_text()
    )
    assert (place / ".lake/packages/mathlib/.lake/build/lib/lean/Mathlib/Order/Some.olean").is_file()
    assert (tmp_path / "root/cache").is_dir()
    # The REPL has loaded Mathlib, and finds it without lake, too.
    launcher = [str(tmp_path / "bin/pantograph-repl"), "Mathlib"]
    assert subprocess.check_output(launcher, env={"PATH": os.environ["PATH"]}, text=True, input="\n") == "ready.\n"
    assert not run_module("pantograph_build", **with_mathlib)["changed"]
    # A file that is lost is noticed.
    (place / ".lake/packages/mathlib/.lake/build/lib/lean/Mathlib/Init.olean").unlink()
    assert run_module("pantograph_build", **with_mathlib)["actions"] == [
        "fetch Mathlib's prebuilt files",
        "write launcher",
    ]
    assert calls(tmp_path).count("lake update mathlib") == 1


def test_toolchains_that_differ_are_named_before_anything_is_built(
    run_module: Any, with_mathlib: dict[str, Any], tmp_path: Path, mathlib: Path
) -> None:
    commit(mathlib, {"lean-toolchain": "leanprover/lean4:v4.26.0\n"}, "v0")
    result = run_module("pantograph_build", **{**with_mathlib, "mathlib": "v0"})
    assert result["msg"] == (
        f"Pantograph is for the toolchain {TOOLCHAIN}, but Mathlib for leanprover/lean4:v4.26.0: what one has built, "
        "the other cannot load; bring both to the same toolchain. Nothing was built."
    )
    other = run_module("pantograph_build", **{**with_mathlib, "toolchain": "leanprover/lean4:v4.28.0"})
    assert "but this machine for leanprover/lean4:v4.28.0" in other["msg"]
    assert calls(tmp_path) == [] and states(tmp_path) == []


def test_mathlib_is_never_built(run_module: Any, with_mathlib: dict[str, Any], tmp_path: Path, mathlib: Path) -> None:
    commit(mathlib, {"not-cached": "Mathlib.Data.Nat.Basic\n"})
    result = run_module("pantograph_build", **with_mathlib)
    assert result["msg"].startswith(
        "1 of 4 modules of Mathlib have no prebuilt file after lake exe cache get, such as Mathlib.Data.Nat.Basic. "
    )
    assert "lake build" not in calls(tmp_path)
    assert run_module("pantograph_build", **{**with_mathlib, "mathlib": "v9"})["msg"].startswith(
        f"Asking {with_mathlib['mathlib_url']} for Mathlib v9 failed with exit code 128"
    )


def test_a_project_brings_its_own_mathlib(
    run_module: Any, options: dict[str, Any], tmp_path: Path, mathlib: Path
) -> None:
    project = tmp_path / "prover/lean"
    of_project = {**options, "project": str(project)}
    assert run_module("pantograph_build", **of_project)["msg"].startswith(f"project={project} is no Lean project")
    shutil.copytree(mathlib, project / ".lake/packages/mathlib")
    (project / "lakefile.toml").write_text('name = "prover"\n')
    (project / "lean-toolchain").write_text("leanprover/lean4:v4.26.0\n")
    head = subprocess.check_output(["git", "-C", str(mathlib), "rev-parse", "HEAD"], text=True).strip()
    entry = f'{{"packages": [{{"name": "mathlib", "url": "file://{mathlib}", "rev": "{head}"}}]}}'
    (project / "lake-manifest.json").write_text(entry)
    assert "but the project for leanprover/lean4:v4.26.0" in run_module("pantograph_build", **of_project)["msg"]
    (project / "lean-toolchain").write_text(f"{TOOLCHAIN}\n")
    done = run_module("pantograph_build", **of_project)
    assert done["modules"] == 4 and f"{project}/.lake/packages/mathlib/.lake/build/lib/lean" in done["lean_path"]
    assert not run_module("pantograph_build", **of_project)["changed"]


def test_a_commit_is_cloned(run_module: Any, options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    (source / ".git").unlink()
    head = commit(source, {})
    of_url = {**options, "url": f"file://{source}", "commit": head}
    del of_url["src"]
    done = run_module("pantograph_build", **of_url)
    assert done["actions"][0] == "bring Pantograph" and Path(done["repl"]).is_file()
    assert not run_module("pantograph_build", **of_url)["changed"]
    gone = run_module("pantograph_build", **{**of_url, "commit": "0" * 40})
    assert gone["msg"].startswith(f"Fetching Pantograph's commit {'0' * 40} from file://{source} failed with exit code")
    assert len(states(tmp_path)) == 2  # the state and the link to it
    short = run_module("pantograph_build", **{**of_url, "commit": "main"})
    assert short["msg"] == "commit must be 40 hexadecimal digits, not 'main'."


def test_a_new_state_takes_the_place_of_the_old_one(
    run_module: Any, options: dict[str, Any], tmp_path: Path, source: Path
) -> None:
    first = run_module("pantograph_build", **options)
    (source / "Repl.lean").write_text("-- more\n")
    second = run_module("pantograph_build", **options)
    assert second["path"] != first["path"] and not Path(first["path"]).exists()
    assert (tmp_path / "root/project").resolve() == Path(second["path"])
    assert not list((tmp_path / "root").glob(f".{Path(first['path']).name}*"))


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("echo ready.; sleep 60", "Pantograph's REPL answered '' within 0.5 s, which is no JSON object."),
        ("sleep 60", "Pantograph's REPL did not say 'ready.' within 0.5 s:"),
        ("echo no olean >&2; exit 1", "Pantograph's REPL did not say 'ready.' within 0.5 s:\nno olean"),
        ("echo ready.; read -r x; echo what", "Pantograph's REPL answered 'what' within 0.5 s"),
        ("""echo ready.; read -r x; echo '{"error":"core"}'""", "Pantograph cannot begin a proof; it answered"),
    ],
)
def test_a_repl_that_does_not_answer_is_no_success(
    run_module: Any, options: dict[str, Any], tmp_path: Path, source: Path, program: str, sentence: str
) -> None:
    (source / "Main.lean").write_text(f"#!/bin/sh\n{program}\n")
    begun = time.monotonic()
    assert run_module("pantograph_build", **{**options, "timeout_s": 0.5})["msg"].startswith(sentence)
    assert time.monotonic() - begun < 10 and not (tmp_path / "root/project").exists()
    # It is talked to again, and nothing is built again.
    assert (
        "talk to Pantograph" in run_module("pantograph_build", **{**options, "timeout_s": 0.5}, check=True)["actions"]
    )
    assert calls(tmp_path).count("lake build") == 1


def test_a_failed_build_shows_the_end_of_its_log(run_module: Any, options: dict[str, Any], source: Path) -> None:
    (source / "Main.lean").write_text("")
    result = run_module("pantograph_build", **options)
    assert result["msg"].startswith("Building Pantograph failed with exit code 1:\n")
    assert result["msg"].endswith("error: Main.lean: nothing to build")
    (source / "lean-toolchain").unlink()
    assert "repository.submodules: true" in run_module("pantograph_build", **options)["msg"]


@pytest.mark.parametrize("lake_too", [False, True])
def test_a_build_that_was_killed_is_repaired(
    run_module: Any,
    killed_module: Any,
    detached_work: Path,
    options: dict[str, Any],
    tmp_path: Path,
    lake_too: bool,
) -> None:
    """The next run waits for a lake that goes on, and takes over; it begins again where that one is gone, too."""
    program, gate = tmp_path / "bin/lake", tmp_path / "gate"
    until_it_opens = f"while [ ! -e {gate} ]; do sleep 0.02; done"
    program.write_text(program.read_text().replace("[ -e slow ] && sleep 0.6", until_it_opens))
    killed_module("pantograph_build", tmp_path / "calls", "lake build", **options)
    (record,) = detached_work.glob("*/record.json")
    if lake_too:
        # All of its session: that which watches it, too.
        subprocess.run(["pkill", "-KILL", "-s", str(json.loads(record.read_text())["pid"])], check=True)
    builds: list[int] = []

    def open_gate() -> None:
        builds.append(calls(tmp_path).count("lake build"))
        gate.touch()

    threading.Timer(1.0, open_gate).start()
    done = run_module("pantograph_build", **options)
    assert "failed" not in done and Path(done["repl"]).is_file()
    assert lake_too or builds == [1]
    assert not run_module("pantograph_build", **options)["changed"]
