# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small network, its training with checkpoints, and its export as whole numbers.

Policy and energy model are alike: a network gives each row of a :class:`~miniprover.common.Choice` a preference, and
training makes the right row's share of the softmax larger. The policy's score is that preference; the energy is its
negative. Everything is seeded, and a training that was interrupted ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miniprover.common import Choice, run_prover

HIDDEN = 16
BATCH = 32
# Features are 0…35; the network sees them divided by this.
FEATURE_SCALE = 8.0
# Fixed point of the exported weights, as in src/model.rs.
WEIGHT_SHIFT = 12
OUTPUT_SHIFT = WEIGHT_SHIFT - 8
NAMES = ("w1", "b1", "w2", "b2")


class Training:
    """A network with its optimiser (Adam) and the number of steps done: all that a checkpoint has to hold."""

    def __init__(self, inputs: int, *, seed: int, learning_rate: float = 0.01) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.learning_rate = learning_rate
        self.step = 0
        self.finished = False
        self.weights = {
            "w1": rng.normal(0, math.sqrt(2 / inputs) / 2, (HIDDEN, inputs)),
            "b1": np.zeros(HIDDEN),
            # No opinion at first: the untrained network prefers nothing.
            "w2": np.zeros(HIDDEN),
            "b2": np.zeros(1),
        }
        self._moments = {name: np.zeros((2, *value.shape)) for name, value in self.weights.items()}

    def new_iteration(self) -> None:
        """Keep the weights, begin a new training with them."""
        self.step = 0
        self.finished = False
        self._moments = {name: np.zeros_like(value) for name, value in self._moments.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new.npz")
        arrays = {**self.weights, **{f"moments_{name}": value for name, value in self._moments.items()}}
        np.savez(new, step=self.step, finished=self.finished, **arrays)
        new.replace(path)

    @classmethod
    def load(cls, path: Path, *, seed: int) -> Training:
        with np.load(path) as data:
            training = cls(data["w1"].shape[1], seed=seed)
            training.weights = {name: data[name] for name in NAMES}
            training._moments = {name: data[f"moments_{name}"] for name in NAMES}
            training.step = int(data["step"])
            training.finished = bool(data["finished"])
        return training

    def train(self, choices: Sequence[Choice], *, steps: int, checkpoint: Path, checkpoint_every: int) -> None:
        """Go on to ``steps`` steps of one batch each; leave a checkpoint every so often, at the end, and on SIGINT."""
        try:
            while self.step < steps:
                loss, right = self._one_step([choices[i] for i in self._batch(len(choices))])
                self.step += 1
                if self.step % checkpoint_every == 0 or self.step == steps:
                    self.save(checkpoint)
                    print(f"step {self.step}/{steps} loss {loss:.3f} right {right:.0%}", flush=True)
        except KeyboardInterrupt:
            self.save(checkpoint)
            print(f"interrupted at step {self.step}/{steps}; checkpoint saved", flush=True)
            raise
        self.finished = True
        self.save(checkpoint)

    def _batch(self, count: int) -> np.ndarray:
        """The choices of this step: they depend on seed and step number only, so a resumed training sees the same."""
        per_epoch = -(-count // BATCH)
        epoch, at = divmod(self.step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        return order[at * BATCH : (at + 1) * BATCH]

    def _one_step(self, batch: list[Choice]) -> tuple[float, float]:
        """One step of Adam on the mean cross-entropy; returns it, with the share of right first choices."""
        rows = np.concatenate([choice.rows for choice in batch]) / FEATURE_SCALE
        starts = np.cumsum([0, *(len(choice.rows) for choice in batch[:-1])])
        owner = np.repeat(np.arange(len(batch)), [len(choice.rows) for choice in batch])
        right = starts + np.array([choice.best for choice in batch])

        inner = rows @ self.weights["w1"].T + self.weights["b1"]
        hidden = np.maximum(inner, 0)
        scores = hidden @ self.weights["w2"] + self.weights["b2"]
        highest = np.maximum.reduceat(scores, starts)
        shares = np.exp(scores - highest[owner])
        shares /= np.add.reduceat(shares, starts)[owner]

        slope = shares.copy()
        slope[right] -= 1
        slope /= len(batch)
        slope_inner = np.outer(slope, self.weights["w2"]) * (inner > 0)
        self._adam(
            {
                "w1": slope_inner.T @ rows,
                "b1": slope_inner.sum(axis=0),
                "w2": hidden.T @ slope,
                "b2": np.array([slope.sum()]),
            }
        )
        return float(-np.log(shares[right]).mean()), float((scores[right] >= highest).mean())

    def _adam(self, gradient: dict[str, np.ndarray]) -> None:
        time = self.step + 1
        for name, slope in gradient.items():
            slope = slope + 1e-4 * self.weights[name]
            mean, square = self._moments[name]
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope**2 - square)
            rate = self.learning_rate * math.sqrt(1 - 0.999**time) / (1 - 0.9**time)
            self.weights[name] = self.weights[name] - rate * mean / (np.sqrt(square) + 1e-8)


def quantise(weights: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    """Whole-number weights of a network whose output is ``factor`` times this one's, in bits instead of nats."""
    one = 1 << WEIGHT_SHIFT
    output = factor / math.log(2)
    return {
        "w1": np.rint(weights["w1"] / FEATURE_SCALE * one).astype(np.int64),
        "b1": np.rint(weights["b1"] * one).astype(np.int64),
        "w2": np.rint(weights["w2"] * output * one).astype(np.int64),
        "b2": np.rint(weights["b2"] * output * one).astype(np.int64),
    }


def integer_scores(whole: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What the Rust side must compute, digit for digit."""
    hidden = np.maximum(rows @ whole["w1"].T + whole["b1"], 0)
    return (whole["b2"] + ((hidden @ whole["w2"]) >> WEIGHT_SHIFT)) >> OUTPUT_SHIFT


def export(training: Training, path: Path, *, kind: str, factor: float, samples: Sequence[Choice]) -> None:
    """Write a model for the prover, after making sure that the prover computes the same scores from it."""
    whole = quantise(training.weights, factor)
    hidden, inputs = whole["w1"].shape
    lines = ["miniprover-model 1", f"kind {kind}", f"shape {inputs} {hidden}"]
    lines += [f"{name} {' '.join(map(str, whole[name].ravel()))}" for name in NAMES]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines) + "\n", encoding="ascii")

    rows = np.concatenate([choice.rows for choice in samples])
    text = "\n".join("".join(np.base_repr(value, 36).lower() for value in row) for row in rows)
    told = run_prover("score", "--kind", kind, "--model", new, text=text).split()
    if [int(score) for score in told] != integer_scores(whole, rows).tolist():
        raise SystemExit(f"{path}: the prover computes other scores than the training; not exported")
    new.replace(path)
    print(f"{path}: {kind} model, {len(rows)} scores agree with the prover's", flush=True)
