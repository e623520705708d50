"""Which files of a local repository go to a machine, and what is told of the others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gpuyard import tree
from gpuyard.errors import UsageError
from gpuyard.tree import Rules


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A git repository with a commit, a submodule, ignored files and some that are not committed."""
    part, whole = tmp_path / "part", tmp_path / "whole"
    for folder in (part, whole):
        git(tmp_path, "init", "-q", str(folder))
    write(part, file="part")
    git(part, "add", ".")
    git(part, "commit", "-q", "-m", "first")
    write(whole, _dot_gitignore="data/\n*.log\n", main="main", old="old")
    git(whole, "submodule", "add", "-q", f"file://{part}", "sub")
    git(whole, "add", ".")
    git(whole, "commit", "-q", "-m", "first")
    write(whole, main="edited", new="new", noise_dot_log="x" * 10)
    write(whole, data__big="x" * 1000, data__keep__small="x" * 100)
    write(whole, sub__extra="not committed there")
    return whole


def test_what_git_ignores_comes_when_it_is_included(root: Path) -> None:
    assert tree.names(root) == [".gitignore", ".gitmodules", "main", "new", "old"]
    assert "data/keep/small" in tree.names(root, Rules(include=("data/keep/",)))
    assert "data/big" not in tree.names(root, Rules(include=("data/keep/",)))
    assert {"noise.log", "data/big"} < set(tree.names(root, Rules(include=("*.log", "data/b*"))))
    with pytest.raises(UsageError, match=r"repository\.include: no file in .*whole matches 'weights/\*\.pt'"):
        tree.names(root, Rules(include=("weights/*.pt",)))


def test_include_does_not_search_where_its_pattern_cannot_match(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    walk = tree.os.walk
    monkeypatch.setattr(tree.os, "walk", lambda top: looked.append(str(top)) or walk(top))
    tree.names(root, Rules(include=("data/keep/*",)))
    assert looked == [str(root / "data/keep")]


def test_the_ignore_file_leaves_out_what_git_knows_too(root: Path) -> None:
    write(root, _dot_gpuyardignore="# not for the machine\nold\nne*\n")
    assert tree.names(root) == [".gitignore", ".gitmodules", ".gpuyardignore", "main"]
    assert "old" in tree.names(root, Rules(include=("old",)))
    assert ("old", ".gpuyardignore names it") in [(entry.name, entry.why) for entry in tree.left_out(root)]


def test_the_ignore_file_counts_without_git(tmp_path: Path) -> None:
    write(tmp_path, _dot_gpuyardignore="*.bin\n", main="1", weights_dot_bin="2")
    assert tree.names(tmp_path) == [".gpuyardignore", "main"]
    assert tree.uncommitted(tmp_path, ["main"]) == []


def test_files_of_submodules_come_when_they_are_wanted(root: Path) -> None:
    assert not [name for name in tree.names(root) if name.startswith("sub")]
    assert {"sub/file", "sub/extra"} < set(tree.names(root, Rules(submodules=True)))
    assert ("sub/", "it is a submodule") in [(entry.name, entry.why) for entry in tree.left_out(root)]
    git(root, "submodule", "deinit", "-f", "sub")
    with pytest.raises(
        UsageError, match=r"the submodule sub of .*whole has not been fetched: run `git submodule update"
    ):
        tree.names(root, Rules(submodules=True))


def test_what_no_commit_holds_is_named(root: Path) -> None:
    assert tree.uncommitted(root, tree.names(root)) == ["main", "new"]


def test_a_folder_inside_a_repository_is_a_tree_of_its_own(root: Path) -> None:
    write(root, deep__inside="1")
    assert tree.names(root / "deep") == ["inside"] == tree.uncommitted(root / "deep", ["inside"])


def test_what_is_left_out_is_told_the_largest_first(root: Path) -> None:
    out = tree.left_out(root)
    assert (out[0].name, out[0].size, out[0].whole) == ("data/", 1100, True)
    assert out[0].why == "git ignores it" and {entry.name for entry in out} == {"data/", "noise.log", "sub/"}
    assert tree.left_out(root, Rules(include=("data/big",)))[0].size == 100
    assert "data/" not in {entry.name for entry in tree.left_out(root, Rules(include=("data/",)))}
    assert "noise.log" not in {entry.name for entry in tree.left_out(root, Rules(include=("noise.log",)))}


def test_a_repository_inside_that_is_no_submodule_is_told(root: Path) -> None:
    git(root, "init", "-q", "nested")
    write(root, nested__file="x" * 5000)
    git(root / "nested", "add", ".")
    git(root / "nested", "commit", "-q", "-m", "first")
    assert ("nested/", "it is a repository of its own") in [(entry.name, entry.why) for entry in tree.left_out(root)]


def test_sizes_are_not_looked_for_without_end(root: Path) -> None:
    for number in range(50):
        write(root, **{f"data__f{number}": "x"})
    (entry,) = [entry for entry in tree.left_out(root, seconds=0) if entry.name == "data/"]
    assert not entry.whole and entry.size > 0
