#!/usr/bin/env bash
# Pretrains on all hosts of a Cloud TPU VM slice, and goes on after a lost host.
# usage: launch/tpu_vm.sh NAME [--zone ZONE] [--project PROJECT] [--ref REF] [--dry-run] -- --config FILE --workdir DIR [--config.KEY=VALUE …]
#   launch/tpu_vm.sh pod --zone us-west4-a -- --config configs/imagenet_resnet50.py --workdir /shared/runs/r50 --config.data.path=/shared/data
# Copies the commit REF (default: HEAD) to each host, installs its requirements there and
# starts the program; DIR and the data have to be one place for all hosts. --dry-run
# prints the commands. Closing the terminal leaves the program running, and the same
# command follows it again; Ctrl-C stops it when it has saved.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/restarts.sh

usage() {
  echo "error: $1; usage: $(sed -n 's/^# usage: //p' "$PWD/launch/tpu_vm.sh")" >&2
  exit 2
}

name='' where=() ref=HEAD dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --) break ;;
    --zone | --project | --ref)
      if [ $# -lt 2 ]; then usage "$1 needs a value"; fi
      if [ "$1" = --ref ]; then ref=$2; else where+=("$1=$2"); fi
      shift ;;
    --dry-run) dry_run=1 ;;
    -*) usage "$1 is no option" ;;
    *) if [ -n "$name" ]; then usage "$1 is one word too many"; fi; name=$1 ;;
  esac
  shift
done
if [ -z "$name" ]; then usage "the NAME of the slice is missing"; fi
if [ $# -eq 0 ]; then usage "the words of pretrain are missing, after --"; fi
shift
workdir=$(workdir_of "$@")
revision=$(git rev-parse --verify --quiet "$ref^{commit}") || usage "--ref $ref is no commit"
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
  echo "note: what is not committed is not sent"
fi

# slice VERB WORDS: one command on the slice; printed only, with --dry-run.
slice() {
  local verb=$1
  shift
  set -- gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"
  if [ -n "$dry_run" ]; then printf '%q ' "$@" && echo; else "$@"; fi
}
# on WORKERS COMMAND WORDS: a command in the code's folder of these workers. Its words
# reach it as they are, whatever is in them.
on() {
  local workers=$1
  shift
  slice ssh "$name" "--worker=$workers" "--command=cd sfrik/$revision && $(printf '%q ' "$@")"
}

# shellcheck disable=SC2016
unpack='mkdir -p "sfrik/$0" && tar -xzf sfrik.tar.gz -C "sfrik/$0" && cd "sfrik/$0" &&
  source launch/environment.sh && ACCELERATOR=${ACCELERATOR:-tpu} install requirements.txt'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git archive --format=tar.gz --output="$folder/sfrik.tar.gz" "$revision"
slice scp "$folder/sfrik.tar.gz" "$name:sfrik.tar.gz" --worker=all
slice ssh "$name" --worker=all "--command=$(printf '%q ' bash -c "$unpack" "$revision")"

asked='' lost=0 words=("$@") note=$folder/restarts
stop() {
  if [ -n "$asked" ]; then return; fi
  asked=1
  echo "stopping as soon as all is saved"
  on all bash launch/tpu_worker.sh --stop || true
}
trap stop INT

while :; do
  began=$SECONDS
  on all bash launch/tpu_worker.sh "${words[@]}" && code=0 || code=$?
  if [ -n "$dry_run" ] || [ "$code" -eq 0 ]; then exit 0; fi
  if [ $((SECONDS - began)) -gt 60 ]; then lost=0; fi
  # ssh lost its connection, or Ctrl-C ended gcloud: the program runs on.
  if [ "$code" -eq 255 ] || { [ -n "$asked" ] && [ "${words[*]}" != --follow ]; }; then
    words=(--follow) lost=$((lost + 1))
    if [ "$lost" -le 3 ]; then sleep "${PAUSE:-10}"; continue; fi
    echo "error: no connection to $name; the same command follows the run again" >&2
    exit "$code"
  fi
  words=("$@") lost=0
  if [ -n "$asked" ] || ! worth_a_restart "$code"; then exit "$code"; fi
  step=$(on 0 bash -c 'source launch/restarts.sh; newest_step "$0"' "$workdir")
  if ! may_restart "$note" "$step"; then
    echo "error: $MAX_RESTARTS restarts without a checkpoint after step $step; look at the log" >&2
    exit "$code"
  fi
  echo "exit code $code, newest checkpoint at step $step: starting again"
  sleep "${PAUSE:-10}"
done
