#!/usr/bin/env bash
# Deletes the TPU, or the request for it, and the disks of its VMs.
#
#   bash launch/tpu/delete.sh [--dry-run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

call gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force
