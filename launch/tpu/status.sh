#!/usr/bin/env bash
# Prints the state of the TPU and, for each worker, that of the run and the last line of its log.
#
#   bash launch/tpu/status.sh [--dry-run]
#
# States of a run: "running 0", "exited 0" (finished), "failed 75" (stopped and saved), "failed
# CODE", "dead 0" (not started).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

call gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
  --format='value(state.state)'
on_workers all "${show_unit%\"} \$(sudo journalctl --unit=bert-jax --output=cat --lines=1)\""
