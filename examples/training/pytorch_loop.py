"""A loop of PyTorch's that goes on where it was cut off, on this machine or on another one.

Without CLOUD_PROVIDER and CLOUD_BUCKET in the environment everything stays local; gpuyard sets both for its stages.
"""

import argparse
from pathlib import Path

import torch

from gpuyard.cloud_sync import get_cloud_sync_from_env


def save(state: dict, path: Path) -> None:
    """Write the file beside its place first: a file that is cut off must never be taken for a checkpoint."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--name", default="regression")
    options = parser.parse_args()

    sync = get_cloud_sync_from_env()
    # What is here wins; else the newest whole set; else nothing, and training starts.
    sync.download_checkpoints(options.name, options.checkpoints)
    options.checkpoints.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    newest, first = options.checkpoints / "newest.pt", 0
    if newest.exists():
        state = torch.load(newest, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on after step {first}")

    for step in range(first + 1, options.steps + 1):
        inputs = torch.randn(32, 8)
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % options.every == 0 or step == options.steps:
            save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, newest)
            print(f"step {step}: loss {loss.item():.6f}")
            sync.sync_checkpoints(options.checkpoints, options.name, keep_last=3)  # False, and a warning, if it fails


if __name__ == "__main__":
    main()
