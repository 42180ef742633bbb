#!/usr/bin/env bash
# One host's part of launch/tpu_vm.sh: starts the program in the background, or finds the
# one that runs here already, and shows what it says until it ends, with its exit code.
# usage: launch/tpu_worker.sh WORDS OF pretrain
#        launch/tpu_worker.sh --follow     shows the one that was started, or its end
#        launch/tpu_worker.sh --stop       asks the one that runs to save and end
set -euo pipefail
cd "$(dirname "$0")/.."
state=.cache/tpu
mkdir -p "$state"

running() { [ -f "$state/pid" ] && [ ! -f "$state/code" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }

if [ "${1:-}" = --stop ]; then
  # The whole group: the shell around the program waits for it.
  if running; then kill -USR1 -- "-$(cat "$state/pid")"; fi
  exit
fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
touch "$state/log"
shown=$(wc -l <"$state/log")
if [ "${1:-}" != --follow ] && ! running; then
  rm -f "$state/code" "$state/pid"
  # shellcheck disable=SC2016
  setsid nohup bash -c 'trap : USR1 TERM INT
    echo $$ >"$0/new" && mv "$0/new" "$0/pid"
    "$@" && code=0 || code=$?
    echo $code >"$0/code"' "$state" \
    .venv/bin/python -m sfrik_jax pretrain "$@" </dev/null >>"$state/log" 2>&1 &
  until [ -f "$state/pid" ]; do sleep 0.05; done
fi
tail -n "+$((shown + 1))" -s 0.2 -f --pid="$(cat "$state/pid")" "$state/log"
if [ ! -f "$state/code" ]; then echo "error: the program's shell was ended" >&2; exit 137; fi
exit "$(cat "$state/code")"
