"""What makes a machine's wanted state a different one, part by part, and what does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard import fingerprint as module
from gpuyard.fingerprint import OWN, PARTS, WORDS, collection_root, fingerprint, modules, not_beside, parts

BOX: dict[str, Any] = {
    "name": "tiny",
    "packages": ["git"],
    "repository": {"url": None},
    "python": {"requirements": "requirements.txt"},
    "rust": None,
    "build": ["make"],
    "environment": {"required": [], "set": {}},
    "persist": {"root": "/mnt/persistent", "directories": ["models"]},
    "stages": [{"name": "train"}],
}

Differs = Callable[..., set[str]]


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the collection, which a test can change."""
    root = collection_root()
    assert root is not None
    for name in ("roles", "plugins", "playbooks"):
        shutil.copytree(root / name, tmp_path / name)
    monkeypatch.setattr(module, "collection_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def differs(collection: Path) -> Differs:
    """Return a function that tells which parts differ from what they were at the beginning."""
    before = parts(BOX, "tree")

    def compare(box: dict[str, Any] = BOX, tree: str = "tree") -> set[str]:
        now = parts(box, tree)
        return {name for name in {*before, *now} if before.get(name) != now.get(name)}

    return compare


def test_the_same_state_has_the_same_fingerprint(collection: Path, differs: Differs) -> None:
    (collection / "roles/__pycache__").mkdir()
    (collection / "roles/__pycache__/x.pyc").write_bytes(b"1")
    assert differs(dict(reversed(BOX.items()))) == set()
    assert fingerprint(parts(BOX, "tree")) == fingerprint(dict(reversed(parts(BOX, "tree").items())))
    assert fingerprint(parts(BOX, "tree")) != fingerprint(parts(BOX, "another tree"))


@pytest.mark.parametrize(
    "file",
    [
        "roles/rust/README.md",
        "roles/rust/tasks/main.yml",
        "roles/stages/tasks/main.yml",
        "roles/python_env/README.md",
        "roles/python_env/meta/argument_specs.yml",
        "plugins/modules/rust_toolchain.py",
        "plugins/modules/run_plan.py",
        "plugins/action/run_plan.py",
        "playbooks/launch.yml",
    ],
)
def test_documents_and_what_is_not_used_change_nothing(collection: Path, differs: Differs, file: str) -> None:
    """X9: one newline in an unused role's README, or in the README of a used one, converges no machine again."""
    with (collection / file).open("a") as text:
        text.write("\n# more\n")
    assert differs() == set()


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("roles/base/tasks/main.yml", {"base"}),
        ("roles/workload/defaults/main.yml", {"repository", "build"}),
        ("plugins/modules/work_tree.py", {"repository", "build"}),
        ("plugins/action/work_tree.py", {"repository", "build"}),
        ("plugins/modules/persistent_links.py", {"persist"}),
        ("plugins/module_utils/_disks.py", {"persist"}),
        # The runtime's own Python comes from the same role.
        ("roles/python_env/vars/main.yml", {"python", "gpuyard"}),
        ("plugins/modules/stage_session.py", {"gpuyard"}),
        ("plugins/module_utils/_box.py", {"base", "repository", "python", "build", "persist", "gpuyard"}),
        ("playbooks/tasks/converge.yml", {"base", "repository", "python", "build", "persist", "gpuyard"}),
    ],
)
def test_what_acts_changes_the_parts_that_use_it(
    collection: Path, differs: Differs, file: str, changed: set[str]
) -> None:
    with (collection / file).open("a") as text:
        text.write("\n# more\n")
    assert differs() == changed


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"packages": []}, {"base"}),
        ({"monitoring": {"every_s": 60}}, {"monitoring"}),
        ({"python": {"requirements": "other.txt"}}, {"python"}),
        ({"python": None}, {"python"}),
        ({"rust": {"version": "1.96.0"}}, {"rust"}),
        ({"volumes": {"cache": {"mount": "/mnt/cache"}}}, {"volumes"}),
        ({"build": []}, {"build"}),
        ({"environment": {"required": [], "set": {"A": "1"}}}, {"build", "stages"}),
        ({"persist": {"root": "/mnt/other", "directories": ["models"]}}, {"persist", "stages"}),
        ({"stages": []}, {"stages"}),
        ({"repository": {"url": "https://h/x"}}, {"repository"}),
    ],
)
def test_each_value_of_the_workload_counts_where_it_is_used(
    differs: Differs, values: dict[str, Any], changed: set[str]
) -> None:
    assert differs(BOX | values) == changed


def test_another_tree_is_the_repository_and_nothing_else(differs: Differs) -> None:
    assert differs(tree="another") == {"repository"}


def test_lean_and_pantograph_may_be_named_by_a_file_of_the_tree() -> None:
    box = BOX | {"lean": {"file": "lean-toolchain"}, "pantograph": {"path": "vendor/Pantograph"}}
    before, now = parts(box, "tree"), parts(box, "another")
    assert {name for name in before if before[name] != now[name]} == {"repository", "lean", "pantograph"}


def test_what_runs_on_the_box_is_a_part_of_its_own(differs: Differs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of gpuyard's own code leaves the code, the environment and the build of a workload alone."""
    monkeypatch.setattr(module.boxzip, "content", lambda: b"another archive")
    assert differs() == {"gpuyard"}


def test_every_part_has_words() -> None:
    some = {part.keys[0]: {"any": "value"} for part in module.PARTS if part.keys[0] not in BOX}
    assert set(parts(BOX | {"rust": {"version": "1.96.0"}} | some)) == set(WORDS)


def test_the_checkout_is_found() -> None:
    root = collection_root()
    assert root is not None and (root / "roles" / "stages").is_dir()


def test_modules_follow_what_a_workload_uses() -> None:
    """They are packed while a machine boots, in the roles' order."""
    always = ["base_system", "work_tree", "persistent_links", "box_code", "uv_environment", "stage_session"]
    assert modules({}) == always
    assert modules(BOX | {"rust": {"version": "1.96.0"}})[:3] == ["base_system", "rust_toolchain", "work_tree"]
    assert set(modules(BOX | {"weights": {"base": {}}})) == {*always, "model_weights"}


def test_every_part_says_whether_it_can_be_prepared_beside() -> None:
    assert not_beside() == ["pantograph", "weights", "datasets", "gpuyard"]
    assert set(not_beside()) < {part.name for part in (*PARTS, OWN)}
