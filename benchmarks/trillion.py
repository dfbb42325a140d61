"""Start-up, batches, resume and memory over a synthetic index of a trillion tokens.

    python benchmarks/trillion.py

The store has 3,726 shards of 2**28 tokens. The offsets of a shard are generated when it is opened,
20 sentences of 26 tokens a document on average, the tokens are zeros that take no memory. So what
is missing is the time in which a disk reads. NSP in packed rows of 128 tokens, 4,096 a batch; once
from one store, once from a mixture of three. Linux only: reads /proc.
"""

import dataclasses
import functools
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from etils import epath

from bert_jax.data import manifest
from bert_jax.data.batches import Batches
from bert_jax.data.mixture import MixedRows, Mixture
from bert_jax.data.rows import StoreRows
from bert_jax.data.sampling import Sampling, plan_epoch
from bert_jax.data.split import Shards, Split
from bert_jax.data.store_writer import SHARD_TOKENS
from bert_jax.storage import write_json

TOKENS = 10**12
STEPS = 50_000_000  # from which steps are drawn at random: several rounds over the shards
SPECIAL = SimpleNamespace(pad_id=0, cls_id=2, sep_id=3)
SAMPLING = Sampling(batch_size=4096, max_seq_length=128, max_examples_per_row=8)
NUM_SENTENCES, NUM_DOCUMENTS = SHARD_TOKENS // 26, SHARD_TOKENS // 520


def shard(index):
    """Sentences and documents of random lengths, log-normal."""
    rng = np.random.default_rng(index)
    lengths = np.clip(rng.lognormal(3.1, 0.6, NUM_SENTENCES * 11 // 10), 1, 400).astype(np.int64)
    sentences = np.append(0, np.cumsum(lengths))
    sentences = sentences[: np.searchsorted(sentences, SHARD_TOKENS)]
    sizes = np.maximum(rng.lognormal(np.log(20) - 0.5, 1.0, NUM_DOCUMENTS * 3), 1)
    ends = np.cumsum(sizes.astype(np.int64))
    last = len(sentences) - 1
    return Split(
        name="train",
        tokens=np.zeros(SHARD_TOKENS, np.uint16),
        sentences=sentences,
        documents=np.concatenate([[0], ends[ends < last], [last]]),
        token_counts=np.zeros(0, np.int64),
    )


def store(tokens):
    num_shards = -(-tokens // SHARD_TOKENS)
    size = manifest.Counts(NUM_DOCUMENTS, NUM_SENTENCES, SHARD_TOKENS, 0)
    return SimpleNamespace(
        shards={"train": Shards("train", [size] * num_shards, shard)},
        token_counts=np.array([num_shards * SHARD_TOKENS]),
        tokenizer=SimpleNamespace(vocab_hash=""),
    )


def stream(is_mixture):
    if not is_mixture:
        rows = StoreRows(store(TOKENS).shards["train"], SAMPLING, seed=0)
        return Batches(rows, SAMPLING, SPECIAL)
    names = {"web": 0.6, "code": 0.3, "books": 0.1}
    mixed = [{"store": name, "weight": weight} for name, weight in names.items()]
    sampling = dataclasses.replace(SAMPLING, mixture=tuple(mixed))
    mixture = Mixture({name: store(TOKENS // 3) for name in names})
    return Batches(MixedRows(mixture, sampling, seed=0), sampling, SPECIAL)


def seconds(work, *arguments):
    """Wall time and CPU time, which other programs do not lengthen, and what was found."""
    start, cpu = time.perf_counter(), time.process_time()
    found = work(*arguments)
    return (time.perf_counter() - start, time.process_time() - cpu), found


def shown(times):
    """The median; wall and CPU time."""
    wall, cpu = np.median(np.atleast_2d(times), axis=0)
    return f"{wall:8.2f} /{cpu:6.2f}"


def measure(is_mixture, queue):
    """One part of the table, in a process of its own."""
    small = np.arange(0, 1000, 10)
    plan_epoch(small, np.arange(0, 100, 9), SAMPLING, seed=0, epoch=0)  # compiles
    opening, split = seconds(shard, 0)
    plan = functools.partial(plan_epoch, sampling=SAMPLING, seed=0, epoch=0)
    planning, _ = seconds(plan, split.sentences, split.documents)
    del split

    def start_at(step):
        batches = stream(is_mixture)
        batches.batch(step)
        return batches

    starting, batches = seconds(start_at, 0)
    chance = random.Random(0)
    cold, warm = [], []
    for _ in range(2):
        step = chance.randrange(STEPS)
        cold.append(seconds(batches.batch, step)[0])
        warm += [seconds(batches.batch, step + more)[0] for more in range(1, 21)]
    del batches
    resuming, _ = seconds(start_at, chance.randrange(STEPS))
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    found = (opening, planning, starting, cold, np.array(warm) * 1000, resuming)
    name = "mixture of three" if is_mixture else "one store"
    queue.put(f"{name:17}{''.join(map(shown, found))}{peak / 2**20:8.2f}")


def manifest_seconds():
    """Reading the manifest of such a store."""
    counts = manifest.Counts(NUM_DOCUMENTS, NUM_SENTENCES, SHARD_TOKENS, 0, 0, 0, 0)
    shards = [
        manifest.Shard(f"{i:064x}", {"train": counts, "heldout": counts})
        for i in range(-(-TOKENS // SHARD_TOKENS))
    ]
    splits = manifest.sum_of_counts([each.splits for each in shards])
    with tempfile.TemporaryDirectory() as folder:
        write_json(
            epath.Path(folder) / manifest.MANIFEST,
            {
                "format": manifest.FORMAT, "version": manifest.SHARDED, "dtype": "<u2",
                "vocab_size": 30522, "vocab_hash": "", "empty_documents": 0, "heldout_bound": 0.05,
                "fingerprint": manifest.sharded_identity("", shards),
                "splits": {name: dataclasses.asdict(each) for name, each in splits.items()},
                "shards": [dataclasses.asdict(each) for each in shards],
                "totals": {"bytes": 2 * 30522 * 8, "sha256": ""},
            },
        )  # fmt: skip
        return seconds(manifest.read_manifest, epath.Path(folder))[0][0]


def main():
    print(f"reading the manifest: {manifest_seconds():.1f} s")
    columns = ("open", "plan", "start", "any step", "next (ms)", "resume")
    print(f"{'wall / CPU s':17}{''.join(f'{name:>16}' for name in columns)}  peak GiB", flush=True)
    context = multiprocessing.get_context("spawn")
    for is_mixture in (False, True):
        queue = context.Queue()
        process = context.Process(target=measure, args=(is_mixture, queue))
        process.start()
        print(queue.get(), flush=True)
        process.join()


if __name__ == "__main__":
    main()
