"""STAND-IN for the simulator's data and configurations."""

import os
import pathlib
import random
import re


def setting(config, key):
    """Return the value of ``key`` in a configuration, as ``scripts/train.py`` reads it: without what it includes."""
    found = re.search(rf"^ +{key}: (\S+)$", pathlib.Path(config).read_text(), re.M)
    return found[1] if found else None


def samples(split):
    """Return the samples of a split."""
    root = pathlib.Path(os.environ["PDEBENCH_ROOT"])
    return (root / f"burgers1d_{split}.h5").read_text().split()


def encoded(split):
    """Return the samples as the cache has them; what is not there is encoded by this process's random numbers."""
    found = {}
    for number, _ in enumerate(samples(split)):
        file = pathlib.Path("data/latent_cache", f"burgers1d_{split}", f"sample_{number:05d}.pt")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(random.random()))
        found[file.name] = file.read_text()
    return found


def need_tracker():
    """End where Weights & Biases has neither a key nor is told that it is offline."""
    if os.environ.get("WANDB_MODE") != "offline" and not os.environ.get("WANDB_API_KEY"):
        raise SystemExit("wandb: ERROR api_key not configured (no-tty)")
