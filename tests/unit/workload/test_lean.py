"""B7, B9: what a workload says of Lean and Pantograph, and what is refused before anything is rented."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard.errors import UsageError
from gpuyard.fingerprint import PARTS
from gpuyard.planning import source
from gpuyard.workload import Workload, load_workload, parse_workload
from gpuyard.workload.lean import Lean, check

LEAST = """name: prover
repository: {path: .}
stages:
  - {name: search, command: lake exe repl Mathlib}
"""
TOOLCHAIN = "leanprover/lean4:v4.27.0"


def read(extra: str) -> Workload:
    return parse_workload(LEAST + extra, "w.yml")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with Pantograph as a submodule and a Lean project."""
    for folder in ("vendor/Pantograph", "lean"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lean-toolchain").write_text(f"{TOOLCHAIN}\n")
    return tmp_path


def names(tree: Path) -> list[str]:
    return [file.relative_to(tree).as_posix() for file in tree.rglob("lean-toolchain")]


def test_the_machine_gets_to_know_it() -> None:
    box = read("lean: {toolchain: v4.27.0}\npantograph: {path: vendor/Pantograph, mathlib: v4.27.0}\n").to_box()
    assert box["lean"] == {
        "toolchain": TOOLCHAIN,
        "file": None,
        "elan": "release",
        "mirror": "https://github.com",
        "archive": None,
        "sha256": None,
    }
    assert isinstance(box["pantograph"], dict) and box["pantograph"]["mathlib"] == "v4.27.0"
    order = [part.name for part in PARTS]
    assert order.index("repository") < order.index("lean") < order.index("build") < order.index("pantograph")


def test_what_lean_needs_comes_with_the_workloads_packages() -> None:
    """One transaction brings both. The role has the same packages, for plays that are not ours."""
    box = read("packages: [git, make]\nlean: {toolchain: v4.27.0, elan: package}\n").to_box()
    assert box["packages"] == ["git", "make", "ca-certificates", "curl", "zstd", "elan"]
    assert "elan" not in read("lean: {toolchain: v4.27.0}\n").to_box()["packages"]  # type: ignore[operator]
    assert read("").to_box()["packages"] == []
    role = (Path(__file__).parents[3] / "roles/lean/defaults/main.yml").read_text()
    assert str(Lean(toolchain=TOOLCHAIN).system_packages) in role


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("lean: {}", "lean: must have either toolchain or file"),
        ("lean: {toolchain: v4.27.0, file: lean-toolchain}", "lean: must have either toolchain or file"),
        (
            "lean: {toolchain: stable}",
            f"lean.toolchain: must be an exact toolchain such as '{TOOLCHAIN}', not 'stable'",
        ),
        ("lean: {toolchain: 4.27}", "lean.toolchain: must be an exact toolchain such as"),
        ("lean: {file: ../x}", "lean.file: must be a relative path without '..'"),
        ("lean: {toolchain: v4.27.0, elan: debian}", "lean.elan: must be release or package, not 'debian'"),
        ("lean: {toolchain: v4.27.0, archive: /x.tar.zst}", "lean: must have sha256 with archive"),
        ("lean: {toolchain: v4.27.0, archive: x, sha256: ''}", "lean.archive: must be an address (https://…), or an"),
        (
            "lean: {toolchain: v4.27.0, sha256: abc}",
            "lean.sha256: must be a SHA-256 of 64 hexadecimal digits, not 'abc'",
        ),
        ("lean: {toolchain: v4.27.0, mirror: 'https://me:pw@x'}", "lean.mirror: must be an address such as"),
        ("pantograph: {path: vendor/Pantograph}", "has pantograph and no lean, whose toolchain builds it"),
        ("lean: {toolchain: v4.27.0}\npantograph: {}", "pantograph: must have either path"),
        ("lean: {toolchain: v4.27.0}\npantograph: {path: a, mathlib: '--x'}", "pantograph.mathlib: must be a tag or"),
        (
            "lean: {toolchain: v4.27.0}\npantograph: {path: a, mathlib: v1, project: b}",
            "pantograph: must not have mathlib",
        ),
        (
            "lean: {toolchain: v4.27.0}\npantograph: {url: 'https://h/x'}",
            "pantograph: must have url and commit together",
        ),
        ("lean: {toolchain: v4.27.0}\npantograph: {path: a, timeout_s: 0}", "pantograph.timeout_s: must be a positive"),
    ],
)
def test_every_mistake_has_its_sentence(extra: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(extra + "\n")
    assert said in str(caught.value)


def test_the_toolchains_of_the_repository_are_compared_before_anything_is_rented(tree: Path) -> None:
    workload = read(
        "lean: {file: vendor/Pantograph/lean-toolchain}\npantograph: {path: vendor/Pantograph, project: lean}\n"
    )
    assert workload.lean
    check(tree, names(tree), workload.lean, workload.pantograph)
    (tree / "lean/lean-toolchain").write_text("leanprover/lean4:v4.26.0\n")
    with pytest.raises(UsageError) as caught:
        check(tree, names(tree), workload.lean, workload.pantograph)
    assert str(caught.value) == (
        f"lean.file (vendor/Pantograph/lean-toolchain) is the toolchain {TOOLCHAIN}, but pantograph.project "
        "(lean/lean-toolchain) is leanprover/lean4:v4.26.0: what one has built, the other cannot load; bring both to "
        "the same toolchain."
    )


def test_the_plan_compares_them(tree: Path) -> None:
    (tree / "prover.yml").write_text(LEAST + "lean: {toolchain: v4.26.0}\npantograph: {path: vendor/Pantograph}\n")
    with pytest.raises(
        UsageError, match=r"prover\.yml: lean\.toolchain is the toolchain leanprover/lean4:v4\.26\.0, but "
    ):
        source.notes(load_workload(str(tree / "prover.yml")))


def test_a_file_that_is_wrong_or_not_there_is_named(tree: Path) -> None:
    lean = read("lean: {file: vendor/Pantograph/lean-toolchain}\n").lean
    assert lean
    with pytest.raises(UsageError, match=r"does not go to the machine; a submodule goes there with repository\.submod"):
        check(tree, [], lean, None)
    (tree / "vendor/Pantograph/lean-toolchain").write_text("the newest")
    with pytest.raises(
        UsageError, match=r"^lean\.file: the file vendor/\S+ must be an exact toolchain .*'the newest'\.$"
    ):
        check(tree, names(tree), lean, None)
    (tree / "vendor/Pantograph/lean-toolchain").unlink()
    with pytest.raises(UsageError, match=f"lean-toolchain is not in {tree}"):
        check(tree, names(tree), lean, None)
