"""STAND-IN: traced pairs from the downloaded data set."""

from pathlib import Path

pairs = Path("data/lean/lean_github/lean-github.parquet").read_text()
Path("data/traced/lean_github_pairs.jsonl").write_text(pairs)
