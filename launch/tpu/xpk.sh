#!/usr/bin/env bash
# Runs `bert-jax pretrain` on a GKE cluster, for tpu7x and large pods. Kubernetes restarts it when a
# node is taken away (SIGTERM, exit code 75 once it has saved) or a worker dies.
#
#   bash launch/tpu/xpk.sh [--dry-run] --config=bert_large \
#     --workdir=gs://BUCKET/runs/large --config.data.store=gs://BUCKET/stores/wikipedia
#
# Needs xpk (pip install xpk), Docker, and a cluster named TPU_CLUSTER, created once with
# xpk cluster create. Runs the last commit. To find the log: xpk workload list; to end the run:
# xpk workload delete.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# -gt 0 ]] || die "give the arguments of bert-jax pretrain; see --help"
need TPU_CLUSTER TPU_TYPE

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
call git archive --output="$folder/bert_jax.tar" HEAD
call tar -xf "$folder/bert_jax.tar" -C "$folder"
call xpk workload create --cluster="$TPU_CLUSTER" --workload="$TPU_NAME" \
  --project="$TPU_PROJECT" --zone="$TPU_ZONE" --tpu-type="$TPU_TYPE" --num-slices="$slices" \
  --base-docker-image=python:3.12 --script-dir="$folder" \
  --max-restarts="${TPU_RESTARTS:-20}" --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --command="pip install --quiet --editable .[tpu] && exec bert-jax pretrain --platform=tpu $(printf '%q ' "$@")"
