#!/usr/bin/env bash
# Profiles 5 steps of the current run on all workers and fetches the traces into FOLDER/profile, for
# XProf, TensorBoard or (the .json.gz) https://ui.perfetto.dev. Wait until metrics are logged.
#
#   bash launch/tpu/profile.sh [--dry-run] WORKDIR [FOLDER]      FOLDER: local, default workdir
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ ${1:-} ]] || die "give the WORKDIR of the run; see --help"
folder=${2:-workdir}

# shellcheck disable=SC2016
on_workers all 'now=$(date +%s); sudo systemctl kill --kill-who=main --signal=USR1 bert-jax &&
timeout 600 sudo journalctl --unit=bert-jax --output=cat --since=@$now --follow |
grep --max-count=1 "^profile of"'
call mkdir -p "$folder"
if [[ $1 == gs://* ]]; then
  call gcloud storage cp --recursive "$1/profile" "$folder" --project="$TPU_PROJECT"
else
  [[ $1 == /* ]] && path=$1 || path=bert_jax/$1 # run.sh starts the run in ~/bert_jax
  call gcloud compute tpus tpu-vm scp --recurse "${nodes[0]}:$path/profile" "$folder" \
    "${where[@]}" --worker=0
fi
