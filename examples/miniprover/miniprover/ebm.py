# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage ``ebm``: teach the energy model which states lie on the way to a proof, and write it for the prover.

Contrastive: a state of the proof's path against states that the same search looked at in vain or left aside.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from miniprover.common import CHECKPOINTS, INTERRUPTED, MODELS, energy_choices, read_traces, trace_files
from miniprover.training import Training, export

SEED = 101
SAMPLES = 50


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m miniprover.ebm", description=__doc__.splitlines()[0])
    parser.add_argument("--iteration", type=int, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--weight", type=float, default=1.0, help="of the energy against the log-probabilities")
    parser.add_argument("--resume-from", type=Path, help="go on from this checkpoint, if it is there")
    options = parser.parse_args()
    checkpoint = CHECKPOINTS / f"energy-{options.iteration}.npz"
    previous = CHECKPOINTS / f"energy-{options.iteration - 1}.npz"
    seed = SEED + options.iteration
    try:
        choices = list(energy_choices(read_traces(trace_files(options.iteration))))
        if options.resume_from and options.resume_from.exists():
            training = Training.load(options.resume_from, seed=seed)
            print(f"resuming at step {training.step}", flush=True)
        elif options.iteration == 0:
            training = Training(choices[0].rows.shape[1], seed=seed)
        else:
            training = Training.load(previous, seed=seed)
            training.new_iteration()
        print(f"energy: {len(choices)} comparisons", flush=True)
        every = options.checkpoint_every
        training.train(choices, steps=options.steps, checkpoint=checkpoint, checkpoint_every=every)
        target = MODELS / f"energy-{options.iteration}.txt"
        # The network prefers good states; energy is low for them.
        export(training, target, kind="energy", factor=-options.weight, samples=choices[:SAMPLES])
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
