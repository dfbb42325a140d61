#!/usr/bin/env bash
# Follows the log of the run, from its last 200 lines on. Worker 0 logs the metrics, the others only
# their own messages. Ctrl-C stops following, not the run.
#
#   bash launch/tpu/logs.sh [--dry-run] [WORKER]      0 (default), 1 ... or all
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_workers "${1:-0}" "sudo journalctl --unit=bert-jax --output=cat --lines=200 --follow"
