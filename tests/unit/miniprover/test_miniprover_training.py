"""The training: it learns, it can be interrupted, and what it exports is what the prover computes with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from miniprover.common import Choice, energy_choices, features, policy_choices, read_traces
from miniprover.training import Training, integer_scores, quantise


@pytest.fixture(scope="module")
def choices() -> list[Choice]:
    """Choices with a rule to find: the row with the largest sum of features 0 and 2 is right."""
    rng = np.random.default_rng(7)
    made = []
    for _ in range(150):
        rows = rng.integers(0, 36, (int(rng.integers(2, 9)), 5))
        made.append(Choice(rows, int((rows[:, 0] + rows[:, 2]).argmax())))
    return made


def accuracy(training: Training, choices: list[Choice]) -> float:
    whole = quantise(training.weights, 1)
    scores = [integer_scores(whole, choice.rows) for choice in choices]
    return float(np.mean([own[choice.best] == own.max() for own, choice in zip(scores, choices, strict=True)]))


def test_training_learns_the_rule(choices: list[Choice], tmp_path: Path) -> None:
    training = Training(5, seed=3)
    held_out, seen = choices[:50], choices[50:]
    training.train(seen, steps=300, checkpoint=tmp_path / "c.npz", checkpoint_every=100)
    assert accuracy(training, held_out) > 0.85
    assert training.finished


@pytest.mark.parametrize("stop", [1, 10, 13])
def test_an_interrupted_training_ends_like_an_undisturbed_one(
    choices: list[Choice], tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Training(5, seed=3)
    whole.train(choices, steps=30, checkpoint=tmp_path / "whole.npz", checkpoint_every=10)

    path = tmp_path / "part.npz"
    part = Training(5, seed=3)
    one_step = part._one_step

    def interrupted_at(batch: list[Choice]) -> tuple[float, float]:
        if part.step == stop:
            signal.raise_signal(signal.SIGINT)
        return one_step(batch)

    monkeypatch.setattr(part, "_one_step", interrupted_at)
    with pytest.raises(KeyboardInterrupt):
        part.train(choices, steps=30, checkpoint=path, checkpoint_every=10)
    resumed = Training.load(path, seed=3)
    assert (resumed.step, resumed.finished) == (stop, False)
    resumed.train(choices, steps=30, checkpoint=path, checkpoint_every=10)
    for name, value in whole.weights.items():
        assert np.array_equal(value, resumed.weights[name]), name


def test_exported_scores_are_the_network_s_in_bits(choices: list[Choice], tmp_path: Path) -> None:
    training = Training(5, seed=3)
    training.train(choices, steps=20, checkpoint=tmp_path / "c.npz", checkpoint_every=20)
    rows = choices[0].rows
    weights = training.weights
    hidden = np.maximum(rows / 8 @ weights["w1"].T + weights["b1"], 0)
    exact = (hidden @ weights["w2"] + weights["b2"]) / np.log(2)
    assert np.abs(integer_scores(quantise(weights, 1), rows) / 256 - exact).max() < 0.05
    assert np.abs(integer_scores(quantise(weights, -1), rows) / 256 + exact).max() < 0.05


def test_features_are_read_as_the_prover_writes_them() -> None:
    assert features(["09az", "1000"]).tolist() == [[0, 9, 10, 35], [1, 0, 0, 0]]


def test_the_shortest_known_proof_is_learnt_from(tmp_path: Path) -> None:
    step = {"x": ["00", "11"], "y": 1, "pos": "01", "neg": ["10", ""]}
    last = {"x": ["00"], "y": 0, "pos": "", "neg": ["11"]}
    first, second = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    first.write_text(
        json.dumps({"id": "a", "steps": [step, step, last]}) + "\n" + json.dumps({"id": "b", "steps": []}) + "\n"
    )
    second.write_text(json.dumps({"id": "a", "steps": [step, last]}) + "\n")
    traces = read_traces([first, second])
    assert [(trace["id"], len(trace["steps"])) for trace in traces] == [("a", 2)]
    # One possible cut is no choice, and the goal is no state to compare.
    assert [(c.rows.tolist(), c.best) for c in policy_choices(traces)] == [([[0, 0], [1, 1]], 1)]
    assert [(c.rows.tolist(), c.best) for c in energy_choices(traces)] == [([[0, 1], [1, 0]], 0)]
