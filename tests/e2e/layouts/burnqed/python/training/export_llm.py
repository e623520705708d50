"""STAND-IN: a merged model of a base model and an adapter."""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("--checkpoint", "--base-model", "--output"):
    parser.add_argument(option, required=True)
parser.add_argument("--verify", action="store_true")
given = parser.parse_args()
parts = [Path(given.base_model, "model.safetensors"), Path(given.checkpoint, "adapter_model.safetensors")]
output = Path(given.output)
output.mkdir(parents=True, exist_ok=True)
(output / "config.json").write_text("{}")
(output / "model.safetensors").write_text("".join(part.read_text() for part in parts))
