#!/bin/bash
set -euo pipefail
source "$(dirname "$0")/_lib.sh"
model="${LLM_BASE:-$DATA_ROOT/models/merged/iter_$ITER}"
out="$DATA_ROOT/evals/minif2f_eval/deepseek/iter_$ITER/4090"
ensure_server http://localhost:30000 "$model"
test -e "$model/model.safetensors"
for version in test:Test v2s_test:V2STest; do
    run_logged "$DATA_ROOT/logs/4090/minif2f_eval_iter_${ITER}_${version%:*}.log" "$PROVER" search \
        --theorems "$DATA_ROOT/benchmarks/minif2f_${version%:*}.json" --output "$out/${version%:*}.parquet" \
        --imports "Mathlib,BenchMinIF2F${version#*:}"
    echo "{\"llm_path\": \"${model#"$DATA_ROOT"/}\"}" > "$out/${version%:*}.json"
done
