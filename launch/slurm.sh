#!/usr/bin/env bash
# Trains on a Slurm cluster: a process on each node, which takes all GPUs of its node. Before the
# time limit the run saves, and the job is queued again, until the run has finished.
#
#   sbatch --nodes=2 --gres=gpu:8 --time=24:00:00 launch/slurm.sh ARGUMENTS
#   sbatch --nodes=1 --gres=gpu:8 launch/slurm.sh --config=bert:base --workdir=/shared/runs/base \
#     --config.data.store=/shared/stores/mine
#
# Submit it from the root of the repository; workdir and store must be on a disk that all nodes
# share. The environment is .venv (`pip install -e '.[gpu]'`), or that in which bert-jax is found.
#SBATCH --job-name=bert
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # Slurm runs a copy of this file
source launch/environment.sh
help_if_asked "launch/slurm.sh" "$@"

if ! command -v srun >/dev/null; then
  echo "error: srun is not installed: submit this script with sbatch, see --help" >&2
  exit 2
fi
PATH="$PWD/.venv/bin:$PATH"
code=0
srun --kill-on-bad-exit=1 bert-jax pretrain --platform="${PLATFORM:-gpu}" "$@" || code=$?
if ((code == 75)); then # stopped by a signal and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
