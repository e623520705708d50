#!/bin/bash
# What somebody would write without gpuyard: one script, sent over one SSH session, that takes an empty machine to the
# first line of the first stage of miniprover. The benchmark's floor for bringing a machine into shape.
#
#   tar -cz … | ssh root@machine "UV_VERSION=… RUSTUP_VERSION=… RUSTUP_SHA256=… RUST_SERVER=… bash -c '…this file…'"
#
# It has what a careful person would have (exact versions, checksums of what is downloaded, an environment of its own,
# a stage that outlives the session), and nothing of what gpuyard does beyond: no second run that changes nothing, no
# checkpoint, no journal, nobody who goes on when it was cut off.
set -euo pipefail

version=1.96.0
code=/opt/plain/miniprover
export DEBIAN_FRONTEND=noninteractive RUSTUP_HOME=/opt/plain/rustup CARGO_HOME=/opt/plain/cargo
export RUSTUP_DIST_SERVER=${RUST_SERVER:-https://static.rust-lang.org}
export PATH=$CARGO_HOME/bin:$PATH PYTHONUNBUFFERED=1

mkdir -p "$code"
tar -xz -C "$code"

apt-get update -qq
apt-get install -qq -y --no-install-recommends build-essential ca-certificates curl git python3-venv tmux >/dev/null

target=$(uname -m)-unknown-linux-gnu
cd "$(mktemp -d)"
curl -fsS --remote-name-all "$RUSTUP_DIST_SERVER/rustup/archive/$RUSTUP_VERSION/$target/rustup-init"
sha256sum rustup-init | cut -d' ' -f1 | grep -qxF "$RUSTUP_SHA256" # one of several sums, each on a line
chmod +x rustup-init
./rustup-init -q -y --no-modify-path --profile minimal --default-toolchain "$version" 2>/dev/null &
rust=$!

python3 -m venv /opt/plain/uv
/opt/plain/uv/bin/pip install -q --disable-pip-version-check "uv==$UV_VERSION"
/opt/plain/uv/bin/uv venv -q /opt/plain/venv
/opt/plain/uv/bin/uv pip install -q --python /opt/plain/venv/bin/python -r "$code/requirements.txt"

wait "$rust"
cd "$code"
mkdir -p models checkpoints trajectories eval_results
{
  cargo build --release --locked
  target/release/prover search --dry-run --theorems data/pelletier.txt
} >/opt/plain/build.log 2>&1

tmux new-session -d -s run 'date +first-line=%s.%N | tee /opt/plain/first.log; sleep 600'
until grep first-line= /opt/plain/first.log 2>/dev/null; do sleep 0.05; done
