#!/usr/bin/env bash
# The state of the TPU, and on each worker that of the run, with the last line of its log.
#
#   bash launch/tpu/status.sh [--dry-run]
#
# "running 0", "exited 0": finished, "failed 75": stopped and saved, "failed CODE", "dead 0": not
# started.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

call gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
  --format='value(state.state)'
on_workers all "${show_unit%\"} \$(sudo journalctl --unit=bert-jax --output=cat --lines=1)\""
