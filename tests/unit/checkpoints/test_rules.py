"""What ``persist.rules`` publish and keep, by path and kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore, Published, latest_manifest, publish, restore
from gpuyard.box.checkpoints.rules import Rule, Rules
from gpuyard.errors import UsageError
from gpuyard.workload import Workload, parse_workload

RUN = "miniprover-0"
Save = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "persistent"
    folder.mkdir()
    return folder


@pytest.fixture
def save(root: Path) -> Save:
    """Write files, each a second later than the one before it, by their own times."""
    clock = [1_700_000_000]

    def write(*paths: str, content: str = "") -> None:
        for path in paths:
            clock[0] += 1
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content or path)
            os.utime(file, (clock[0], clock[0]))

    return write


def rules(*items: dict[str, Any]) -> Rules:
    return Rules.from_workload(items)


def published(store: LocalStore, root: Path, said: Rules) -> tuple[Published, set[str]]:
    """Publish, and return what was done and the paths of the newest set."""
    done = publish(store, RUN, root, rules=said)
    newest = latest_manifest(store, RUN)
    assert newest is not None
    return done, {entry.path for entry in newest.files}


@pytest.mark.parametrize(
    ("pattern", "path", "unit"),
    [
        ("cache", "cache/a/b", "cache"),
        ("cache/**", "cache/a/b", "cache"),
        ("cache", "caches/a", None),
        ("models/policy-*.pt", "models/policy-3.pt", "models/policy-3.pt"),
        ("models/policy-*.pt", "models/old/policy-3.pt", None),
        ("models/step-*", "models/step-3/shard-0", "models/step-3"),
        ("models/**/*.pt", "models/a/b/c.pt", "models/a/b/c.pt"),
        ("models/**/*.pt", "models/c.pt", "models/c.pt"),
        ("**/tmp", "a/b/tmp/c", "a/b/tmp"),
        ("*.db", "x.db", "x.db"),
        ("*.db", "a/x.db", None),
        ("a.b", "axb", None),
        ("step-?", "step-1", "step-1"),
        ("step-?", "step-12", None),
        ("**", "a/b", "a"),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, unit: str | None) -> None:
    assert Rule(pattern, "results", True).unit(path) == unit


def test_without_rules_everything_is_published(store: LocalStore, root: Path, save: Save) -> None:
    save("cache/x", "models/policy-0.pt", "models/policy-1.pt", ".gpuyard/logs/0-a.log")
    assert published(store, root, Rules())[1] == {
        "cache/x",
        "models/policy-0.pt",
        "models/policy-1.pt",
        ".gpuyard/logs/0-a.log",
    }


def test_caches_and_data_are_not_published_unless_their_rule_says_so(store: LocalStore, root: Path, save: Save) -> None:
    save("cache/keep/x", "cache/y", "data/set", "small data/set", "results/r", ".gpuyard/logs/0-a.log", "scratch/z")
    said = rules(
        {"path": "cache/keep", "kind": "results"},
        {"path": "cache", "kind": "cache"},
        {"path": "data/**", "kind": "data"},
        {"path": "small data", "kind": "data", "publish": True},
        {"path": "scratch", "kind": "results", "publish": False},
        {"path": "**", "kind": "results"},
    )
    done, paths = published(store, root, said)
    assert paths == {"cache/keep/x", "small data/set", "results/r", ".gpuyard/logs/0-a.log"}
    assert not done.lacks, "what is not to be published is not missing"
    assert (root / "cache/y").exists()
    everything = published(store, root, rules({"path": "**", "kind": "cache"}))[1]
    assert everything == {".gpuyard/logs/0-a.log"}, "gpuyard's own files are no business of rules"


def test_only_the_latest_model_of_a_series_stays_and_nothing_is_removed_on_the_box(
    store: LocalStore, root: Path, save: Save
) -> None:
    said = rules(
        {"path": "models/policy-*.pt", "kind": "model"}, {"path": "runs/**/*.ckpt", "kind": "model", "keep": 2}
    )
    save("models/policy-9.pt", "models/policy-10.pt", "models/tokenizer.json")
    save(*(f"runs/{run}/{step}.ckpt" for run in "ab" for step in range(4)))
    done, paths = published(store, root, said)
    runs = {f"runs/{run}/{step}.ckpt" for run in "ab" for step in (2, 3)}
    assert paths == {"models/policy-10.pt", "models/tokenizer.json", *runs}
    assert done.files_sent == len(paths), "what leaves the set is not sent either"
    assert published(store, root, said)[0].unchanged
    save("models/policy-11.pt")
    done, paths = published(store, root, said)
    assert paths == {"models/policy-11.pt", "models/tokenizer.json", *runs} and done.files_sent == 1
    assert (root / "models/policy-9.pt").exists()


def test_an_older_model_stays_until_a_newer_one_is_whole(store: LocalStore, root: Path, save: Save) -> None:
    said = rules({"path": "models/policy-*.pt", "kind": "model"})
    save("models/policy-0.pt", "models/policy-1.pt")
    assert published(store, root, said)[1] == {"models/policy-1.pt"}
    with (root / "models/policy-2.pt").open("wb") as half:
        half.write(b"half")
        half.flush()
        done, paths = published(store, root, said)
        assert paths == {"models/policy-1.pt"} and done.left_out == ["models/policy-2.pt"]
    assert published(store, root, said)[1] == {"models/policy-2.pt"}


def test_a_folder_is_whole_when_it_has_not_changed_since_the_last_set(
    store: LocalStore, root: Path, save: Save
) -> None:
    said = rules({"path": "models/step-*", "kind": "checkpoint", "keep": "latest"})
    save("models/step-1/a", "models/step-1/b")
    published(store, root, said)
    save("models/step-2/a")
    first, second = {"models/step-1/a", "models/step-1/b"}, {"models/step-2/a", "models/step-2/b"}
    assert published(store, root, said)[1] == first | {"models/step-2/a"}, "nobody knows whether it is complete"
    save("models/step-2/b")
    assert published(store, root, said)[1] == first | second
    assert published(store, root, said)[1] == second
    assert published(store, root, said)[0].unchanged


def test_a_folder_is_whole_when_it_has_what_complete_if_names(store: LocalStore, root: Path, save: Save) -> None:
    said = rules({"path": "models/step-*", "kind": "model", "complete_if": "**/index.json"})
    save("models/step-1/a", "models/step-1/index.json", "models/step-2/a")
    both = {"models/step-1/a", "models/step-1/index.json", "models/step-2/a"}
    for _ in range(2):
        assert published(store, root, said)[1] == both
    save("models/step-2/index.json")
    assert published(store, root, said)[1] == {"models/step-2/a", "models/step-2/index.json"}


def test_what_a_link_leads_to_stays_with_it(store: LocalStore, root: Path, save: Save) -> None:
    said = rules({"path": "models/*.pt", "kind": "model"})
    save("models/1.pt", "models/2.pt", "models/3.pt")
    (root / "models/best.pt").symlink_to("1.pt")
    assert published(store, root, said)[1] == {"models/best.pt", "models/1.pt", "models/3.pt"}


def test_a_link_inside_a_folder_keeps_that_folder_no_longer(store: LocalStore, root: Path, save: Save) -> None:
    said = rules({"path": "models/step-*", "kind": "model", "complete_if": "weights"})
    for step in (1, 2):
        save(f"models/step-{step}/weights")
        (root / f"models/step-{step}/latest").symlink_to("weights")
        os.utime(root / f"models/step-{step}/latest", (1, 1), follow_symlinks=False)
    assert published(store, root, said)[1] == {"models/step-2/weights", "models/step-2/latest"}
    (root / "models/best").symlink_to("step-1")
    both = {f"models/step-{step}/{name}" for step in (1, 2) for name in ("weights", "latest")}
    assert published(store, root, said)[1] == {*both, "models/best"}


def test_a_log_by_its_rule_is_cut_at_its_last_whole_line(store: LocalStore, root: Path) -> None:
    (root / "curves").mkdir()
    with (root / "curves/loss.tsv").open("w") as log:
        log.write("1\t0.5\n2\t0.")
        log.flush()
        assert published(store, root, Rules())[0].left_out == ["curves/loss.tsv"]
        assert published(store, root, rules({"path": "curves", "kind": "log"}))[1] == {"curves/loss.tsv"}
        newest = latest_manifest(store, RUN)
        assert newest and store.get(newest.files[0].key) == b"1\t0.5\n"


def test_a_set_is_restored_whatever_the_rules_are_by_now(
    store: LocalStore, root: Path, save: Save, tmp_path: Path
) -> None:
    save("cache/x", "models/1.pt", "models/2.pt")
    publish(store, RUN, root)
    said = rules({"path": "cache", "kind": "cache"}, {"path": "models/*.pt", "kind": "model"})
    box = tmp_path / "another box"
    restored = restore(lambda: store, RUN, box)
    assert restored.source == "cloud" and (box / "cache/x").exists() and (box / "models/1.pt").exists()
    done = publish(store, RUN, box, rules=said)
    assert done.files_sent == 0
    assert published(store, box, said)[1] == {"models/2.pt"}
    third = tmp_path / "third"
    restore(lambda: store, RUN, third)
    assert not (third / "cache").exists() and (third / "models/2.pt").exists()


# -- the workload file -------------------------------------------------------------------------------------------------


def workload(said: str) -> Workload:
    return parse_workload(
        "name: tiny\nrepository: {path: code}\nstages: [{name: one, command: 'true'}]\n"
        f"persist:\n  rules:\n    - {said}\n",
        "tiny.yml",
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{path: cache}", "persist.rules[0].kind: is missing"),
        ("{path: cache, kind: junk}", "must be one of checkpoint, model, results, log, cache, data, not 'junk'"),
        ("{path: ../cache, kind: cache}", "must be a relative path without '..'"),
        ("{path: .gpuyard/logs, kind: cache}", "must not be for .gpuyard"),
        ("{path: m, kind: model, keep: some}", "must be latest, all, or a whole number of at least 1, not 'some'"),
        ("{path: m, kind: model, keep: 0}", "must be latest, all, or a whole number of at least 1, not 0"),
        ("{path: m, kind: model, keep: true}", "must be latest, all, or a whole number of at least 1, not true"),
        ("{path: m, kind: model, publish: maybe}", "must be true or false"),
        ("{path: m, kind: cache, keep: 2}", "has keep, but m is not published"),
        ("{path: m, kind: results, complete_if: done}", "complete_if, which only matters with keep"),
        ("{path: m, kind: model, newest: 2}", "persist.rules[0].newest: is not a key"),
        ("{path: m, kind: model}\n    - {path: m, kind: cache}", "must not have two rules for m"),
    ],
)
def test_a_rule_that_cannot_be_is_told(said: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        workload(said)
    assert message in str(caught.value)


def test_rules_reach_the_box_as_they_are_meant(store: LocalStore) -> None:
    made = workload("{path: 'models/*', kind: model}\n    - {path: cache, kind: cache}")
    persist: Any = made.to_box()["persist"]
    reached = Rules.from_workload(persist["rules"])
    assert reached.rules == (Rule("models/*", "model", True, 1), Rule("cache", "cache", False))
    assert reached.in_words() == [
        "Not in checkpoints, by persist.rules: cache (cache).",
        "Of each folder checkpoints hold only the newest of models/*.",
    ]


def test_of_merged_models_the_latest_stays_and_adapters_all_stay(store: LocalStore, root: Path, save: Save) -> None:
    said = rules({"path": "models/merged/iter_*", "kind": "model", "complete_if": "*.safetensors"})
    for number in range(3):
        save(f"models/lora/iter_{number}/adapter.safetensors", f"models/merged/iter_{number}/model.safetensors")
        _, paths = published(store, root, said)
    assert paths == {
        *(f"models/lora/iter_{number}/adapter.safetensors" for number in range(3)),
        "models/merged/iter_2/model.safetensors",
    }
