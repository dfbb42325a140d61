#!/usr/bin/env bash
# Requests a TPU and waits until it is active: on demand, or spot with TPU_SPOT=true; one slice, or
# TPU_SLICES of them.
#
#   bash launch/tpu/create.sh [--dry-run]
#
# Ctrl-C ends the wait, not the request; delete.sh cancels it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need TPU_TYPE

case $TPU_TYPE in
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  tpu7x-*) die "TPU_TYPE=$TPU_TYPE: tpu7x is on GKE only, use launch/tpu/xpk.sh" ;;
  *) die "TPU_TYPE=$TPU_TYPE: use a type like v2-8, v3-8, v4-8, v5litepod-8, v5p-8 or v6e-8" ;;
esac
options=(--accelerator-type="$TPU_TYPE" --runtime-version="$runtime")
if ((slices > 1)); then
  options+=(--node-count="$slices" --node-prefix="$TPU_NAME")
else
  options+=(--node-id="$TPU_NAME")
fi
if [[ ${TPU_SPOT:-false} == true ]]; then
  options+=(--spot)
fi
call gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" "${options[@]}"
if [[ $dry_run ]]; then
  exit
fi

last=
while now=$(state) && [[ $now != ACTIVE ]]; do
  [[ $now == "$last" ]] || say "$TPU_NAME: $now"
  case $now in
    NONE | FAILED | SUSPENDED) exit 1 ;;
  esac
  last=$now
  sleep "$poll"
done
say "$TPU_NAME: ACTIVE"
