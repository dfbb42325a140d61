#!/usr/bin/env bash
# Starts `bert-jax pretrain` on all workers, as a systemd unit: it outlives this connection, and
# SIGTERM, from stop.sh or when the VM is taken away, reaches Python, which saves.
#
#   bash launch/tpu/run.sh [--dry-run] --config=bert_base \
#     --workdir=gs://BUCKET/runs/base --config.data.store=gs://BUCKET/stores/wikipedia
#
# A run that is already in the workdir is resumed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -gt 0 ]] || die "give the arguments of bert-jax pretrain; see --help"
# The unit of an earlier run is removed, unless it is still running; then the start fails.
# shellcheck disable=SC2016
command='cd bert_jax && if ! systemctl show bert-jax --property=SubState | grep -q running; then
sudo systemctl stop bert-jax; sudo systemctl reset-failed bert-jax; fi 2>/dev/null;
sudo systemd-run --unit=bert-jax --remain-after-exit --same-dir --uid="$(id -u)" --gid="$(id -g)"
--property=KillMode=mixed --property=TimeoutStopSec=300 '
# shellcheck disable=SC2016
command+='"$PWD/.venv/bin/bert-jax" pretrain --platform=tpu '
on_workers all "$command$(printf '%q ' "$@")"
