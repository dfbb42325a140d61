"""Compares pseudo-log-likelihoods and their speed with the package minicons, on BLiMP.

    python benchmarks/scoring.py MODEL BLIMP PEER [ROUNDS] [PAIRS]

MODEL is a directory that `bert_jax.load` reads and `bert-jax convert --to=huggingface` writes, such
as that of a run; BLIMP is BLiMP's folder `data`; PEER is the Python of an environment with minicons
(0.3.39 takes transformers < 5). In every round both sides score other pairs of each paradigm,
PAIRS of them, by both methods, from text to sums, one side after the other on all cores. Loading
and compiling are not timed. minicons scores one sentence at a time, whatever the batch.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from etils import epath

from bert_jax import convert, load
from bert_jax.data.suites import read_suite, suite_name

METHODS = {"pll": "original", "within-word": "within_word_l2r"}
PEER = """
import json, sys, time
from minicons import scorer
model = scorer.MaskedLMScorer(sys.argv[1], "cpu")
for line in sys.stdin:
    texts, metric = json.loads(line)
    start = time.perf_counter()
    totals = model.sequence_score(texts, reduction=lambda x: x.sum().item(), PLL_metric=metric)
    print(json.dumps([time.perf_counter() - start, totals]), flush=True)
"""


def main(model: str, blimp: str, python: str, rounds: int = 3, pairs: int = 3) -> None:
    paradigms = read_suite(suite_name(f"blimp:{blimp}"))
    bert = load(model)
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / "model"
        convert(model, path, to="huggingface")
        peer = subprocess.Popen(
            [python, "-c", PEER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(rounds):
            chosen = slice(number * pairs, (number + 1) * pairs)
            texts = [text for each in paradigms for pair in each.pairs[chosen] for text in pair]
            for method, metric in METHODS.items():
                bert.score(texts, method)  # compiles
                start = time.perf_counter()
                ours = [score.total for score in bert.score(texts, method)]
                seconds = time.perf_counter() - start
                peer.stdin.write(json.dumps([texts, metric]) + "\n")
                peer.stdin.flush()
                theirs_seconds, theirs = json.loads(peer.stdout.readline())
                difference = np.abs(np.array(ours) - theirs).max()
                load_average = Path("/proc/loadavg").read_text().split()[0]
                print(
                    f"{method:<12}{len(texts):>6} sentences: {seconds:.2f} s, minicons "
                    f"{theirs_seconds:.2f} s, ratio {theirs_seconds / seconds:.1f}, largest "
                    f"difference {difference:.1e} (load {load_average})",
                    flush=True,
                )
        peer.stdin.close()
        peer.wait()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
