"""The loop of an expert iteration, as BurnQED runs it, with real processes that are quick."""

from __future__ import annotations

from stage_box import Box, mark

LOOP = [
    # Read once from the model and kept in a persisted folder.
    {"name": "embeddings", "run": "once", "command": "echo $ITERATION-embeddings >> marks; echo vectors > models/emb"},
    mark(
        "finetune",
        command='echo "$ITERATION-finetune-$EPOCHS" >> marks',
        environment={"EPOCHS": "1"},
        first={"environment": {"EPOCHS": "3"}},
    ),
    mark("export"),
    mark("ebm", command="test -s models/emb && echo $ITERATION-ebm >> marks"),
    mark("search"),
    mark("evaluate"),
]


def prepare(box: Box, iterations: int) -> None:
    """Describe the loop, with the persisted folder that a role would have linked."""
    box.describe(LOOP, iterations=iterations, bucket=(box.base / "bucket").as_uri())
    (box.root / "models").mkdir(parents=True, exist_ok=True)
    if not (box.repository / "models").is_symlink():
        (box.repository / "models").symlink_to(box.root / "models")


def expected(iteration: int) -> list[str]:
    epochs = 3 if iteration == 0 else 1
    return [f"{iteration}-{rest}" for rest in (f"finetune-{epochs}", "export", "ebm", "search", "evaluate")]


def test_five_stages_in_a_loop_whose_first_iteration_trains_longer(box: Box) -> None:
    """B20: iteration 0 trains three epochs, later ones one; more iterations go on where the last one ended."""
    prepare(box, 2)
    assert box.run() == 0
    assert box.marks == ["0-embeddings", *expected(0), *expected(1)]
    prepare(box, 3)
    assert box.run() == 0
    assert box.marks[-5:] == expected(2)


def test_embeddings_are_made_once_and_used_by_every_iteration_and_the_next_box(box: Box) -> None:
    """B21: run once, kept in a persisted folder, and restored with it."""
    prepare(box, 2)
    assert box.run() == 0
    assert box.marks.count("0-embeddings") == 1 and "1-ebm" in box.marks
    # Another box, which has nothing but the checkpoint.
    for name in ("models/emb", ".gpuyard/journal.jsonl"):
        (box.root / name).unlink()
    prepare(box, 3)
    started = box.call("start", "--restore", "--state", "restored")
    assert started.returncode == 0, started.stderr
    assert box.run() == 0
    assert box.marks.count("0-embeddings") == 1 and box.marks[-5:] == expected(2)
