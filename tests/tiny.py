"""A model and batches of test size."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.fields import build
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.heads import PRETRAINING
from bert_jax.model.model import Model, build_model
from bert_jax.objective.masking import BoundMasking, Masking

VOCAB_SIZE = 300
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
ARCHITECTURE = Architecture(
    vocab_size=VOCAB_SIZE,
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.2,
)
NUMERICS = Numerics(
    hidden_dropout=0.0, attention_dropout=0.0, compute_dtype="float32", remat="none"
)


def make_model(
    *,
    parallel: Parallel | None = None,
    parts: Sequence[str] = PRETRAINING,
    outputs: int = 0,
    **changes: Any,
) -> Model:
    """A pretraining model of two layers, or one with other parts or fields."""
    of_numerics = {name: changes.pop(name) for name in vars(NUMERICS) if name in changes}
    architecture = build(Architecture, vars(ARCHITECTURE) | changes)
    numerics = dataclasses.replace(NUMERICS, **of_numerics)
    return build_model(architecture, numerics, parallel or Parallel(), parts=parts, outputs=outputs)


def make_masking(strategy: str = "token", slots: int = 20, **fields: Any) -> BoundMasking:
    """Ids from 5 on are words; every third one continues a word."""
    ids = np.arange(VOCAB_SIZE)
    return BoundMasking(
        masking=build(Masking, {"name": strategy, **fields}),
        slots=slots,
        mask_id=MASK_ID,
        is_special=ids < 5,
        is_continuation=(ids >= 5) & (ids % 3 == 0),
    )


def make_batch(lengths: list[list[int]], max_seq_length: int = 48, seed: int = 0) -> dict:
    """Rows of examples `[CLS] A [SEP] B [SEP]` of the given lengths, as `Batches.batch` makes them.

    The n-th example counted over all rows has the same tokens, label and id however the examples
    are laid out in rows.
    """
    examples = max(map(len, lengths))
    rows = (len(lengths), max_seq_length)
    batch = {
        name: np.zeros(rows, np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    }
    batch["cls_positions"] = np.zeros((len(lengths), examples), np.int32)
    batch["next_sentence_label"] = np.full((len(lengths), examples), -1, np.int32)
    batch["example_ids"] = np.zeros((len(lengths), examples, 2), np.int32)
    number = 0
    for row, row_lengths in enumerate(lengths):
        start = 0
        for example, length in enumerate(row_lengths):
            random = np.random.default_rng((seed, number))
            tokens = random.integers(5, VOCAB_SIZE, length)
            middle = length // 2
            tokens[0], tokens[middle], tokens[-1] = CLS_ID, SEP_ID, SEP_ID
            where = row, slice(start, start + length)
            batch["input_ids"][where] = tokens
            batch["token_type_ids"][where] = np.arange(length) > middle
            batch["position_ids"][where] = np.arange(length)
            batch["segment_ids"][where] = example + 1
            batch["cls_positions"][row, example] = start
            batch["next_sentence_label"][row, example] = random.integers(2)
            batch["example_ids"][row, example] = 0, number
            start += length
            number += 1
    return batch
