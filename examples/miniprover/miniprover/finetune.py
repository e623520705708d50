# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage ``finetune``: teach the policy to make the cuts that proofs made.

At iteration 0 there is no search to learn from yet, so an unguided one over the training list with a small budget makes
the first traces; it proves the easy theorems only. Training then takes three epochs, one in later iterations.
"""

from __future__ import annotations

import argparse
import sys

from miniprover.common import (
    BOOTSTRAP,
    CHECKPOINTS,
    INTERRUPTED,
    TRAIN,
    policy_choices,
    read_traces,
    run_prover,
    trace_files,
)
from miniprover.training import BATCH, Training

SEED = 1
BOOTSTRAP_NODES = 100


def bootstrap() -> None:
    """Make the first traces, unless a finished search has left them."""
    results = BOOTSTRAP.with_name("results.jsonl")
    nodes = ("--nodes", str(BOOTSTRAP_NODES))
    text = run_prover("search", "--theorems", *TRAIN, "--output", results, "--resume-from", results, *nodes)
    print(f"bootstrap, unguided: {text.splitlines()[-1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m miniprover.finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--iteration", type=int, required=True)
    parser.add_argument("--epochs", type=int, help="default: 3 at iteration 0, then 1")
    parser.add_argument("--checkpoint-every", type=int, default=25, metavar="STEPS")
    parser.add_argument("--resume", action="store_true", help="go on from this iteration's checkpoint, if there is one")
    options = parser.parse_args()
    checkpoint = CHECKPOINTS / f"policy-{options.iteration}.npz"
    try:
        if options.iteration == 0:
            bootstrap()
        choices = list(policy_choices(read_traces(trace_files(options.iteration))))
        if options.resume and checkpoint.exists():
            training = Training.load(checkpoint, seed=SEED + options.iteration)
            print(f"resuming at step {training.step}", flush=True)
        elif options.iteration == 0:
            training = Training(choices[0].rows.shape[1], seed=SEED)
        else:
            training = Training.load(CHECKPOINTS / f"policy-{options.iteration - 1}.npz", seed=SEED + options.iteration)
            training.new_iteration()
        epochs = options.epochs or (3 if options.iteration == 0 else 1)
        steps = epochs * -(-len(choices) // BATCH)
        print(f"policy: {len(choices)} choices, {epochs} epochs", flush=True)
        training.train(choices, steps=steps, checkpoint=checkpoint, checkpoint_every=options.checkpoint_every)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
