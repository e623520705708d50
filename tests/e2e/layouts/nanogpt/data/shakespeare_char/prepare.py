"""STAND-IN for nanoGPT's preparation: it needs the text, and writes three files beside it."""

import pathlib
import pickle

here = pathlib.Path(__file__).parent
data = (here / "input.txt").read_text()
chars = sorted(set(data))
print(f"length of dataset in characters: {len(data):,}")
(here / "train.bin").write_text(data[: int(len(data) * 0.9)])
(here / "val.bin").write_text(data[int(len(data) * 0.9) :])
with open(here / "meta.pkl", "wb") as file:
    pickle.dump({"vocab_size": len(chars)}, file)
