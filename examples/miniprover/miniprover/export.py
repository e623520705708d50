# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage ``export``: write the trained policy as whole numbers, for the prover."""

from __future__ import annotations

import argparse
import sys

from miniprover.common import CHECKPOINTS, INTERRUPTED, MODELS, policy_choices, read_traces, trace_files
from miniprover.training import Training, export

SAMPLES = 50


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m miniprover.export", description=__doc__)
    parser.add_argument("--iteration", type=int, required=True)
    iteration = parser.parse_args().iteration
    checkpoint = CHECKPOINTS / f"policy-{iteration}.npz"
    training = Training.load(checkpoint, seed=0)
    if not training.finished:
        raise SystemExit(f"{checkpoint}: this training is not finished; run miniprover.finetune --resume first")
    samples = list(policy_choices(read_traces(trace_files(iteration))))[:SAMPLES]
    try:
        export(training, MODELS / f"policy-{iteration}.txt", kind="policy", factor=1, samples=samples)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
