"""What can be done with checkpoints from the box, from any controller, and from Python."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import (
    LocalStore,
    Retention,
    diff,
    prune_run,
    publish,
    restore_file,
    sequences,
    verify_all,
)
from gpuyard.box.checkpoints.__main__ import main as box_main
from gpuyard.box.checkpoints.listing import claim_key, note_key
from gpuyard.cli import main as controller_main
from gpuyard.errors import CheckpointError, UsageError

RUN = "looking-0"


class CountingStore(LocalStore):
    """A folder that counts how often each object is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: list[str] = []

    def chunks(self, key: str) -> Any:
        self.read.append(key)
        return super().chunks(key)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "box"
    (root / "models").mkdir(parents=True)
    return root


@pytest.fixture
def store(tmp_path: Path, root: Path) -> CountingStore:
    """Five sets: ``same`` is in all of them, ``old`` in the first only, ``models/policy.npz`` another one in each."""
    store = CountingStore(tmp_path / "bucket")
    (root / "same").write_text("same")
    (root / "old").write_text("old")
    (root / "models/policy.npz").write_text("1")
    publish(store, RUN, root)
    (root / "old").unlink()
    for number in range(2, 6):
        (root / "models/policy.npz").write_text(str(number) * number)
        publish(store, RUN, root)
    return store


def key(sequence: int, path: str) -> str:
    return f"{RUN}/checkpoints/{sequence:06d}/files/{path}"


def test_two_sets_are_compared(store: LocalStore) -> None:
    assert asdict(diff(store, RUN, 1, 5)) == {
        "before": 1,
        "after": 5,
        "added": [],
        "removed": [{"path": "old", "before": 3, "after": None}],
        "changed": [{"path": "models/policy.npz", "before": 1, "after": 5}],
    }
    assert [item.path for item in diff(store, RUN, 5, 1).added] == ["old"]
    with pytest.raises(CheckpointError, match="no checkpoint 9"):
        diff(store, RUN, 1, 9)


def test_permissions_are_a_difference(store: LocalStore, root: Path) -> None:
    (root / "same").chmod(0o700)
    publish(store, RUN, root)
    assert [item.path for item in diff(store, RUN, 5, 6).changed] == ["same"]


def test_all_sets_are_verified_and_nothing_is_read_twice(store: CountingStore) -> None:
    assert [(verified.sequence, verified.damaged) for verified in verify_all(store, RUN)] == [
        (number, []) for number in (5, 4, 3, 2, 1)
    ]
    assert sorted(store.read) == sorted(set(store.read)) and key(1, "same") in store.read
    store.put(key(1, "same"), b"sane")
    store.put(f"{RUN}/checkpoints/000002/manifest.json", b"")
    found = verify_all(store, RUN)
    assert [bool(verified.damaged) for verified in found] == [True] * 5
    assert "is empty" in found[3].damaged[0] and "same: " in found[0].damaged[0]
    assert {item.key for item in store.objects(RUN)} >= {note_key(RUN, number) for number in (1, 3, 4, 5)}
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        verify_all(store, "nosuch-0")


def test_what_no_kept_set_needs_is_pruned(store: LocalStore) -> None:
    before = {item.key for item in store.objects(RUN)}
    would = prune_run(store, RUN, Retention(1, 2), dry_run=True)
    assert {item.key for item in store.objects(RUN)} == before
    done = prune_run(store, RUN, Retention(1, 2))
    assert done == would and (done.sets, done.kept) == ([3, 1], [5, 4, 2])
    assert before - {item.key for item in store.objects(RUN)} == {
        key(1, "old"),
        key(1, "models/policy.npz"),
        key(3, "models/policy.npz"),
        *(f"{RUN}/checkpoints/{number:06d}/manifest.json" for number in (1, 3)),
    }
    assert done.objects == 5
    assert all(not verified.damaged for verified in verify_all(store, RUN))
    again = prune_run(store, RUN, Retention(1, 2))
    assert (again.sets, again.kept, again.objects, again.bytes) == ([], [5, 4, 2], 0, 0)


def test_nothing_is_pruned_while_a_publisher_is_at_work_or_when_much_is_unclear(store: LocalStore) -> None:
    before = len(list(store.objects(RUN)))
    for retention in (Retention(0), Retention(1, -1)):
        with pytest.raises(UsageError):
            prune_run(store, RUN, retention)
    claim = claim_key(RUN, 6, "another")
    store.put(claim, b"{}")
    for dry_run in (False, True):
        with pytest.raises(CheckpointError, match="has begun checkpoint 6"):
            prune_run(store, RUN, Retention(1), dry_run=dry_run)
    store.delete(claim)
    store.put(key(5, "models/policy.npz"), b"5")
    with pytest.raises(CheckpointError, match=r"Checkpoint 5 .* is not whole"):
        prune_run(store, RUN, Retention(1))
    store.put(f"{RUN}/checkpoints/000005/manifest.json", b"")
    with pytest.raises(CheckpointError, match=r"000005/manifest\.json is empty"):
        prune_run(store, RUN, Retention(1))
    assert len(list(store.objects(RUN))) == before


