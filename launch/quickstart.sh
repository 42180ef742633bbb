#!/usr/bin/env bash
# Pretrains on the embedded data set, evaluates, and writes runs/quickstart/report.html.
# usage: [WORKDIR=DIR] launch/quickstart.sh [--config.KEY=VALUE …]
# Can be stopped with Ctrl-C and run again: it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

workdir=${WORKDIR:-runs/quickstart}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

install requirements.txt
sfrik() { .venv/bin/python -m sfrik_jax "$@"; }
sfrik data prepare fashion_mini --data-dir data
sfrik pretrain --config configs/quickstart.py --workdir "$workdir" "$@"
sfrik report "$workdir"
