"""What is found in logs: errors and warnings, whole tracebacks, and where trackers show the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_box import Box

from gpuyard.box.stages import findings

TRACEBACK = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    step()

  File "train.py", line 1, in step
ValueError: batch is empty"""
RANKS = "\n".join(f"[rank0]: {line}" for line in TRACEBACK.splitlines() if line)
PANIC = """\
thread 'main' panicked at src/main.rs:4:5:
index out of bounds: the len is 3
note: run with `RUST_BACKTRACE=1`"""


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("step 1\nERROR: disk\nstep 2\n", ["ERROR: disk"]),
        ("UserWarning: slow path\nWARN cache is cold\nwarmup 3\n", ["UserWarning: slow path", "WARN cache is cold"]),
        (f"step 1\n{TRACEBACK}\nstep 2\n", [TRACEBACK]),
        (f"step 1\n{RANKS}\n[rank1]: step 2\n", [RANKS]),
        (f"{PANIC}\nstep 2\n", ["\n".join(PANIC.splitlines()[:2])]),
        # The end of the log in the middle of one.
        ("Traceback (most recent call last):\n  File", ["Traceback (most recent call last):\n  File"]),
        ("Killed\n0 steps\nSegmentation fault (core dumped)", ["Killed", "Segmentation fault (core dumped)"]),
        ("all is well\n", []),
    ],
)
def test_errors_and_warnings_are_found_and_tracebacks_are_whole(text: str, blocks: list[str]) -> None:
    """U5."""
    assert ["\n".join(block) for block in findings.error_blocks(text.splitlines(keepends=True))] == blocks


def test_of_errors_the_last_ones_are_shown_and_a_traceback_is_not_cut() -> None:
    """U5."""
    lines = [f"error {number}" for number in range(100)]
    assert findings.last_errors(lines, 3) == ["error 97", "error 98", "error 99"]
    assert findings.last_errors([*lines, *TRACEBACK.splitlines()], 3) == TRACEBACK.splitlines()
    assert findings.last_errors([*lines, *TRACEBACK.splitlines()], 7) == ["error 99", *TRACEBACK.splitlines()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        # As W&B 0.17 to 0.22 print it, the address in blue and underlined.
        (
            "wandb: 🚀 View run at \x1b[34m\x1b[4mhttps://wandb.ai/me/canyon/runs/1a2b3c4d\x1b[0m",
            {"wandb": "https://wandb.ai/me/canyon/runs/1a2b3c4d"},
        ),
        (
            "wandb: View run quiet-sun-7 at: https://wandb.example.org/me/canyon/runs/zz",
            {"wandb": "https://wandb.example.org/me/canyon/runs/zz"},
        ),
        ("see https://wandb.ai/me/canyon/runs/9z.", {"wandb": "https://wandb.ai/me/canyon/runs/9z"}),
        ("wandb: View project at https://wandb.ai/me/canyon", {}),
        (
            "🏃 View run tidy at: http://127.0.0.1:5000/#/experiments/1/runs/abc123",
            {"mlflow": "http://127.0.0.1:5000/#/experiments/1/runs/abc123"},
        ),
        (
            "TensorBoard 2.16.2 at http://localhost:6006/ (Press CTRL+C to quit)",
            {"tensorboard": "http://localhost:6006/"},
        ),
        # An address with a password in it is shown nowhere.
        ("wandb: https://me:secret@wandb.example.org/me/canyon/runs/zz", {}),
    ],
)
def test_the_addresses_of_trackers_are_found(line: str, found: dict[str, str]) -> None:
    """U5."""
    assert findings.links_in(f"before\n{line}\nafter\n") == found


def test_of_a_long_log_both_ends_are_read_and_the_newest_log_counts(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    filler = "step\n" * 300_000
    old.write_text(f"https://wandb.ai/me/x/runs/first\n{filler}TensorBoard 2.1 at http://localhost:6006/\n")
    new.write_text(f"{filler}wandb: View run at https://wandb.ai/me/x/runs/second\n")
    assert findings.links([new, old, tmp_path / "none"]) == {
        "wandb": "https://wandb.ai/me/x/runs/second",
        "tensorboard": "http://localhost:6006/",
    }


def test_the_box_sends_only_what_is_shown_and_says_where_the_run_is(box: Box) -> None:
    """U5."""
    link = "https://wandb.ai/me/canyon/runs/1a2b3c4d"
    box.describe(
        [{"name": "train", "command": f"echo wandb: {link}; seq 100; python3 -c 1/0 || true; echo a warning: slow"}]
    )
    assert box.run() == 0
    *shown, links = box.call("log", "--errors", "--links").stdout.splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[-2:] == ["ZeroDivisionError: division by zero", "a warning: slow"] and len(shown) <= 6
    assert links == f'{{"links": {{"wandb": "{link}"}}}}'
    assert box.status()["links"] == {"wandb": link}
