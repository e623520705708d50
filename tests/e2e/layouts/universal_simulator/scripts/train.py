"""STAND-IN for the simulator's training: each stage reads what the one before has saved."""

import argparse
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "src"))
from ups import data

SAVES = {"operator": "operator", "diff_residual": "diffusion_residual", "consistency_distill": "diffusion_residual"}
parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--stage", choices=list(SAVES))
args = parser.parse_args()
data.need_tracker()
assert data.setting(args.config, "patch_size"), "Grid shape (1, 128) not divisible by patch size 4"
folder = pathlib.Path(data.setting(args.config, "dir") or "checkpoints")
folder.mkdir(parents=True, exist_ok=True)
cache = data.encoded("train")
state = {"dim": data.setting(args.config, "dim"), "cache": cache}
if args.stage != "operator":
    operator = json.loads((folder / "operator.pt").read_text())
    assert operator == state, "the operator has learnt from another cache, or its keys are those of torch.compile"
pathlib.Path("reports").mkdir(exist_ok=True)
with open("reports/test_training_log.jsonl", "a") as log:
    log.write(json.dumps({"stage": args.stage, "begun": True}) + "\n")
time.sleep(float(os.environ.get("EPOCH_S", "0")) if args.stage == "diff_residual" else 0)
compiled = "" if os.environ.get("TORCHDYNAMO_DISABLE") == "1" else "_orig_mod."
saved = {f"{compiled}{key}": value for key, value in state.items()}
(folder / f"{SAVES[args.stage]}.pt").write_text(json.dumps(saved))
print(f"Saved {args.stage} to {folder}")
