#!/usr/bin/env bash
# Fills in launch/kubernetes.yaml and applies it with kubectl.
#
#   launch/kubernetes.sh --image registry.example/vljax --processes 4 -- --config configs/sdg_ffhq.py --workdir /data/runs/sdg
#
# With --dry_run nothing runs: what would run is printed.
set -euo pipefail

usage() {
  [[ $# -eq 0 ]] || echo "kubernetes.sh: $1" >&2
  cat >&2 <<'END'
usage: launch/kubernetes.sh [options] -- [arguments of python -m vljax.train]
  --name NAME     name of the Job and of its service (default: vljax)
  --image IMAGE   image with vljax installed (default: vljax:latest)
  --processes N   number of pods, one process each (default: 2)
  --gpus N        GPUs a pod (default: 8)
  --dry_run       print the command and the filled-in manifest, run nothing
END
  exit 2
}

name=vljax image=vljax:latest processes=2 gpus=8 dry_run=false
while [[ ${1:-} != -- ]]; do
  case ${1:-} in
    --name | --image | --processes | --gpus)
      [[ -n ${2:-} ]] || usage "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry_run) dry_run=true && shift ;;
    '') usage "put -- before the trainer's arguments" ;;
    *) usage "unknown option '$1'" ;;
  esac
done
shift
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || usage "--name must be lower-case letters, digits and dashes, not '$name'"
[[ $image =~ ^[A-Za-z0-9_./:@-]+$ ]] || usage "--image must be an image reference, not '$image'"
[[ $processes =~ ^[1-9][0-9]*$ ]] || usage "--processes must be a positive integer, not '$processes'"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || usage "--gpus must be a positive integer, not '$gpus'"

# The trainer's arguments as a JSON list, which YAML reads.
list=''
for argument in "$@"; do
  # Kubernetes expands $(NAME) in arguments and reads $$ as one dollar.
  argument=${argument//'$'/'$$'}
  argument=${argument//\\/\\\\}
  argument=${argument//'"'/'\"'}
  argument=${argument//$'\n'/'\n'}
  argument=${argument//$'\t'/'\t'}
  list+="${list:+, }\"$argument\""
done

manifest=''
while IFS= read -r line; do
  case $line in
    '#'*) continue ;;
    *' name: vljax' | *' job-name: vljax' | *' subdomain: vljax') line=${line%vljax}$name ;;
    *' value: vljax-0.vljax:'*) line=${line/vljax-0.vljax:/"$name-0.$name:"} ;;
    *' image: '*) line="${line%%image:*}image: $image" ;;
    *' completions: '* | *' parallelism: '*) line="${line%:*}: $processes" ;;
    *' value: "2"') line=${line/2/"$processes"} ;;
    *' nvidia.com/gpu: '*) line="${line%:*}: $gpus" ;;
    *' args: ['*) line="${line%%args:*}args: [$list]" ;;
  esac
  manifest+=$line$'\n'
done <"$(dirname "${BASH_SOURCE[0]}")/kubernetes.yaml"

if $dry_run; then
  printf "kubectl apply -f - <<'END'\n%sEND\n" "$manifest"
else
  printf %s "$manifest" | kubectl apply -f -
fi
