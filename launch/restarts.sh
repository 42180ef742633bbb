# Sourced by the launchers that start a run again: after which exit codes, how often,
# and in which words. docs/multi-host.md has the table.

# The three restarts without a new step after which a run is left alone.
MAX_RESTARTS=3

# worth_a_restart CODE: it saved and stopped (75), a peer is lost or hangs (76), or a
# signal ended a process (129 … 160).
worth_a_restart() {
  [ "$1" -eq 75 ] || [ "$1" -eq 76 ] || { [ "$1" -gt 128 ] && [ "$1" -le 160 ]; }
}

# What each process runs: `bash -c "$RANKED" sfrik COMMAND …`. Launchers see the highest
# code of all processes; a code that no restart mends comes out as 160 + code, above the
# deaths by signal of the peers that it took along.
# shellcheck disable=SC2016
RANKED='trap : USR1 TERM INT
"$@"
code=$?
case $code in
  0 | 75 | 76) exit $code ;;
  *) [ $code -gt 128 ] && exit $code; exit $((code + 160)) ;;
esac'

# unranked CODE: the program's own code.
unranked() { if [ "$1" -gt 160 ]; then echo $(($1 - 160)); else echo "$1"; fi; }

# workdir_of WORDS: the value of --workdir among them.
workdir_of() {
  local word before='' found=''
  for word in "$@"; do
    if [ "$before" = --workdir ]; then found=$word; fi
    case $word in --workdir=*) found=${word#*=} ;; esac
    before=$word
  done
  if [ -n "$found" ]; then echo "$found"; return; fi
  echo "error: --workdir DIR is missing; all processes and all restarts need the same one" >&2
  return 2
}

# newest_step WORKDIR: of its checkpoints; 0 without.
newest_step() {
  local step newest=0
  for step in "$1"/checkpoints/*; do
    step=${step##*/}
    case $step in '' | *[!0-9]*) continue ;; esac
    if [ "$step" -gt "$newest" ]; then newest=$step; fi
  done
  echo "$newest"
}

# may_restart NOTE STEP: counts restarts without a new step in the file NOTE; fails when
# there were enough.
may_restart() {
  local before=-1 count=0
  if [ -f "$1" ]; then read -r before count <"$1" || true; fi
  if [ "$2" -gt "$before" ]; then count=0; fi
  if [ "$count" -ge "$MAX_RESTARTS" ]; then return 1; fi
  mkdir -p "$(dirname "$1")"
  echo "$2 $((count + 1))" >"$1"
}
