"""STAND-IN for the simulator's latent cache."""

import argparse

from ups import data

parser = argparse.ArgumentParser()
for name in ("--config", "--root", "--cache-dir", "--device", "--batch-size"):
    parser.add_argument(name, required=True)
for name in ("--tasks", "--splits"):
    parser.add_argument(name, nargs="+")
parser.add_argument("--num-workers", type=int, default=4)
args = parser.parse_args()
if args.num_workers:
    raise SystemExit("RuntimeError: Cannot re-initialize CUDA in forked subprocess.")
for split in args.splits:
    print(f"[burgers1d:{split}] {len(data.encoded(split))} samples cached")