def test_one_file_comes_back(store: LocalStore, tmp_path: Path) -> None:
    entry = restore_file(store, RUN, 3, "models/policy.npz", tmp_path / "deep/er/policy.npz")
    assert (tmp_path / "deep/er/policy.npz").read_text() == "333" and entry.size == 3
    restore_file(store, RUN, 1, "old", tmp_path)
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(UsageError, match="is there already"):
        restore_file(store, RUN, 1, "old", tmp_path)
    with pytest.raises(UsageError, match=r"no file policy\.npz\. It has models/policy\.npz"):
        restore_file(store, RUN, 1, "policy.npz", tmp_path / "new")
    store.put(key(1, "same"), b"sane")
    with pytest.raises(CheckpointError, match="does not have the content"):
        restore_file(store, RUN, 4, "same", tmp_path / "new")
    store.delete(key(1, "same"))
    with pytest.raises(CheckpointError, match="is damaged"):
        restore_file(store, RUN, 4, "same", tmp_path / "new")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["box", "bucket", "deep", "old"]


def test_the_box_has_these_commands(
    store: LocalStore, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "run"
    settings.mkdir()
    workload = {"name": "looking", "persist": {"root": str(root)}, "stages": []}
    (settings / "workload.json").write_text(json.dumps(workload))
    (settings / "settings.json").write_text(json.dumps({"run": RUN, "bucket": store.url}))

    def call(*words: str) -> tuple[int, list[dict[str, Any]], str]:
        code = box_main([*words, "--settings", str(settings)])
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    code, (differences,), _ = call("diff", "1", "5")
    assert code == 0 and differences["removed"][0]["path"] == "old"
    code, found, _ = call("verify", "--all")
    assert code == 0 and [item["sequence"] for item in found] == [5, 4, 3, 2, 1]
    assert call("restore-file", "1", "old", str(tmp_path / "back"))[0] == 0
    assert (tmp_path / "back").read_text() == "old"
    assert call("prune", "--keep-last", "2", "--dry-run")[1][0]["sets"] == [3, 2, 1]
    assert len(sequences(store, RUN)) == 5
    assert call("prune", "--keep-last", "2")[0] == 0
    assert [item["sequence"] for item in call("list")[1]] == [5, 4]
    code, found, said = call("diff", "1", "5")
    assert (code, found) == (1, []) and "no checkpoint 1" in said
    (settings / "settings.json").write_text(json.dumps({"run": RUN}))
    code, _, said = call("prune", "--keep-last", "2")
    assert code == 1 and "No bucket is set for looking-0" in said


def test_any_controller_has_them(
    store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))

    def call(verb: str, *words: str) -> tuple[int, str]:
        code = controller_main(["checkpoints", verb, *words, "--bucket", store.url])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = call("list", RUN)
    assert code == 0 and [line.split()[0] for line in said.splitlines()[:5]] == ["5", "4", "3", "2", "1"]
    assert "3 files  " in said and "Whether this store keeps versions" in said
    code, said = call("diff", RUN, "1")
    assert code == 0 and "- old  3 B" in said and "~ models/policy.npz  1 B → 5 B" in said
    assert call("prune", RUN, "--keep-last", "4", "--dry-run")[1].startswith("Checkpoints would be removed: 1 (3 obj")
    assert call("prune", RUN, "--keep-last", "4")[1].startswith("Checkpoints removed: 1 (3 objects, ")
    assert call("verify", RUN, "--all")[0] == 0
    assert call("restore-file", RUN, "3", "models/policy.npz", str(tmp_path / "policy"))[0] == 0
    assert (tmp_path / "policy").read_text() == "333"
    store.put(key(1, "same"), b"sane")
    code, said = call("verify", RUN, "--all")
    assert code == 1 and "gpuyard: Damaged: checkpoint 5, 4, 3, 2 of looking-0" in said
    code, said = call("verify", RUN, "--json")
    assert code == 1 and json.loads(said.splitlines()[0])["failed"]
    for words, sentence in (
        (("list", "nosuch-0"), "nosuch-0 has no checkpoint"),
        (("list", "../x"), "cannot be a run name"),
        (("list", RUN, "--node", "x"), "cannot be a node"),
        (("restore-file", RUN, "3", "../x", str(tmp_path / "x")), "is no file of a checkpoint"),
        (("keep-versions",), "is no store that gpuyard could have keep versions"),
    ):
        code, said = call(*words)
        assert code in (1, 2) and sentence in said and "\n" not in said.strip(), words
