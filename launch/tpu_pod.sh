#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, with gcloud. From a checkout:
#
#   launch/tpu_pod.sh create   --name sdg --zone us-west4-a --accelerator_type v5litepod-16
#   launch/tpu_pod.sh install  --name sdg --zone us-west4-a
#   launch/tpu_pod.sh run      --name sdg --zone us-west4-a -- --config configs/sdg_ffhq.py --workdir /mnt/runs/sdg
#   launch/tpu_pod.sh stop     --name sdg --zone us-west4-a
#   launch/tpu_pod.sh teardown --name sdg --zone us-west4-a
#
# `install` copies the commit that is checked out (HEAD) to every worker. `run` starts one process
# on every worker and follows their logs; the training goes on when the connection breaks, and `run`
# again after `stop`, a failure or a new `create` resumes from the workdir, which every worker must
# see (a shared disk or a mounted bucket). `stop` lets the run save first. `all` does create, install, run
# and, however the run ends, teardown. With --dry_run nothing runs: what would run is printed.
#
# Before the first run, gcloud's SSH key must be in an agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  [[ $# -eq 0 ]] || echo "tpu_pod.sh: $1" >&2
  cat >&2 <<'END'
usage: launch/tpu_pod.sh create|install|run|stop|teardown|all [options] [-- arguments of python -m vljax.train]
  --name NAME                name of the TPU (default: vljax)
  --zone ZONE                zone of the TPU (required)
  --project PROJECT          project (default: gcloud's)
  --accelerator_type TYPE    size of the slice, such as v5litepod-16 (required by create and all)
  --runtime_version VERSION  image of the workers (default: tpu-ubuntu2204-base; v5e: v2-alpha-tpuv5-lite,
                             v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e)
  --spot                     create: capacity that may be preempted
  --queued                   create, teardown: through a queued resource; create waits until it is active
  --dry_run                  print the commands, run nothing
END
  exit 2
}

action=${1:-}
case $action in
  create | install | run | stop | teardown | all) shift ;;
  '') usage 'no subcommand' ;;
  *) usage "unknown subcommand '$action'" ;;
esac

name=vljax zone='' project='' accelerator_type='' runtime_version=tpu-ubuntu2204-base
spot=() queued=false dry_run=false arguments=() has_arguments=false
while (($#)); do
  case $1 in
    --name | --zone | --project | --accelerator_type | --runtime_version)
      [[ -n ${2:-} ]] || usage "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot) spot=(--spot) && shift ;;
    --queued) queued=true && shift ;;
    --dry_run) dry_run=true && shift ;;
    --)
      arguments=("${@:2}") has_arguments=true
      break
      ;;
    *) usage "unknown option '$1'" ;;
  esac
done
[[ -n $zone ]] || usage '--zone is required'
case $action in
  create | all) [[ -n $accelerator_type ]] || usage "$action needs --accelerator_type" ;;
esac
case $action in
  run | all) $has_arguments || usage "$action needs -- and the trainer's arguments" ;;
  *) ! $has_arguments || usage "$action takes no arguments for the trainer" ;;
esac
place=("--zone=$zone" ${project:+"--project=$project"})

# Writes words so that a shell reads the same words back.
quote() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

# Prints a command and, unless in a dry run, runs it.
execute() {
  if $dry_run; then
    quote "$@"
  else
    quote "$@" >&2
    "$@"
  fi
}

on_all_workers() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all "--command=$1"
}

# Polls a queued resource until its TPU is there.
wait_until_active() {
  local state describe=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" '--format=value(state.state)')
  if $dry_run; then
    echo "$(quote "${describe[@]}") # every 30 s until it prints ACTIVE"
    return
  fi
  while true; do
    state=$("${describe[@]}")
    echo "tpu_pod.sh: the queued resource is $state" >&2
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) return 1 ;;
    esac
    sleep 30
  done
}

create() {
  if $queued; then
    execute gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${place[@]}" \
      "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version" "${spot[@]}"
    wait_until_active
  else
    execute gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
      "--accelerator-type=$accelerator_type" "--version=$runtime_version" "${spot[@]}"
  fi
}

install() {
  local archive=${TMPDIR:-/tmp}/vljax-$name.tar.gz
  execute git archive --format=tar.gz --prefix=vljax/ "--output=$archive" HEAD
  execute gcloud compute tpus tpu-vm scp "$archive" "$name:vljax.tar.gz" "${place[@]}" --worker=all
  # uv brings its own Python: the workers' images are older than vljax needs.
  on_all_workers 'set -e; tar -xzf vljax.tar.gz; curl -LsSf https://astral.sh/uv/install.sh | sh; ~/.local/bin/uv venv --clear --python 3.12 ~/vljax-env; ~/.local/bin/uv pip install --python ~/vljax-env/bin/python -e "./vljax[tpu]"'
}

run() {
  local train
  train=$(quote -m vljax.train --distributed "${arguments[@]}")
  # The trainer is detached, so that it outlives the connection; tail follows it until it ends.
  on_all_workers "cd ~/vljax || exit; : >~/vljax.log; nohup ~/vljax-env/bin/python $train >>~/vljax.log 2>&1 </dev/null & pid=\$!; echo \$pid >~/vljax.pid; tail --pid=\$pid -n +1 -f ~/vljax.log; wait \$pid"
}

stop() {
  # shellcheck disable=SC2016 # The worker's shell expands it.
  on_all_workers 'kill -TERM "$(cat ~/vljax.pid)"'
}

teardown() {
  if $queued; then
    execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

all() {
  trap teardown EXIT
  create
  install
  run
}

"$action"
