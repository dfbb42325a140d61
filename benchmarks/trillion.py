"""Start-up, batches, resume and memory over a synthetic index of a trillion tokens.

    python benchmarks/trillion.py

The store has 3,726 shards of 2**28 tokens. The offsets of eight are generated and written, 20
sentences of 26 tokens a document on average; opening a shard maps those of one of them and compares
them with their checksum, as a store does. The tokens are zeros that take no memory. So what is
missing is the time in which a disk reads. NSP in packed rows of 128 tokens, 4,096 a batch; once
from one store, once from a mixture of three. Starts at the first and at a random step are processes
of their own. Linux only: reads /proc.
"""

import dataclasses
import functools
import hashlib
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
WRITTEN = 8
NUM_SENTENCES, NUM_DOCUMENTS = SHARD_TOKENS // 26, SHARD_TOKENS // 520


def write_shard(folder, index):
    """Sentences and documents of random lengths, log-normal; the checksum is that of both."""
    rng = np.random.default_rng(index)
    lengths = np.clip(rng.lognormal(3.1, 0.6, NUM_SENTENCES * 11 // 10), 1, 400).astype(np.int64)
    sentences = np.append(0, np.cumsum(lengths))
    sentences = sentences[: np.searchsorted(sentences, SHARD_TOKENS)]
    sizes = np.maximum(rng.lognormal(np.log(20) - 0.5, 1.0, NUM_DOCUMENTS * 3), 1)
    ends = np.cumsum(sizes.astype(np.int64))
    last = len(sentences) - 1
    documents = np.concatenate([[0], ends[ends < last], [last]])
    checksums = []
    for name, offsets in (("sentences", sentences), ("documents", documents)):
        offsets.tofile(folder / f"{index}.{name}")
        checksums.append(hashlib.sha256(offsets.data).hexdigest())
    (folder / f"{index}.txt").write_text("\n".join(checksums))


def shard(folder, index):
    """Opens a shard, as a store does."""
    number, offsets = index % WRITTEN, []
    checksums = (folder / f"{number}.txt").read_text().split()
    for name, checksum in zip(("sentences", "documents"), checksums):
        offsets.append(np.memmap(folder / f"{number}.{name}", np.int64, mode="r"))
        assert hashlib.sha256(offsets[-1].data).hexdigest() == checksum
    size = int(offsets[0][-1])
    split = Split("train", np.zeros(size, np.uint16), *offsets, token_counts=np.array([size]))
    assert not split.wrong_offsets()
    return split


def store(folder, tokens):
    num_shards = -(-tokens // SHARD_TOKENS)
    size = manifest.Counts(NUM_DOCUMENTS, NUM_SENTENCES, SHARD_TOKENS, 0)
    return SimpleNamespace(
        shards={"train": Shards("train", [size] * num_shards, functools.partial(shard, folder))},
        token_counts=np.array([num_shards * SHARD_TOKENS]),
        tokenizer=SimpleNamespace(vocab_hash=""),
    )


def stream(folder, is_mixture):
    if not is_mixture:
        rows = StoreRows(store(folder, TOKENS).shards["train"], SAMPLING, seed=0)
        return Batches(rows, SAMPLING, SPECIAL)
    names = {"web": 0.6, "code": 0.3, "books": 0.1}
    mixed = [{"store": name, "weight": weight} for name, weight in names.items()]
    sampling = dataclasses.replace(SAMPLING, mixture=tuple(mixed))
    mixture = Mixture({name: store(folder, TOKENS // 3) for name in names})
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


def measure(folder, is_mixture, is_resume, queue):
    """A start, in a process of its own: times by column, and the largest memory in GiB."""
    small = np.arange(0, 1000, 10)
    plan_epoch(small, np.arange(0, 100, 9), SAMPLING, seed=0, epoch=0)  # compiles

    def start_at(step):
        batches = stream(folder, is_mixture)
        batches.batch(step)
        return batches

    chance = random.Random(0)
    if is_resume:
        found = {"resume": seconds(start_at, chance.randrange(STEPS))[0]}
    else:
        opening, split = seconds(shard, folder, 0)
        plan = functools.partial(plan_epoch, sampling=SAMPLING, seed=0, epoch=0)
        planning, _ = seconds(plan, split.sentences, split.documents)
        starting, batches = seconds(start_at, 0)
        cold, warm = [], []
        for _ in range(2):
            step = chance.randrange(STEPS)
            cold.append(seconds(batches.batch, step)[0])
            warm += [seconds(batches.batch, step + more)[0] for more in range(1, 21)]
        found = {"open": opening, "plan": planning, "start": starting, "any step": cold}
        found["next (ms)"] = np.array(warm) * 1000
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    queue.put((found, peak / 2**20))


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(WRITTEN):
            write_shard(folder, index)
        for is_mixture in (False, True):
            found, peaks = {}, []
            for is_resume in (False, True):
                queue = context.Queue()
                arguments = (folder, is_mixture, is_resume, queue)
                process = context.Process(target=measure, args=arguments)
                process.start()
                times, peak = queue.get()
                process.join()
                found |= times
                peaks.append(peak)
            shown_times = "".join(shown(found[column]) for column in columns)
            name = "mixture of three" if is_mixture else "one store"
            print(f"{name:17}{shown_times}  {peaks[0]:.2f}, {peaks[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
