#!/bin/bash
# STAND-IN: no inference server is started; that the right model is asked for is written down.
DATA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/data"
PROVER="target/release/prover-core"
ensure_server() { echo "server $2" >> "$DATA_ROOT/logs/servers.log"; }
stop_sglang_server() { :; }
run_logged() {
    local logfile="$1"
    shift
    script -qefc "$*" "$logfile"
}
