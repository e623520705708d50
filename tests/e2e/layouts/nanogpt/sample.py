"""STAND-IN for nanoGPT's sampling."""

import json
import pathlib

from configurator import configured

values = configured({"out_dir": "out", "device": "cuda", "num_samples": 10, "max_new_tokens": 500, "compile": True})
assert pathlib.Path("data/shakespeare_char/meta.pkl").exists()
saved = json.loads(pathlib.Path(values["out_dir"], "ckpt.pt").read_text())
for number in range(values["num_samples"]):
    print(f"sample {number} of iteration {saved['iter_num']}\n---------------")
