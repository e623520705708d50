#!/bin/bash
# STAND-IN: a server that is healthy.
test -e "$1/model.safetensors" && exec python python/encode_server.py --model-path "$1" --port 30001
