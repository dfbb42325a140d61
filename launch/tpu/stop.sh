#!/usr/bin/env bash
# Stops the run: SIGTERM on all workers, and up to 5 minutes to save. The TPU stays, and is billed,
# until delete.sh; run.sh with the same arguments resumes the run. Stop babysit.sh first.
#
#   bash launch/tpu/stop.sh [--dry-run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_workers all "sudo systemctl stop bert-jax; $show_unit"
