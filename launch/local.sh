#!/usr/bin/env bash
# Trains with N processes on this machine, joined by jax.distributed over 127.0.0.1.
#
#   launch/local.sh N -- --config configs/sdg_ffhq.py --workdir runs/sdg_ffhq
#
# Everything after `--` goes to every `python -m vljax.train`. Process 0 writes as if it ran alone;
# the lines of the others, errors included, begin with their index: "[1] …". Ctrl-C and SIGTERM ask
# every process to save and stop; a second one kills them. When a process fails, the others are
# stopped too, and this script exits with the status of the first that failed.
#
# On a machine with GPUs every process gets an equal share of them. Environment:
#   DEVICES_PER_PROCESS=K  use K simulated CPU devices a process instead
#   GRACE_SECONDS=30       how long the others may take to stop once one has failed
#   PYTHON=python          the interpreter
#
# Needs bash 4.4 or newer.
set -uo pipefail
set -m # Every process leads its own group: Ctrl-C reaches only this script, which forwards it.

usage() {
  [[ $# -eq 0 ]] || echo "local.sh: $1" >&2
  echo "usage: launch/local.sh N -- [arguments of python -m vljax.train]" >&2
  exit 2
}

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || usage "the number of processes must be a positive integer, not '${1:-}'"
[[ ${2:-} == -- ]] || usage "put -- between the number of processes and the trainer's arguments"
count=$1
shift 2
python=${PYTHON:-python}

gpus=()
if [[ -n ${DEVICES_PER_PROCESS:-} ]]; then
  [[ $DEVICES_PER_PROCESS =~ ^[1-9][0-9]*$ ]] ||
    usage "DEVICES_PER_PROCESS must be a positive integer, not '$DEVICES_PER_PROCESS'"
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
elif [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
  fi
  ((${#gpus[@]} % count == 0)) || usage "$count processes cannot share ${#gpus[@]} GPUs equally"
fi

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') ||
  exit
export VLJAX_COORDINATOR=127.0.0.1:$port VLJAX_NUM_PROCESSES=$count

# Passes whole lines on, each behind a prefix. It outlives Ctrl-C: a process that saves must be able
# to write.
pass_lines() {
  local line
  trap '' HUP INT TERM
  while IFS= read -r line || [[ -n $line ]]; do printf '%s%s\n' "$1" "$line"; done
}

declare -A running # process id → index in the run
readers=()
for ((index = 0; index < count; index++)); do
  export VLJAX_PROCESS_ID=$index
  if ((${#gpus[@]})); then
    share=$((${#gpus[@]} / count))
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:index*share:share}")
    export CUDA_VISIBLE_DEVICES
  fi
  if ((index == 0)) && [[ -t 1 ]]; then
    exec {lines}>&1 # Its progress bar needs the terminal itself.
  else
    ((index == 0)) && prefix='' || prefix="[$index] "
    exec {lines}> >(pass_lines "$prefix")
    readers+=($!)
  fi
  if ((index == 0)); then exec {errors}>&2; else exec {errors}>&"$lines"; fi
  "$python" -m vljax.train "$@" </dev/null 1>&"$lines" 2>&"$errors" &
  running[$!]=$index
  exec {lines}>&- {errors}>&-
done

stopping=false
stop() {
  local pid again=$stopping
  stopping=true
  for pid in "${!running[@]}"; do
    if $again; then kill -KILL -- "-$pid"; else kill -TERM "$pid"; fi 2>/dev/null
  done
}
trap stop HUP INT TERM

status=0 reaper=
while ((${#running[@]})); do
  # Asking beats `wait -n`, to which a signal can lose the end of a process.
  sleep 0.2 &
  wait $!
  for pid in "${!running[@]}"; do
    ! kill -0 "$pid" 2>/dev/null || continue
    wait "$pid"
    code=$?
    index=${running[$pid]}
    unset "running[$pid]"
    kill -KILL -- "-$pid" 2>/dev/null # Data workers that it may have left behind.
    if ((code != 0 && status == 0)); then
      status=$code
      echo "local.sh: process $index ended with status $code, stopping the others" >&2
      $stopping || stop
      (
        sleep "${GRACE_SECONDS:-30}"
        for other in "${!running[@]}"; do kill -KILL -- "-$other"; done
      ) >/dev/null 2>&1 &
      reaper=$!
    fi
  done
done
[[ -z $reaper ]] || kill -KILL -- "-$reaper" 2>/dev/null
wait "${readers[@]}"
exit "$status"
