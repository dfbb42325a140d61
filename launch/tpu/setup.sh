#!/usr/bin/env bash
# Copies the code of a commit (default: HEAD) to all workers and installs it there with uv, a
# separate Python and jax[tpu]. Another commit replaces it, in seconds if no dependency is new.
#
#   bash launch/tpu/setup.sh [--dry-run] [COMMIT]
#
# A store on gs:// needs no setup: pretrain copies it to the disk of each host once.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

commit=$(git rev-parse --short "${1:-HEAD}^{commit}")
if [[ ! ${1:-} && $(git status --porcelain --untracked-files=no) ]]; then
  echo "note: uncommitted changes are not copied" >&2
fi
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
call git archive --format=tar.gz --output="$folder/bert_jax.tar.gz" "$commit"
for node in "${nodes[@]}"; do
  call gcloud compute tpus tpu-vm scp "$folder/bert_jax.tar.gz" "$node:" "${where[@]}" --worker=all
done
on_workers all "mkdir -p bert_jax && cd bert_jax && rm -rf bert_jax configs launch &&
tar -xzf ../bert_jax.tar.gz && bash launch/tpu/worker.sh && echo bert_jax $commit is installed"
