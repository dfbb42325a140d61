#!/usr/bin/env bash
# Trains a small BERT from scratch: environment, corpus, vocabulary, pretraining with MLM and NSP,
# evaluation on held-out documents, curves, filling in masks. A second run reuses what is done, and
# an interrupted run resumes.
#
#   bash launch/quickstart.sh [--config.FIELD=VALUE ...]      e.g. --config.steps=2000
#
# Everything goes into workdir/quickstart; WORKDIR=... chooses another directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
help_if_asked "launch/${0##*/}" "$@"
environment .venv ""

bert_jax() { .venv/bin/python -m bert_jax "$@"; }
workdir=${WORKDIR:-workdir/quickstart}

echo "== 1/5 Preparing the corpus: State of the Union, 1790-2026"
bert_jax prepare corpus:sotu --vocab-size=8192 --output="$workdir/store"

echo "== 2/5 Pretraining"
bert_jax pretrain --config=quickstart --workdir="$workdir/run" \
  --config.data.store="$workdir/store" "$@"

echo "== 3/5 Evaluating on held-out documents"
bert_jax evaluate --workdir="$workdir/run"

echo "== 4/5 Drawing the curves"
bert_jax plot "$workdir/run"

echo "== 5/5 Filling in masks"
bert_jax predict fill-mask --model="$workdir/run" \
  "The president of the United [MASK]." \
  "We must keep the [MASK] of the world." \
  "The Congress of the [MASK] States has the power to declare [MASK]."
