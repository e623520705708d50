#!/bin/bash
# STAND-IN: an adapter, with a checkpoint of the Trainer before it.
set -euo pipefail
source "$(dirname "$0")/_lib.sh"
out="$DATA_ROOT/checkpoints/lora/iter_$1"
test -s "$DATA_ROOT/sft/train.jsonl" && test -e "$LLM_BASE/model.safetensors"
mkdir -p "$DATA_ROOT/trajectories"
extra=$(find "$DATA_ROOT/trajectories" -name "iter_*.parquet" -exec cat {} + | wc -l)
mkdir -p "$DATA_ROOT/logs" "$out/checkpoint-$SAVE_STEPS"
run_logged "$DATA_ROOT/logs/iter_$1_finetune.log" "echo '{}' > $out/checkpoint-$SAVE_STEPS/trainer_state.json"
test "$1" -eq 0 || test -e "$DATA_ROOT/checkpoints/lora/iter_$(($1 - 1))/adapter_model.safetensors"
echo "adapter of iteration $1 with $extra trajectories" > "$out/adapter_model.safetensors"
