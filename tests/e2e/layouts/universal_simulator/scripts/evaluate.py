"""STAND-IN for the simulator's evaluation."""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "src"))
from ups import data
from ups.eval.pdebench_runner import evaluate_latent_operator

parser = argparse.ArgumentParser()
for name in ("--config", "--operator", "--diffusion", "--output-prefix"):
    parser.add_argument(name, required=True)
parser.add_argument("--print-json", action="store_true")
args = parser.parse_args()
data.need_tracker()
for file in (args.operator, args.diffusion):
    assert json.loads(pathlib.Path(file).read_text())["dim"] == data.setting(args.config, "dim")
report = evaluate_latent_operator(data.samples("test"), return_details=True)
pathlib.Path(f"{args.output_prefix}.json").write_text(json.dumps({"metrics": report}))
