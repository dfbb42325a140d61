#!/usr/bin/env bash
# Simulates several hosts on one machine: N processes connect over loopback and share 8 fake CPU
# devices.
#
#   bash launch/local_multihost.sh N VERB [ARGUMENTS]      N: 1, 2, 4 or 8
#   bash launch/local_multihost.sh 2 pretrain --config=quickstart \
#     --workdir=workdir/two --config.data.store=workdir/quickstart/store
#
# Each line of output begins with the number of its process. On SIGTERM or Ctrl-C all processes save
# at the same step and stop. If one dies, the others are killed and the script exits with its code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
help_if_asked "launch/${0##*/}" "$@"

devices=8 processes=${1:-}
if [[ ! $processes =~ ^[1248]$ || $# -lt 2 ]]; then
  echo "usage: bash launch/local_multihost.sh N VERB [ARGUMENTS]; see --help" >&2
  exit 2
fi
shift
if ! command -v bert-jax >/dev/null; then
  environment .venv ""
  PATH="$PWD/.venv/bin:$PATH"
fi
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$((devices / processes))"
port=$(python3 -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')

declare -A running # by process id
trap 'kill -TERM "${!running[@]}" 2>/dev/null || true' TERM INT
for ((id = 0; id < processes; id++)); do
  bert-jax "$@" --coordinator="127.0.0.1:$port" --num-processes="$processes" --process-id="$id" \
    > >(sed -u "s/^/[$id] /") 2>&1 &
  running[$!]=1
done

status=0
while ((${#running[@]})); do
  code=0
  wait -n -p ended "${!running[@]}" || code=$?
  [[ ${ended:-} ]] || continue # none has ended: a signal came, and the trap passed it on
  unset "running[$ended]"
  if ((code != 0 && status == 0)); then
    status=$code
    if ((code != 2 && code != 75)); then # with 2 or 75, all processes exit by themselves
      kill -KILL "${!running[@]}" 2>/dev/null || true
    fi
  fi
done
exit "$status"
