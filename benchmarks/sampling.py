"""Measures rate and memory of sampling, padding with and without packing, and rate of batches.

    python benchmarks/sampling.py [STORE]

Uses two synthetic indexes of 5 M sentences, one of long documents (20 sentences on average) and one
of short ones (3), and the token store STORE if given. One thread plans and gathers; peak memory is
what planning adds to a process that already holds the index. Linux only: reads /proc.
"""

import multiprocessing
import sys
import time
import types
from pathlib import Path

import numpy as np

from bert_jax.data.batches import Batches
from bert_jax.data.rows import StoreRows
from bert_jax.data.sampling import PAIRS, Sampling, plan_epoch
from bert_jax.data.split import Split, one_shard
from bert_jax.data.store import open_token_store

NUM_SENTENCES = 5_000_000
MAX_EXAMPLES_PER_ROW = 8
BATCH_SIZE = 256
SPECIAL = types.SimpleNamespace(pad_id=0, cls_id=2, sep_id=3)


def synthetic_split(name, sentences_per_document):
    """Sentences of 26 tokens and documents of `sentences_per_document` on average, log-normal."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.1, 0.6, NUM_SENTENCES), 1, 400).astype(np.int64)
    sizes = rng.lognormal(np.log(sentences_per_document) - 0.5, 1.0, NUM_SENTENCES)
    ends = np.cumsum(np.maximum(sizes, 1).astype(np.int64))
    return Split(
        name=name,
        tokens=np.full(lengths.sum(), 1000, np.uint16),
        sentences=np.append(0, np.cumsum(lengths)),
        documents=np.concatenate([[0], ends[ends < NUM_SENTENCES], [NUM_SENTENCES]]),
        token_counts=np.zeros(0, np.int64),
    )


def load_split(name):
    match name:
        case "long documents":
            return synthetic_split(name, 20)
        case "short documents":
            return synthetic_split(name, 3)
        case _:
            return open_token_store(name).train


def peak_kilobytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(name, max_seq_length, pairs, packing):
    """One line of the table. Run it in a separate process."""
    split = load_split(name)
    sampling = Sampling(
        batch_size=BATCH_SIZE,
        max_seq_length=max_seq_length,
        pairs=pairs,
        packing=packing,
        max_examples_per_row=MAX_EXAMPLES_PER_ROW,
    )
    sentences, documents = np.asarray(split.sentences), np.asarray(split.documents)
    plan_epoch(sentences, documents[:3], sampling, seed=0, epoch=0)  # compiles

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_kilobytes()
    start = time.perf_counter()
    plan = plan_epoch(sentences, documents, sampling, seed=0, epoch=0)
    seconds = time.perf_counter() - start
    added = peak_kilobytes() - before

    num_special = 2 if pairs == "none" else 3
    tokens = int((plan.a_length + plan.b_length + num_special).sum())
    padding = 1 - tokens / (plan.num_rows * max_seq_length)

    batches = Batches(StoreRows(one_shard(split), sampling, seed=0), sampling, SPECIAL)
    batches.batch(0)
    steps = min(2000, batches.rows_per_epoch // BATCH_SIZE)
    start = time.perf_counter()
    for step in range(steps):
        batches.batch(step)
    rows_per_second = steps * BATCH_SIZE / (time.perf_counter() - start)
    return (
        f"{name:16} {max_seq_length:4} {pairs:5} {'yes' if packing else 'no':7} "
        f"{plan.num_examples:9} {plan.num_rows:9} {padding:8.1%} "
        f"{(len(sentences) - 1) / seconds / 1e6:11.1f} {added / 1024:9.0f} {rows_per_second:9.0f}"
    )


def main():
    print(
        f"{'corpus':16} {'S':>4} {'pairs':5} packing {'examples':>9} {'rows':>9} {'padding':>8} "
        f"{'M sent./s':>11} {'peak MB':>9} {'rows/s':>9}"
    )
    context = multiprocessing.get_context("spawn")
    for name in ["long documents", "short documents", *sys.argv[1:]]:
        for max_seq_length in (128, 512):
            for pairs in PAIRS:
                for packing in (False, True):
                    with context.Pool(1) as pool:
                        line = pool.apply(measure, (name, max_seq_length, pairs, packing))
                    print(line, flush=True)


if __name__ == "__main__":
    main()
