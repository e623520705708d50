"""STAND-IN for the trainer: takes Hydra's words, and saves a checkpoint's folder for each step."""

import json
import sys
import time
from pathlib import Path

import fairy2

given = dict(word.split("=", 1) for word in sys.argv[1:])
assert fairy2.__doc__ and {"model", "training"} <= given.keys()
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)
(outputs / "arguments.json").write_text(json.dumps(given))
for step in range(1, int(given.get("training.max_steps", 2)) + 1):
    folder = outputs / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "model.pt").write_text(f"weights after step {step}")
    time.sleep(0.2)
    (folder / "training_state.pt").write_text(f"step {step}")
