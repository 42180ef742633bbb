#!/usr/bin/env bash
# Sets up what the tests need, then checks format, lint and types and runs the tests.
# usage: launch/test.sh [arguments of pytest]     (default: the fast set, -m "not slow")
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

ACCELERATOR=cpu install requirements-dev.txt
export JAX_PLATFORMS=cpu
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/pyright --pythonpath .venv/bin/python
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
# Slow tests stand together in a file: an idle process takes from a busy one.
.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
