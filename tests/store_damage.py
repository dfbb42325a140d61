"""Flips bits in the files of a store and reads it, in a process that may crash.

`python store_damage.py STORE FLIPS` prints one line per flip: file, byte, bit and what came of it:
"refused", or "same" or "other" data.
"""

import hashlib
import random
import sys
from pathlib import Path

import numpy as np

from bert_jax.data.sampling import Sampling
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError


def digest(path: Path) -> str:
    """Of all batches of two epochs and of the held-out documents."""
    store = open_store(path)
    sampling, rows = Sampling(batch_size=32, max_seq_length=32), np.arange(32)
    stream = store.training_batches(sampling, seed=0, host_rows=lambda _: rows)
    batches = [stream.batch(step) for step in range(2 * stream.rows_per_epoch // 32)]
    batches += store.heldout_batches(sampling, num_batches=0, host_rows=rows)
    assert max(batch["input_ids"].max() for batch in batches) < len(store.tokenizer.vocab)
    content = (values.tobytes() for batch in batches for values in batch.values())
    return hashlib.sha256(b"".join(content) + store.token_counts.tobytes()).hexdigest()


def replace(file: Path, content: bytes) -> None:
    """In another file of the same name: threads may still read the old one."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def main(path: Path, flips: int) -> None:
    rng, whole = random.Random(0), digest(path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for _ in range(flips if content else 0):
            byte, bit = rng.randrange(len(content)), rng.randrange(8)
            changed = bytearray(content)
            changed[byte] ^= 1 << bit
            replace(file, changed)
            try:
                result = "same" if digest(path) == whole else "other"
            except UserError:
                result = "refused"
            print(file.relative_to(path), byte, bit, result, flush=True)
        replace(file, content)
    assert digest(path) == whole


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
