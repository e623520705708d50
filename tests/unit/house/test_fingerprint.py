"""What makes a machine's wanted state a different one, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard import fingerprint as module
from gpuyard.fingerprint import collection_root, fingerprint

BOX = {"name": "tiny", "packages": ["git"]}


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection with one role, in place of the checkout."""
    (tmp_path / "roles" / "rust" / "tasks").mkdir(parents=True)
    (tmp_path / "roles" / "rust" / "tasks" / "main.yml").write_text("- name: One\n")
    monkeypatch.setattr(module, "collection_root", lambda: tmp_path)
    return tmp_path


def test_the_same_state_has_the_same_fingerprint(collection: Path) -> None:
    first = fingerprint(BOX, "tree")
    (collection / "roles" / "__pycache__").mkdir()
    (collection / "roles" / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert fingerprint(dict(reversed(BOX.items())), "tree") == first


def test_every_part_of_the_state_counts(collection: Path) -> None:
    before = {fingerprint(BOX, "tree")}
    before.add(fingerprint(BOX | {"packages": []}, "tree"))
    before.add(fingerprint(BOX, "another tree"))
    (collection / "roles" / "rust" / "tasks" / "main.yml").write_text("- name: Two\n")
    before.add(fingerprint(BOX, "tree"))
    (collection / "roles" / "rust" / "tasks" / "main.yml").rename(collection / "roles" / "rust" / "tasks" / "new.yml")
    before.add(fingerprint(BOX, "tree"))
    assert len(before) == 5


def test_what_runs_on_the_box_counts(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(BOX)
    monkeypatch.setattr(module.boxzip, "content", lambda: b"another archive")
    assert fingerprint(BOX) != before


def test_the_checkout_is_found() -> None:
    root = collection_root()
    assert root is not None and (root / "roles" / "stages").is_dir()
