"""``python -m chaos`` (``make chaos``): strike runs at random moments, and tell what held."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from . import boxes, running, s3
from .running import Result


def main() -> int:
    """Run what the command line says; return 1 when something that was promised did not hold."""
    options = _parser().parse_args()
    seed = options.seed or str(random.SystemRandom().randint(1, 999_999))
    base = Path(tempfile.mkdtemp(prefix="gpuyard-chaos-"))
    began = time.monotonic()
    if options.boxes:
        print(f"Chaos on boxes: seed {seed}, {options.boxes} faults, in {base}.", flush=True)
        results = [boxes.run(base / "boxes", seed, options.boxes)]
        again = f"BOXES={options.boxes} SEED={seed}"
    else:
        results = _processes(options, seed, base)
        again = f"FAULTS={options.faults} SEED={seed} RUN="
    seconds = time.monotonic() - began
    print(running.table(results))
    count = sum(len(result.faults) for result in results)
    print(f"{count} faults in {seconds:.0f} s ({count / seconds:.1f} a second), seed {seed}.")
    for name in sorted({name for result in results for name in result.missing}):
        print(f"Not to be had on this machine: {name}.")
    if options.json:
        _write(Path(options.json), seed, seconds, results)
    wrong = [result for result in results if result.problem]
    for result in wrong:
        print(f"WRONG in run {result.world}, at fault {result.last}: {result.problem}")
        number = "" if options.boxes else result.world
        print(f"  again: make chaos {again}{number}; what is left: {result.folder}")
    if not wrong:
        shutil.rmtree(base)
    return 1 if wrong else 0


def _processes(options: argparse.Namespace, seed: str, base: Path) -> list[Result]:
    """Strike runs that are processes of this machine."""
    wanted = running.settings(options.faults, seed)
    if options.world is not None:
        wanted = [setting for setting in wanted if setting.number == options.world]
    count = sum(one.count for one in wanted)
    print(f"Chaos: seed {seed}, {count} faults in {len(wanted)} runs, in {base}.", flush=True)
    with nullcontext("") if options.no_s3 else s3.seaweedfs(base / "s3") as endpoint:
        settings = [replace(one, folder=str(base / f"w{one.number}"), s3_endpoint=endpoint) for one in wanted]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=running.prepare) as pool:
            return list(pool.map(running.run, settings))


def _write(file: Path, seed: str, seconds: float, results: list[Result]) -> None:
    document = {"seed": seed, "seconds": round(seconds, 1), "runs": [result.as_document() for result in results]}
    file.write_text(json.dumps(document, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description="Strike runs at random moments, and tell what held.")
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="how many faults (default %(default)s)")
    parser.add_argument("--seed", help="what decides the faults and their moments (default: a new one, which is said)")
    parser.add_argument("--world", type=int, metavar="N", help="only the run with this number")
    parser.add_argument("--boxes", type=int, default=0, metavar="N", help="N faults on boxes of the sandbox instead")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="runs at a time (%(default)s)")
    parser.add_argument("--no-s3", action="store_true", help="only folders as buckets")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
