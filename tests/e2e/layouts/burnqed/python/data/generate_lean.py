"""STAND-IN: a Lean file of a set of theorems."""

import argparse
import json
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("--input", "--output", "--module-name"):
    parser.add_argument(option, required=True)
given = parser.parse_args()
theorems = json.loads(Path(given.input).read_text())["theorems"]
Path(given.output).write_text("import Mathlib\n" + "".join(f"theorem {one['name']} : True\n" for one in theorems))
