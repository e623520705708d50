#!/bin/sh
# STAND-IN for the build, and for what a rented machine has from the Hub's client and from Lean.
set -e
install -D programs/prover-core target/release/prover-core
install programs/hf programs/lake /usr/local/bin
mkdir -p "$PANTOGRAPH_PROJECT"
touch "$PANTOGRAPH_PROJECT/lakefile.lean"
