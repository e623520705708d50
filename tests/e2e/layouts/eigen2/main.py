"""STAND-IN for the trainer: generations, a checkpoint every five, and a log."""

import argparse
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--resume", action="store_true")
parser.add_argument("--generations", type=int, default=25)
given = parser.parse_args()
checkpoint, log = Path("checkpoints/population.txt"), Path("logs/training.log")
assert Path("data/prices.csv").is_file()
done = int(checkpoint.read_text()) if given.resume and checkpoint.exists() else 0
for generation in range(done + 1, given.generations + 1):
    time.sleep(0.4)
    with log.open("a") as lines:
        lines.write(f"generation {generation}\n")
    if generation % 5 == 0:
        scratch = checkpoint.with_suffix(".part")
        scratch.write_text(str(generation))
        scratch.replace(checkpoint)
