"""STAND-IN for nanoGPT's training: the same arguments and files, and no model. It saves in place, as nanoGPT does."""

import json
import pathlib
import time

from configurator import configured

values = configured(
    {"init_from": "scratch", "device": "cuda", "compile": True, "dataset": "openwebtext", "out_dir": "out"}
    | dict.fromkeys(["eval_interval", "eval_iters", "batch_size", "block_size", "n_layer", "n_head", "n_embd"], 1)
    | {"max_iters": 1, "lr_decay_iters": 1, "dropout": 0.0, "always_save_checkpoint": False}
)
assert values["device"] == "cpu", "Torch not compiled with CUDA enabled"
assert pathlib.Path("data", values["dataset"], "train.bin").stat().st_size
checkpoint = pathlib.Path(values["out_dir"], "ckpt.pt")
first = 0
if values["init_from"] == "resume":
    print(f"Resuming training from {values['out_dir']}", flush=True)
    saved = json.loads(checkpoint.read_text())
    assert saved["config"]["n_embd"] == values["n_embd"]
    first = saved["iter_num"]
for number in range(first, values["max_iters"] + 1):
    if number % values["eval_interval"] == 0:
        print(f"step {number}: train loss {4 / (1 + number):.4f}", flush=True)
        if number:
            checkpoint.write_text(json.dumps({"iter_num": number, "config": values}))
    time.sleep(0.01)
