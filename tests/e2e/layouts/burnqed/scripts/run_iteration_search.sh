#!/bin/bash
set -euo pipefail
source "$(dirname "$0")/_lib.sh"
output="$DATA_ROOT/trajectories/iter_$1.parquet"
model="$DATA_ROOT/models/merged/iter_$1"
ensure_server http://localhost:30000 "$model"
mkdir -p "$DATA_ROOT/trajectories" "$DATA_ROOT/checkpoints/ebm/iter_$1" "$DATA_ROOT/logs"
flags=""
if [ "$1" -gt 0 ] && [ -f "$DATA_ROOT/checkpoints/ebm/iter_$1/final/model.mpk" ]; then
    flags="--ebm-path $DATA_ROOT/checkpoints/ebm/iter_$1 --encode-url http://localhost:30001"
fi
if [ -s "$output" ]; then
    cp "$output" "${output%.parquet}.resume.parquet"
    flags="$flags --resume-from ${output%.parquet}.resume.parquet"
fi
run_logged "$DATA_ROOT/logs/iter_$1_step_2_search.log" "$PROVER" search "$flags" \
    --theorems "$DATA_ROOT/benchmarks/iter$1_search_theorems.json" --output "$output" --concurrency "$CONCURRENCY" \
    --max-theorems "$MAX_THEOREMS" --imports Mathlib
rm -f "${output%.parquet}.resume.parquet"
