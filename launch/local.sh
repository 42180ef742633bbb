#!/usr/bin/env bash
# Runs a command in N processes on this machine, each with D CPU devices, and starts
# them again when one is lost.
# usage: launch/local.sh N [--devices D] [--restarts R] -- pretrain --config … --workdir …
# launch/local.sh --help says more.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

ACCELERATOR=cpu install requirements.txt
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
exec .venv/bin/python -m sfrik_jax.processes.local "$@"
