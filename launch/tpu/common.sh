# shellcheck shell=bash
# Sourced by the scripts beside it, with their arguments: reads the settings (see
# launch/tpu.env.example), takes --help and --dry-run out of the arguments, and changes to the root
# of the repository.

if [[ ${TPU_ENV:-} ]]; then
  TPU_ENV=$(realpath "$TPU_ENV")
  export TPU_ENV
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
source launch/environment.sh
help_if_asked "launch/tpu/${0##*/}" "$@"

dry_run=
arguments=()
for argument; do
  if [[ $argument == --dry-run ]]; then
    dry_run=yes
  else
    arguments+=("$argument")
  fi
done
set -- "${arguments[@]}"

die() {
  echo "error: $*" >&2
  exit 2
}

settings=${TPU_ENV:-launch/tpu.env}
if [[ -e $settings ]]; then
  while IFS='=' read -r name value; do
    if [[ $name =~ ^TPU_[A-Z_]+$ && ! -v $name ]]; then
      declare "$name=$value"
    fi
  done <"$settings"
fi

# need NAMES...: fails if one of these settings is empty.
need() {
  local name
  for name; do
    [[ ${!name:-} ]] || die "$name is not set: give it in $settings, a copy of" \
      "launch/tpu.env.example, or in the environment"
  done
}
need TPU_PROJECT TPU_ZONE TPU_NAME
# shellcheck disable=SC2034 # used by the scripts
slices=${TPU_SLICES:-1} poll=${TPU_POLL_SECONDS:-30}
where=(--project="$TPU_PROJECT" --zone="$TPU_ZONE" --quiet)
nodes=("$TPU_NAME")
if ((slices > 1)); then
  mapfile -t nodes < <(seq -f "$TPU_NAME-%g" 0 $((slices - 1)))
fi

say() { echo "$(date +%T) $*"; }

# call COMMAND...: runs it; with --dry-run, prints it so that it can be pasted.
call() {
  if [[ ! $dry_run ]]; then
    "$@"
    return
  fi
  local word line=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  echo "${line[*]}"
}

# on_workers WORKER COMMAND: runs COMMAND, joined to one line, on this worker of every slice or on
# "all"; slices run in parallel.
on_workers() {
  local command=${2//$'\n'/ } node pid failed=0 running=()
  for node in "${nodes[@]}"; do
    call gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker="$1" \
      --command="$command" </dev/null &
    running+=($!)
  done
  for pid in "${running[@]}"; do
    wait "$pid" || failed=1
  done
  return "$failed"
}

# state: prints that of the queued resource: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED ...; NONE if
# there is none, UNKNOWN without an answer.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}" # warnings may come before
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# Prints a line on each worker: "bert-jax on HOST: STATE EXIT_CODE", with running 0, exited 0
# (finished), failed CODE, or dead 0 (not started).
# shellcheck disable=SC2016
show_unit='echo "bert-jax on $(hostname):' # expanded on the worker
for property in SubState ExecMainStatus; do
  show_unit+=" \$(systemctl show bert-jax --property=$property --value)"
done
show_unit+='"'
