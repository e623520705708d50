"""STAND-IN: the pairs of both sources, for training and validation."""

from pathlib import Path

sources = ["pantograph_pairs/goedel_427_pairs.jsonl", "lean_github_pairs.jsonl"]
Path("data/sft").mkdir(parents=True, exist_ok=True)
for name in ("train", "val"):
    Path(f"data/sft/{name}.jsonl").write_text("".join(Path("data/traced", source).read_text() for source in sources))
